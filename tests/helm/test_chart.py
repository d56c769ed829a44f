"""The chart against what it stands for, without helm: settings, flags, its schema and its README.

`make helm-e2e` renders and installs it.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import typer.main
import yaml

from gateway.command.cli import app
from gateway.config import ConfigError, GatewayConfig, load_config
from gateway.http.cors import origins_of
from gateway.observability.traces import TracesError, traces_url
from gateway.tenants.tenants_file import TenantsError, TenantSpec, parse_tenants
from gateway.variants.groups_file import GroupsError, GroupSpec, parse_groups
from gpuworker.config import WorkerConfig
from helm.generate import CHART, documented, outputs
from helm.values_schema import SET_BY_THE_CHART, settings_schema
from scheduler import __version__, policies

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SETS = sorted((Path(__file__).parent / "values").glob("*.yaml"))
TEMPLATES = sorted((CHART / "templates").rglob("*.*"))
FIELDS = {field.name: field for field in msgspec.structs.fields(GatewayConfig)}
# Every setting of a worker, and the flag that says it; None: not in a cluster.
WORKER_FLAGS = {
    "connect": "--connect",
    "name": "--name",
    "models_dir": "--models",
    "cache_dir": "--cache-dir",
    "cache_bytes": "--cache-mb",
    "page_bytes": "--page-mb",
    "device": "--device",
    "shards": "--replica",
    "emulate": None,  # for laptops
    "cpu": None,  # the kubelet's CPU manager pins
    "intra_op_threads": None,  # more cores are more workers (docs/kubernetes.md)
    "host_store": None,  # a parent says it to its own
}


def problems(values: object) -> dict[str, str]:
    """Where in the values, and what, by the schema."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return {error.json_path: error.message for error in validator.iter_errors(values)}


@pytest.mark.parametrize("path", outputs(), ids=lambda path: path.name)
def test_what_is_generated_is_in_step(path: Path) -> None:
    assert path.read_text() == outputs()[path], "run: python helm/generate.py"


@pytest.mark.parametrize("file", [CHART / "values.yaml", *SETS], ids=lambda file: file.stem)
def test_the_schema_takes_the_values(file: Path) -> None:
    assert problems(yaml.safe_load(file.read_text())) == {}


def test_values_and_schema_have_the_same_keys() -> None:
    described = {value.path for value in documented()}
    assert set(keys_of_schema(SCHEMA)) - {"global"} == described


def keys_of_schema(schema: dict[str, Any], above: str = "") -> Iterator[str]:
    """Paths of values; what is Kubernetes' own, or the gateway's, is one value."""
    for name, part in schema["properties"].items():
        path = f"{above}{name}"
        is_one = path.endswith(("resources", ".settings")) or "properties" not in part
        if is_one:
            yield path
        else:
            yield from keys_of_schema(part, f"{path}.")


def test_the_settings_are_the_gateways_but_for_what_the_chart_sets() -> None:
    assert set(FIELDS) >= SET_BY_THE_CHART
    assert set(settings_schema()) == set(FIELDS) - SET_BY_THE_CHART


