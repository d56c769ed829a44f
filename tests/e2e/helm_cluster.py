"""A Kubernetes API server with its scheduler and controllers, for `make helm-e2e`; no kubelet.

Owns the four processes and the calls to the server. Nodes are made up; what would be a kubelet's
doing is in helm_kubelet.py.
"""

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e import kubernetes_tools as tools
from tests.system.test_joining import free_port

Json = dict[str, Any]
READY_S = 60.0
TOKEN = "admin-of-helm-e2e"
# The clients of operators that are not here: open schemas, so that their objects can be made.
CUSTOM_KINDS = {
    "ScaledObject": ("keda.sh", "v1alpha1", "scaledobjects"),
    "ServiceMonitor": ("monitoring.coreos.com", "v1", "servicemonitors"),
    "PrometheusRule": ("monitoring.coreos.com", "v1", "prometheusrules"),
    "HTTPRoute": ("gateway.networking.k8s.io", "v1", "httproutes"),
}


class ApiServer:
    """Calls to it; each raises AssertionError with what it said."""

    def __init__(self, url: str, ca: Path, token: str = TOKEN) -> None:
        self.url = url
        self.ca = ca
        self._http = httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=ca),
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=30,
        )

    def get(self, path: str) -> Json:
        return self._told(self._http.get(path), 200)

    def list(self, path: str, selector: str = "") -> list[Json]:
        params = {"labelSelector": selector} if selector else {}
        items: list[Json] = self._told(self._http.get(path, params=params), 200)["items"]
        return items

    def create(self, path: str, body: Json) -> Json:
        return self._told(self._http.post(path, json=body), 201)

    def patch(self, path: str, body: Json) -> None:
        headers = {"content-type": "application/merge-patch+json"}
        response = self._http.patch(path, content=json.dumps(body), headers=headers)
        if response.status_code != 404:  # it is gone meanwhile
            self._told(response, 200)

    def delete_now(self, path: str) -> None:
        self._http.request("DELETE", path, json={"gracePeriodSeconds": 0})

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        data = self.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _told(self, response: httpx.Response, status: int) -> Json:
        assert response.status_code == status, f"{response.request.url}: {response.text[:2000]}"
        body: Json = response.json()
        return body


@contextmanager
def cluster(home: Path) -> Iterator[tuple[ApiServer, Path]]:
    """It runs until the block ends; with the path of a kubeconfig."""
    programs = tools.servers()
    store, peers, port = free_port(), free_port(), free_port()
    store_url, url = f"http://127.0.0.1:{store}", f"https://127.0.0.1:{port}"
    certs = home / "certs"
    (home / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n")
    key = home / "service-accounts.key"
    make_key = ["openssl", "genrsa", "-out", key, "2048"]
    subprocess.run(make_key, check=True, capture_output=True, timeout=60)
    ca = certs / "apiserver.crt"
    kubeconfig = home / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(url, ca)))
    with ExitStack() as stack:

        def start(name: str, *flags: object) -> None:
            stack.enter_context(_process(programs / name, flags, home / f"{name}.log"))

        start(
            "etcd",
            *("--data-dir", home / "etcd", "--unsafe-no-fsync=true"),
            *("--listen-client-urls", store_url, "--advertise-client-urls", store_url),
            *("--listen-peer-urls", f"http://127.0.0.1:{peers}"),
        )
        start(
            "kube-apiserver",
            *("--etcd-servers", store_url, "--bind-address", "127.0.0.1"),
            *("--secure-port", port, "--advertise-address", "10.255.255.1"),
            *("--cert-dir", certs, "--token-auth-file", home / "tokens.csv"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-signing-key-file", key, "--service-account-key-file", key),
            *("--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"),
            *("--disable-admission-plugins", "ServiceAccount"),
            *("--endpoint-reconciler-type", "none"),
        )
        until(ca.exists, "the API server has made its certificate")
        server = ApiServer(url, ca)
        until(server.is_ready, "the API server is ready")
        common = ("--kubeconfig", kubeconfig, "--leader-elect=false", "--port=0")
        start(
            "kube-controller-manager",
            *(*common, "--secure-port", free_port(), "--bind-address", "127.0.0.1"),
            *("--service-account-private-key-file", key),
            "--controllers=*,-ttl,-nodelifecycle,-bootstrapsigner,-tokencleaner",
        )
        start(
            "kube-scheduler", *common, "--secure-port", free_port(), "--bind-address", "127.0.0.1"
        )
        yield server, kubeconfig


def add_node(server: ApiServer, name: str, *, gpus: int = 0) -> None:
    """As NVIDIA's device plugin and feature discovery leave a node: a count, a label; and a taint
    that keeps other work away.
    """
    labels = {"kubernetes.io/hostname": name}
    taints = []
    if gpus:
        labels["nvidia.com/gpu.present"] = "true"
        taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    server.create(
        "/api/v1/nodes",
        {"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}},
    )
    amounts = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    amounts |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    server.patch(
        f"/api/v1/nodes/{name}/status",
        {"status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}},
    )
    # the server itself taints a node until it is ready, and whoever lifts that is not here
    server.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": taints}})


def add_custom_kinds(server: ApiServer) -> None:
    for kind, (group, version, plural) in CUSTOM_KINDS.items():
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        served = {"name": version, "served": True, "storage": True}
        approved = {"api-approved.kubernetes.io": "unapproved, a stand-in"}
        server.create(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            {
                "metadata": {"name": f"{plural}.{group}", "annotations": approved},
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                    "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
                },
            },
        )


def until(is_so: Callable[[], object], what: str, timeout_s: float = READY_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)


@contextmanager
def _process(program: Path, flags: tuple[object, ...], log: Path) -> Iterator[None]:
    with log.open("w") as stream:
        process = subprocess.Popen([str(program), *map(str, flags)], stdout=stream, stderr=stream)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kubeconfig(url: str, ca: Path) -> Mapping[str, object]:
    server = {"server": url, "certificate-authority": str(ca)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}],
        "current-context": "e2e",
    }
