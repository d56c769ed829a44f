"""The chart as text, for `make helm-e2e`: lint, render, and look at what was rendered.

Owns what is checked without a cluster: by helm itself, by the schemas of three versions of
Kubernetes, by the models of KEDA and of the Prometheus operator with unknown fields refused, by
checkov, by the commands and settings of this checkout, and what broken values are refused with.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gateway.config import load_config
from gateway.tenants.tenants_file import parse_tenants
from gpuworker.__main__ import _parser as worker_parser
from gpuworker.config import MEBIBYTE, shards_of
from tests.e2e import kubernetes_tools as tools
from tests.gateway.running import ROOT

CHART = ROOT / "helm" / "remontoir"
SETS = sorted((ROOT / "tests" / "helm" / "values").glob("*.yaml"))
VERSIONS = ("1.30", "1.33", "1.36")
NAMESPACE = "serving"
LEAST = ("image.repository=example/remontoir", "models.type=hostPath", "models.hostPath.path=/m")
# Kinds that Kubernetes' schemas do not have: by whose models they are checked, None if by none.
OTHER_KINDS = {
    "ScaledObject": "keda",
    "ServiceMonitor": "prometheus_operator",
    "PrometheusRule": "prometheus_operator",
    "HTTPRoute": None,
}
# What checkov finds and we mean so. It tells no severities without an account of its makers, so
# everything that is not here is a finding.
ACCEPTED = {
    "CKV_K8S_8": "pods of hooks end by themselves: nobody would restart them",
    "CKV_K8S_9": "pods of hooks serve nobody",
    "CKV_K8S_11": "a CPU limit stops a process for the rest of 100 ms: SLOs are shorter",
    "CKV_K8S_15": "image.pullPolicy is a value",
    "CKV_K8S_21": "the namespace is helm's -n, not a template's",
    "CKV_K8S_25": "one container may chown the cache's directory on the node, and nothing else",
    "CKV_K8S_35": "rclone takes its credentials from the environment, and so does `check`",
    "CKV_K8S_38": "the job that makes Secrets is the one that needs a token",
    "CKV_K8S_43": "image.digest is a value",
    "CKV2_K8S_6": "networkPolicy.enabled is a switch",
}


class Broken(NamedTuple):
    """Values that must be refused, and words of the message, the key among them."""

    what: str
    values: tuple[str, ...]
    words: tuple[str, ...]


BROKEN = (
    Broken("unknown key", ("gatewya.port=1",), ("additional properties 'gatewya' not allowed",)),
    Broken(
        "unknown setting",
        ("gateway.settings.slo=5",),
        ("/gateway/settings", "additional properties 'slo' not allowed"),
    ),
    Broken("wrong type", ("gateway.replicas=two",), ("/gateway/replicas", "want integer")),
    Broken(
        "port out of range", ("gateway.service.port=99999",), ("/gateway/service/port", "65,535")
    ),
    Broken(
        "one port for two",
        ("gateway.workerPort=8000",),
        ("gateway.port and gateway.workerPort are both 8000",),
    ),
    Broken("negative replicas", ("worker.replicas=-1",), ("/worker/replicas", "got -1, want 0")),
    Broken("fractional GPU", ("worker.gpusPerPod=0.5",), ("/worker/gpusPerPod", "want integer")),
    Broken(
        "page size not a power of two",
        ("gateway.settings.page_mb=12",),
        ("/gateway/settings/page_mb", "one of 1, 2, 4, 8, 16"),
    ),
    Broken(
        "cache larger than memory",
        ("worker.mode=cpu", "worker.cacheMb=9000"),
        ("worker.cacheMb is 9000 MiB, and worker.resources.limits.memory 8Gi is 8192 MiB",),
    ),
    Broken(
        "cache larger than the card",
        ("worker.cacheMb=90000", "worker.gpu.memoryMb=81920"),
        ("worker.cacheMb is 90000 MiB, and worker.gpu.memoryMb says that a card has 81920",),
    ),
    Broken("missing image", ("image.repository=",), ("image.repository is required",)),
    Broken("missing models", ("models.type=",), ("models.type is required",)),
    Broken(
        "SLO of zero",
        ("gateway.settings.default_slo_ms=0",),
        ("/gateway/settings/default_slo_ms", "exclusiveMinimum"),
    ),
    Broken(
        "both HPA and KEDA",
        ("autoscaling.hpa.enabled=true", "autoscaling.keda.enabled=true"),
        ("autoscaling.keda.enabled and autoscaling.hpa.enabled are both true",),
    ),
    Broken(
        "autoscaled DaemonSet",
        ("autoscaling.hpa.enabled=true",),
        ("autoscaling needs worker.kind StatefulSet",),
    ),
    Broken(
        "groups on several gateways",
        ("gateway.replicas=2", "gateway.groups.a.members={b,c}"),
        ("gateway.groups and gateway.replicas 2",),
    ),
    Broken(
        "half of a key pair",
        ("curve.existingGatewaySecret=a",),
        ("curve.existingGatewaySecret and curve.existingWorkerSecret belong together",),
    ),
    Broken(
        "grace shorter than the longest SLO",
        ("gateway.terminationGracePeriodSeconds=30",),
        ("gateway.terminationGracePeriodSeconds is 30, and stopping may take 41",),
    ),
    Broken(
        "SLO longer than the grace",
        ("gateway.settings.default_slo_ms=60000",),
        ("gateway.settings.default_slo_ms is 60000, longer than gateway.settings.answer_grace_s",),
    ),
)


class Helm:
    """The program, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.bin = tools.clients()
        self._env = {
            **{"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(home)},
            **{f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG")},
        }

    def __call__(self, *arguments: object, kubeconfig: Path | None = None) -> str:
        """What it said. Raises CalledProcessError."""
        done = self.tried(*arguments, kubeconfig=kubeconfig)
        done.check_returncode()
        return done.stdout

    def tried(
        self, *arguments: object, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = {} if kubeconfig is None else {"KUBECONFIG": str(kubeconfig)}
        return subprocess.run(
            [str(self.bin / "helm"), *map(str, arguments)],
            env={**self._env, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )


def check_text(helm: Helm, home: Path) -> None:
    """All of it. Raises AssertionError and CalledProcessError."""
    for values in SETS:
        helm("lint", "--strict", "--quiet", CHART, "-f", values)
    print(f"helm-e2e: helm lint --strict: {len(SETS)} sets of values")
    newest: list[Path] = []
    for version in VERSIONS:
        newest = list(rendered(helm, home, version))
        validate(version, newest)
    for file in newest:
        check_commands(file)
    check_other_kinds(newest)
    run_checkov(newest)
    for broken in BROKEN:
        refuse(helm, broken)
    print(f"helm-e2e: {len(BROKEN)} kinds of broken values are refused by name:")
    print("          " + ", ".join(broken.what for broken in BROKEN))
    told = helm("package", CHART, "-d", home)
    assert "Successfully packaged" in told, told


def rendered(helm: Helm, home: Path, version: str) -> Iterator[Path]:
    for values in SETS:
        command = ["template", "r", CHART, "-n", NAMESPACE, "-f", values, "--kube-version", version]
        done = helm.tried(*command)
        if version == "1.30" and "type: image" in values.read_text():
            assert "models.type image needs Kubernetes 1.31" in done.stdout, done.stdout
            continue
        assert done.returncode == 0, f"{values.name}: {done.stdout}"
        file = home / f"{values.stem}-{version}.yaml"
        file.write_text(done.stdout)
        yield file


def validate(version: str, files: list[Path]) -> None:
    """By Kubernetes' own schemas, unknown fields refused."""
    program = tools.checker("schemas") / "kubernetes-validate"
    done = subprocess.run(
        [program, "--strict", "-k", version, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    warned = [line for line in done.stdout.splitlines() if line.startswith("WARN")]
    others = [line for line in warned if not any(f"kind {kind} " in line for kind in OTHER_KINDS)]
    assert not others, "\n".join(others)
    print(f"helm-e2e: kubernetes-validate --strict -k {version}: {len(files)} renderings")


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def check_other_kinds(files: list[Path]) -> None:
    """By the operators' own models. What a typo would do is tried, too."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        found |= {d["kind"]: d for d in documents(file) if d["kind"] in OTHER_KINDS}
    assert set(found) == set(OTHER_KINDS), found.keys()
    python = tools.checker("schemas") / "python"
    for kind, models in OTHER_KINDS.items():
        if models is None:
            print(f"helm-e2e: {kind}: rendered, and checked against nothing: no models of it here")
            continue
        typo = {**found[kind], "spec": {**found[kind]["spec"], "intervall": 1}}
        told = [problems(python, models, kind, document) for document in (found[kind], typo)]
        assert told[0] == [], told[0]
        assert any("intervall" in line for line in told[1]), told[1]
        print(f"helm-e2e: {kind}: as {models} has it, unknown fields refused")


STRICT = """
import importlib, json, sys
from jsonschema import Draft202012Validator
name = {"keda": "cloudcoil.models.keda.v1alpha1"}.get(sys.argv[1])
module = importlib.import_module(name or "cloudcoil.models.prometheus_operator.v1")
def strict(schema):
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            strict(part)
    elif isinstance(schema, list):
        for part in schema:
            strict(part)
    return schema
schema = strict(getattr(module, sys.argv[2]).model_json_schema())
errors = Draft202012Validator(schema).iter_errors(json.load(sys.stdin))
print(json.dumps([f"{e.json_path}: {e.message}" for e in errors]))
"""


def problems(python: Path, models: str, kind: str, document: dict[str, Any]) -> list[str]:
    done = subprocess.run(
        [python, "-c", STRICT, models, kind],
        input=json.dumps(document),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    told: list[str] = json.loads(done.stdout)
    return told


def run_checkov(files: list[Path]) -> None:
    program = tools.checker("checkov") / "checkov"
    command = [program, "--framework", "kubernetes", "--quiet", "--skip-download", "-o", "json"]
    command += [word for file in files for word in ("-f", file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = json.loads(done.stdout)
    reports = report if isinstance(report, list) else [report]
    failed = [check for part in reports for check in part["results"]["failed_checks"]]
    passed = sum(part["summary"]["passed"] for part in reports)
    assert passed, done.stderr  # without a runner it says nothing, and ends well
    findings = [c for c in failed if c["check_id"] not in ACCEPTED]
    assert not findings, "\n".join(
        f"{c['check_id']} {c['check_name']}: {c['resource']}" for c in findings
    )
    print(f"helm-e2e: checkov: {passed} checks passed; {len(failed)} are meant so:")
    for check_id in sorted({check["check_id"] for check in failed}):
        print(f"          {check_id}: {ACCEPTED[check_id]}")


def check_commands(file: Path) -> None:
    """What containers are told is what this checkout's commands and settings take."""
    for document in documents(file):
        if document["kind"] == "ConfigMap" and "config.yaml" in document["data"]:
            check_config(document["data"]["config.yaml"], file)
        if document["kind"] == "Secret":
            parse_tenants(document["stringData"]["tenants.yaml"], source=file.name)
        if document["metadata"]["name"].startswith(("r-remontoir-worker", "inference-worker")):
            if document["kind"] not in ("DaemonSet", "StatefulSet"):
                continue
            [container] = document["spec"]["template"]["spec"]["containers"]
            told = worker_parser().parse_args(["run", *container["args"][1:]])
            shards_of(told.replica, told.replicas, told.replica_copies)
            assert told.health_port == container["ports"][0]["containerPort"]


def check_config(text: str, file: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(text)
        config.flush()
        settings = load_config(environ={}, file=Path(config.name))
    asked = yaml.safe_load((ROOT / "tests/helm/values" / _set_of(file)).read_text())
    for name, value in asked.get("gateway", {}).get("settings", {}).items():
        assert getattr(settings, name) == value, f"{file.name}: {name}"
    assert settings.max_buffered_mb * MEBIBYTE > 0


def _set_of(file: Path) -> str:
    return re.sub(r"-[0-9.]+\.yaml$", ".yaml", file.name)


def refuse(helm: Helm, broken: Broken) -> None:
    command = ["template", "r", CHART, *(f"--set={text}" for text in (*LEAST, *broken.values))]
    done = helm.tried(*command)
    assert done.returncode != 0, f"{broken.what}: {broken.values} were taken"
    for words in broken.words:
        assert words in done.stdout, f"{broken.what}: {words!r} is not in:\n{done.stdout}"