@pytest.mark.parametrize("name", settings_schema())
def test_the_gateways_default_of_each_setting_is_one_that_the_schema_takes(name: str) -> None:
    assert problems({"gateway": {"settings": {name: FIELDS[name].default}}}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drain_s", -1),
        ("drain_s", "5"),
        ("answer_grace_s", 86_401),
        ("default_slo_ms", 0),
        ("keep_versions", -1),
        ("keep_versions", 1.5),
        ("max_connections", 0),
        ("trace_ratio", 1.1),
        ("shed_status", 500),
        ("log_format", "xml"),
        ("policy", 3),
        ("cors_origins", ["x"]),
        ("scaling_target_utilisation", 0),
        ("ui_interval_ms", 99),
        ("drain", 5),
    ],
)
def test_the_schema_refuses_what_the_gateway_would(
    name: str, value: object, tmp_path: Path
) -> None:
    told = problems({"gateway": {"settings": {name: value}}})
    assert len(told) == 1
    assert name in str(told)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({name: value}))
    with pytest.raises(ConfigError, match=name):
        load_config(environ={}, file=file)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("policy", "fastest", policies.parse),
        ("otlp_endpoint", "collector:4318", traces_url),
        ("cors_origins", "app.example.com", origins_of),
    ],
)
def test_texts_that_the_gateway_would_not_start_with_are_refused(
    name: str, value: str, read: Callable[[str], object]
) -> None:
    with pytest.raises((ValueError, TracesError)):
        read(value)
    assert list(problems({"gateway": {"settings": {name: value}}})) == [
        f"$.gateway.settings.{name}"
    ]


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        *(("policy", name, policies.parse) for name in policies.POLICIES),
        ("policy", "clockwork:schedule_ahead_ms=5,deadline_floor", policies.parse),
        ("otlp_endpoint", "http://collector.monitoring.svc:4318", traces_url),
        ("cors_origins", "*", origins_of),
        ("cors_origins", "https://a.example.com, http://localhost:3000", origins_of),
    ],
)
def test_texts_that_it_would_start_with_are_taken(
    name: str, value: str, read: Callable[[str], object]
) -> None:
    read(value)
    assert problems({"gateway": {"settings": {name: value}}}) == {}


KEY = "kb34b37557710:a98c0543336826a5b055fa2abbb6742fa4711f7827a550af7026874ce22d88ed"


@pytest.mark.parametrize(
    "tenants",
    [
        {"a shop": {"keys": [KEY]}},
        {"shop": {"keys": ["rmt_secret"]}},
        {"shop": {"keys": [KEY], "rps": 5}},
        {"shop": {"keys": [KEY], "weight": -1}},
        {"shop": {"keys": [KEY], "priority": "urgent"}},
        {"shop": {"keys": [KEY], "requests_burst": 9}},
        {"shop": {"keys": [KEY], "default_slo_ms": 0}},
        {"shop": {"keys": KEY}},
    ],
    ids=str,
)
def test_tenants_that_the_gateway_would_not_take_are_refused(tenants: object) -> None:
    with pytest.raises(TenantsError):
        parse_tenants(yaml.safe_dump({"tenants": tenants}), source="a test")
    assert all(
        path.startswith("$.auth.tenants") for path in problems({"auth": {"tenants": tenants}})
    )
    assert problems({"auth": {"tenants": tenants}})


@pytest.mark.parametrize(
    "groups",
    [
        {"one": {"members": ["a"]}},
        {"twice": {"members": ["a", "a"]}},
        {"none": {}},
        {"more": {"members": ["a", "b"], "choice": "best"}},
        {"what": {"members": ["a", "b"], "selection": "worst"}},
        {"share": {"members": [{"model": "a", "accuracy": 2}, {"model": "b", "accuracy": 1}]}},
        {"model": {"members": [{"accuracy": 1}, {"model": "b", "accuracy": 1}]}},
    ],
    ids=str,
)
def test_groups_that_the_gateway_would_not_take_are_refused(groups: object) -> None:
    with pytest.raises(GroupsError):
        parse_groups(yaml.safe_dump({"groups": groups}), source="a test")
    [where] = {path.split(".")[2] for path in problems({"gateway": {"groups": groups}})}
    assert where == "groups"


def test_every_setting_of_tenants_and_groups_is_taken() -> None:
    tenant = {field.name: field.default for field in msgspec.structs.fields(TenantSpec)}
    tenants = {"shop": {**tenant, "keys": [KEY], "models": ["*"]}}
    parse_tenants(yaml.safe_dump({"tenants": tenants}), source="a test")
    group = {field.name: field.default for field in msgspec.structs.fields(GroupSpec)}
    groups = {"g": {**group, "members": ["a", {"model": "b"}]}}
    parse_groups(yaml.safe_dump({"groups": groups}), source="a test")
    assert problems({"auth": {"tenants": tenants}, "gateway": {"groups": groups}}) == {}


