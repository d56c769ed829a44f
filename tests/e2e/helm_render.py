"""The chart as text, for `make helm-e2e`: lint, render, and look at what was rendered.

Owns what is checked without a cluster: by helm itself, by the schemas of three versions of
Kubernetes, by the models of KEDA and of the Prometheus operator with unknown fields refused, by
the Gateway API's types, by checkov, by the commands and settings of this checkout, and what broken
values are refused with.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gateway.config import load_config
from gateway.tenants.tenants_file import parse_tenants
from gpuworker.__main__ import _parser as worker_parser
from gpuworker.config import MEBIBYTE, shards_of
from tests.e2e import gateway_api
from tests.e2e import kubernetes_tools as tools
from tests.e2e.helm_broken import BROKEN, LEAST, ROUTE, Broken
from tests.e2e.tools import LeftOut
from tests.gateway.running import ROOT

CHART = ROOT / "helm" / "remontoir"
SETS = sorted((ROOT / "tests" / "helm" / "values").glob("*.yaml"))
VERSIONS = ("1.30", "1.33", "1.36")
NAMESPACE = "serving"
# Kinds that Kubernetes' schemas do not have: by whose models they are checked.
OTHER_KINDS = {
    "ScaledObject": "keda",
    "ServiceMonitor": "prometheus_operator",
    "PrometheusRule": "prometheus_operator",
    "HTTPRoute": "gateway_api",
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
    check_pools(next(file for file in newest if file.stem.startswith("shards")))
    check_triggers(next(file for file in newest if file.stem.startswith("everything")))
    check_owners(next(file for file in newest if file.stem.startswith("everything")))
    check_other_kinds(newest)
    check_routes(helm, home, newest)
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
        if models == "gateway_api":
            continue  # check_routes
        typo = {**found[kind], "spec": {**found[kind]["spec"], "intervall": 1}}
        told = [problems(python, models, kind, document) for document in (found[kind], typo)]
        assert told[0] == [], told[0]
        assert any("intervall" in line for line in told[1]), told[1]
        print(f"helm-e2e: {kind}: as {models} has it, unknown fields refused")


def check_routes(helm: Helm, home: Path, files: list[Path]) -> None:
    """Those of the value sets, those of so many models that one does not hold them, and a typo."""
    many = home / "many-routes.yaml"
    models = [f"model-{number}" for number in range(130)]
    owned = f"httpRoute.owners.r-remontoir-gateway-0={{{','.join(models)}}}"
    told = (*LEAST, *ROUTE, "gateway.replicas=2", owned)
    many.write_text(helm("template", "r", CHART, *(f"--set={text}" for text in told)))
    routes = [d for file in (*files, many) for d in documents(file) if d["kind"] == "HTTPRoute"]
    of_many = [r["spec"]["rules"] for r in routes if "gateway-0-models" in r["metadata"]["name"]]
    matches = [len(rule["matches"]) for rules in of_many for rule in rules]
    # what the API's first version takes: 16 rules, of 8 matches each
    assert max(map(len, of_many)) <= 16, of_many
    assert max(matches) <= 8, matches
    assert sum(matches) == 2 * (len(models) + 2), matches
    typo = {**routes[0], "spec": {**routes[0]["spec"], "hostnames": ["a b"]}}
    try:
        found = gateway_api.problems([*routes, typo])
    except LeftOut as why:
        print(f"helm-e2e: HTTPRoute: {len(routes)} rendered, and held against nothing: {why}")
        return
    assert not any(found[:-1]), found
    assert found[-1], "a hostname with a blank was taken"
    print(f"helm-e2e: HTTPRoute: {len(routes)} as the Gateway API's own types have them")


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
            # Models of a group are together, which is for workers to know where they are divided.
            variables = {variable["name"] for variable in container["env"]}
            has_groups = file.name.startswith("shards-")
            assert ("REMONTOIR_GROUPS_FILE" in variables) is has_groups


def check_pools(file: Path) -> None:
    """Of three pools for each of three gateways: what each says itself, and what `worker` says."""
    sets = {d["metadata"]["name"]: d for d in documents(file) if "worker" in d["metadata"]["name"]}
    found = {}
    for name, document in sets.items():
        if document["kind"] == "PodDisruptionBudget":
            found[name] = document["spec"]["selector"]["matchLabels"]["remontoir/pool"]
            continue
        pod = document["spec"]["template"]["spec"]
        [container] = pod["containers"]
        [cache] = [v for v in pod["volumes"] if v["name"] == "cache"]
        found[name] = (
            *(document["kind"], container["image"], pod.get("nodeSelector", {}).get("pool")),
            container["resources"]["limits"].get("nvidia.com/gpu"),
            [c["name"] for c in pod["initContainers"]],
            *(cache.get("hostPath", {}).get("path"), document["spec"].get("replicas")),
        )
    wanted: dict[str, object] = {"r-remontoir-worker-cpu": "cpu"}
    gpu_image, pull = "example/remontoir-gpu:0.1.0", ["pull-models"]
    for gateway in range(3):
        of = f"r-remontoir-worker-{{}}-{gateway}".format
        nvme = "/mnt/nvme/remontoir"
        wanted[of("h100")] = ("DaemonSet", gpu_image, "h100", "8", pull, nvme, None)
        own = ["own-cache", *pull]
        usual = "/var/lib/remontoir/cache"
        wanted[of("a10")] = ("DaemonSet", gpu_image, "a10", "4", own, usual, None)
        image = gpu_image.replace("-gpu", "")
        wanted[of("cpu")] = ("StatefulSet", image, None, None, pull, None, 0)
    assert found == wanted, f"{found}\n{wanted}"
    print(f"helm-e2e: worker.pools: {len(wanted) - 1} sets of workers, each as its pool says")


def check_triggers(file: Path) -> None:
    """Each asks that Prometheus as it wants to be asked."""
    for document in documents(file):
        if document["kind"] == "ScaledObject":
            for trigger in document["spec"]["triggers"]:
                assert trigger.get("authenticationRef") == {"name": "prometheus"}, trigger


def check_owners(file: Path) -> None:
    """A route by header and one by path for each model, to a Service of its owner's pod alone."""
    found: dict[str, set[str]] = {}
    for document in documents(file):
        name = document["metadata"]["name"]
        if document["kind"] == "Service" and name[:-1] == "inference-gateway-":
            pod = document["spec"]["selector"]["statefulset.kubernetes.io/pod-name"]
            assert pod == name, document
        if document["kind"] != "HTTPRoute" or name == "inference":
            continue
        for rule in document["spec"]["rules"]:
            [to] = rule["backendRefs"]
            for match in rule["matches"]:
                said = [header["value"] for header in match.get("headers", ())]
                found.setdefault(to["name"], set()).update(said or [match["path"]["value"]])
    assert found == {
        "inference-gateway-0": {"mlp", "other", "/v2/models/mlp", "/v2/models/other"},
        "inference-gateway-1": {"resnet50", "/v2/models/resnet50"},
    }, found
    print("helm-e2e: httpRoute.owners: each model by header and by path, straight to its owner")


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
