"""Keys as Secrets of a cluster, against a stand-in for its API that keeps Secrets and says no."""

import base64
import json
from pathlib import Path

import httpx
import pytest

from gateway.command import cluster_keys
from gateway.command.cluster_keys import Cluster, ClusterError
from gateway.tenants.api_keys import digest_of
from gateway.tenants.tenants_file import parse_tenants
from gateway.workers import curve_keys as gateway_keys
from gpuworker import curve_keys as worker_keys

Secrets = dict[str, dict[str, bytes]]


class Api:
    """Creates what is new, replaces what is there; `forbids` are names nobody may touch."""

    def __init__(self) -> None:
        self.secrets: Secrets = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.forbids: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer token"
        _, _, last = request.url.path.partition("/api/v1/namespaces/team/secrets")
        body = json.loads(request.content) if request.content else {}
        name = last.strip("/") or body["metadata"]["name"]
        if name in self.forbids:
            return httpx.Response(403, json={"message": f'secrets "{name}" is forbidden'})
        is_there = name in self.secrets
        if request.method == "GET":
            return httpx.Response(200 if is_there else 404, json={})
        if is_there != (request.method == "PUT"):
            return httpx.Response(409, json={"message": "conflict"})
        self.secrets[name] = {k: base64.b64decode(v) for k, v in body["data"].items()}
        self.labels[name] = body["metadata"]["labels"]
        return httpx.Response(200 if is_there else 201, json={})


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def cluster(api: Api) -> Cluster:
    return Cluster(
        url="https://cluster",
        namespace="team",
        token="token",
        ca=None,
        labels={"app.kubernetes.io/instance": "r"},
        transport=httpx.MockTransport(api),
    )


def mounted(directory: Path, secret: dict[str, bytes], *, below: str = "", of: str = "") -> Path:
    """As the chart mounts it: public keys of workers in a folder of their own."""
    for name, content in secret.items():
        path = directory / (below if of and name == of else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
    return directory


def test_both_sides_of_a_curve_pair_know_each_other(
    api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    assert cluster_keys.make_curve(cluster, worker="w", gateway="g")
    assert set(api.secrets) == {"w", "g"}
    of_gateway = mounted(tmp_path / "g", api.secrets["g"], below="workers", of="worker.key")
    ours = gateway_keys.read(of_gateway)
    theirs = worker_keys.read(mounted(tmp_path / "w", api.secrets["w"]))
    assert theirs.gateway_public == ours.public
    assert ours.workers == {theirs.public: "worker"}
    assert api.labels["g"] == {"app.kubernetes.io/instance": "r"}


def test_a_worker_never_has_the_gateways_secret(api: Api, cluster: Cluster) -> None:
    cluster_keys.make_curve(cluster, worker="w", gateway="g")
    assert set(api.secrets["w"]) == {"worker.key_secret", "gateway.key"}
    assert set(api.secrets["g"]) == {"gateway.key_secret", "worker.key"}


def test_api_keys_open_what_the_tenants_file_says(api: Api, cluster: Cluster) -> None:
    assert cluster_keys.make_api_keys(cluster, keys="k", tenants="t")
    tenants = parse_tenants(api.secrets["t"]["tenants.yaml"].decode(), source="secret t")
    rights = {name: (spec.models, spec.admin, spec.metrics) for name, spec in tenants.items()}
    assert rights == {
        "clients": (("*",), False, False),
        "operators": (("*",), True, False),
        "monitoring": ((), False, True),
    }
    files = {"clients": "client.key", "operators": "operator.key", "monitoring": "monitoring.key"}
    for tenant, file in files.items():
        [stored] = tenants[tenant].stored_keys()
        assert stored.digest == digest_of(api.secrets["k"][file])


def test_keys_that_are_there_are_kept(api: Api, cluster: Cluster) -> None:
    cluster_keys.make_curve(cluster, worker="w", gateway="g")
    cluster_keys.make_api_keys(cluster, keys="k", tenants="t")
    before = dict(api.secrets)
    assert not cluster_keys.make_curve(cluster, worker="w", gateway="g")
    assert not cluster_keys.make_api_keys(cluster, keys="k", tenants="t")
    assert api.secrets == before


def test_a_run_that_was_cut_off_is_made_good_by_the_next(
    api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    api.forbids = {"g"}
    with pytest.raises(ClusterError, match=r'^secret g in namespace team: 403 secrets "g" is for'):
        cluster_keys.make_curve(cluster, worker="w", gateway="g")
    api.forbids = set()
    api.secrets["w"] = {"worker.key_secret": b"of the run that was cut off"}
    assert cluster_keys.make_curve(cluster, worker="w", gateway="g")
    theirs = worker_keys.read(mounted(tmp_path, api.secrets["w"]))
    assert theirs.public in api.secrets["g"]["worker.key"]


def test_half_of_a_pair_that_is_in_use_is_said_and_not_replaced(api: Api, cluster: Cluster) -> None:
    cluster_keys.make_api_keys(cluster, keys="k", tenants="t")
    del api.secrets["k"]
    before = dict(api.secrets)
    with pytest.raises(ClusterError, match="secret t is there and secret k is not: the keys in it"):
        cluster_keys.make_api_keys(cluster, keys="k", tenants="t")
    assert api.secrets == before


def test_outside_of_a_cluster_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="this is no pod of a cluster"):
        cluster_keys.in_cluster({}, tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ClusterError, match=r"/token: No such file .* must be mounted"):
        cluster_keys.in_cluster({}, tmp_path)