def test_the_config_map_sets_what_is_the_charts_and_nothing_else() -> None:
    text = (CHART / "templates" / "gateway-config.yaml").read_text()
    named = set(re.findall(r'"([a-z_]+)"', text)) & set(FIELDS)
    assert named - {"log_format"} <= SET_BY_THE_CHART
    # a pod's name is in its environment; what workers have is their own affair
    own = {"replica", "tenants", "cache_mb", "emulate", "record", "intra_op_threads"}
    assert SET_BY_THE_CHART - named == own
    gateway = (CHART / "templates" / "gateway-statefulset.yaml").read_text()
    assert re.findall(r"REMONTOIR_\w+", gateway) == ["REMONTOIR_REPLICA"]


def test_every_setting_of_a_worker_is_said_or_left_out_on_purpose() -> None:
    assert {field.name for field in msgspec.structs.fields(WorkerConfig)} == set(WORKER_FLAGS)
    text = (CHART / "templates" / "worker.yaml").read_text()
    for flag in filter(None, WORKER_FLAGS.values()):
        assert f"- {flag}=" in text
    for name, flag in WORKER_FLAGS.items():
        assert flag or f"--{name}=" not in text


@pytest.mark.parametrize(
    ("template", "command"),
    [
        ("gateway-statefulset.yaml", ["serve"]),
        ("worker.yaml", ["worker"]),
        ("keys.yaml", ["keys", "kubernetes"]),
        ("tests/check.yaml", ["check"]),
    ],
)
def test_containers_say_flags_that_their_commands_have(template: str, command: list[str]) -> None:
    text = (CHART / "templates" / template).read_text()
    args = text[re.search(r"(?m)^ +args:", text).start() :]  # type: ignore[union-attr]
    said = set(re.findall(r"(--[a-z-]+)[=,]", args[: args.index("securityContext")]))
    found: Any = typer.main.get_command(app)
    for word in command:
        assert re.search(rf"(\[|- ){word}\b", args)
        found = found.commands[word]
    known = {option for parameter in found.params for option in parameter.opts}
    assert said
    assert said <= known


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"gatway": {}}, "$"),
        ({"gateway": {"replicas": "two"}}, "$.gateway.replicas"),
        ({"gateway": {"replicas": -1}}, "$.gateway.replicas"),
        ({"worker": {"replicas": -1}}, "$.worker.replicas"),
        ({"gateway": {"service": {"port": 70_000}}}, "$.gateway.service.port"),
        ({"worker": {"gpusPerPod": 0.5}}, "$.worker.gpusPerPod"),
        ({"gateway": {"settings": {"page_mb": 12}}}, "$.gateway.settings.page_mb"),
        ({"gateway": {"settings": {"port": 9000}}}, "$.gateway.settings"),
        ({"image": {"digest": "sha256:1"}}, "$.image.digest"),
        ({"image": {"repository": "registry:5000/remontoir:1.0"}}, "$.image.repository"),
        ({"image": {"tag": "a b"}}, "$.image.tag"),
        ({"worker": {"pools": [{"name": "a", "gpus": 1}]}}, "$.worker.pools[0]"),
        ({"worker": {"pools": [{"gpusPerPod": 1}]}}, "$.worker.pools[0]"),
        ({"worker": {"pools": [{"name": "a", "pools": []}]}}, "$.worker.pools[0]"),
        ({"httpRoute": {"owners": {"g-0": ["a b"]}}}, "$.httpRoute.owners['g-0'][0]"),
        ({"serviceMonitor": {"interval": "15 s"}}, "$.serviceMonitor.interval"),
    ],
)
def test_the_schema_names_what_is_wrong(values: object, where: str) -> None:
    assert list(problems(values)) == [where]


def test_everything_optional_is_off() -> None:
    switches = {
        value.path: value.default for value in documented() if value.path.endswith("enabled")
    }
    assert {path for path, is_on in switches.items() if is_on} == {"auth.enabled", "curve.enabled"}
    assert VALUES["priorityClass"]["create"] is False


def test_no_removed_api_is_in_any_template() -> None:
    for template in TEMPLATES:
        assert not re.search(r"apiVersion: \S*(beta|alpha)\d", _without_keda(template.read_text()))


def _without_keda(text: str) -> str:
    return text.replace("keda.sh/v1alpha1", "")


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
