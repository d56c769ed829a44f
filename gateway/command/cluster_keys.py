"""`remontoir keys kubernetes`: the keys of an installation, as Secrets of a cluster, made once.

Owns which Secret holds what, and the few calls to the Kubernetes API that it takes. It must never
replace a key that a gateway may have: of each pair of Secrets the one that the gateway reads is
made last, so that it is there only if the other is, and then nothing is touched.
"""

import base64
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import httpx

from gateway.tenants.api_keys import new_key
from gateway.workers import curve_keys

# Where a pod finds who it is, if its service account's token is mounted.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 30.0
WORKER = "worker"
# Tenants that an installation begins with, what each may do, and which key of the Secret is its.
TENANTS = (
    ("clients", "client.key", ""),
    ("operators", "operator.key", "    admin: true\n"),
    ("monitoring", "monitoring.key", "    models: []\n    metrics: true\n"),
)

# Contents of both Secrets of a pair, by key.
Contents = Callable[[], tuple[dict[str, bytes], dict[str, bytes]]]


class ClusterError(Exception):
    """One line: which Secret, and what the API server says."""


class Pair(NamedTuple):
    """Two Secrets that are made together. `mark` is made last, and means that both are there."""

    first: str
    mark: str


class Cluster:
    """Secrets of one namespace, until the `with` block ends. Every call raises ClusterError."""

    def __init__(
        self,
        *,
        url: str,
        namespace: str,
        token: str,
        ca: Path | None,
        labels: Mapping[str, str],
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.namespace = namespace
        self._labels = dict(labels)
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            verify=True if ca is None else ssl.create_default_context(cafile=ca),
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def has(self, name: str) -> bool:
        response = self._call("GET", f"{self._path}/{name}", name, allowed=(200, 404))
        return response.status_code == 200

    def create(self, name: str, content: Mapping[str, bytes]) -> None:
        self._call("POST", self._path, name, body=self._secret(name, content), allowed=(201,))

    def replace(self, name: str, content: Mapping[str, bytes]) -> None:
        body = self._secret(name, content)
        self._call("PUT", f"{self._path}/{name}", name, body=body, allowed=(200,))

    def _secret(self, name: str, content: Mapping[str, bytes]) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": self._labels},
            "type": "Opaque",
            "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
        }

    def _call(
        self,
        method: str,
        path: str,
        name: str,
        *,
        allowed: Sequence[int],
        body: dict[str, object] | None = None,
    ) -> httpx.Response:
        where = f"secret {name} in namespace {self.namespace}"
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ClusterError(f"{where}: {error or type(error).__name__}") from error
        if response.status_code not in allowed:
            raise ClusterError(f"{where}: {response.status_code} {_message(response)}")
        return response


def in_cluster(labels: Mapping[str, str], service_account: Path) -> Cluster:
    """The cluster whose pod this is. Raises ClusterError where it is none."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{word}") for word in ("HOST", "PORT"))
    if not (host and port):
        raise ClusterError("this is no pod of a cluster: KUBERNETES_SERVICE_HOST is not set")
    try:
        token = (service_account / "token").read_text("utf-8").strip()
        namespace = (service_account / "namespace").read_text("utf-8").strip()
    except OSError as error:
        raise ClusterError(
            f"{error.filename}: {error.strerror}: the pod's service account must be mounted"
        ) from error
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    ca = service_account / "ca.crt"
    return Cluster(url=url, namespace=namespace, token=token, ca=ca, labels=labels)


def make_curve(cluster: Cluster, *, worker: str, gateway: str) -> bool:
    """CURVE keys for gateways and workers. False if they were there."""
    with tempfile.TemporaryDirectory(prefix="remontoir-keys-") as scratch:
        directory = Path(scratch)

        def contents() -> tuple[dict[str, bytes], dict[str, bytes]]:
            [of_worker] = curve_keys.make(directory, [WORKER])
            of_gateway = directory / curve_keys.GATEWAY
            files = (*of_gateway.glob("*.key_secret"), *(of_gateway / "workers").iterdir())
            return _files(tuple(of_worker.iterdir())), _files(files)

        return _make(cluster, Pair(worker, gateway), contents)


def make_api_keys(cluster: Cluster, *, keys: str, tenants: str) -> bool:
    """A tenants file with three tenants, and their keys. False if they were there."""

    def contents() -> tuple[dict[str, bytes], dict[str, bytes]]:
        texts: dict[str, bytes] = {}
        lines = "tenants:\n"
        for tenant, file, rights in TENANTS:
            key = new_key()
            texts[file] = key.text.encode()
            lines += f"  {tenant}:\n    keys:\n      - {key.line}\n{rights}"
        return texts, {"tenants.yaml": lines.encode()}

    return _make(cluster, Pair(keys, tenants), contents)


def _make(cluster: Cluster, pair: Pair, contents: Contents) -> bool:
    has_first, has_mark = cluster.has(pair.first), cluster.has(pair.mark)
    if has_first and has_mark:
        return False
    if has_mark:
        raise ClusterError(
            f"secret {pair.mark} is there and secret {pair.first} is not: the keys in it are lost."
            f" Restore it, or delete {pair.mark} to have new ones made"
        )
    first, mark = contents()
    # What an earlier run made without coming to its end nobody has used.
    (cluster.replace if has_first else cluster.create)(pair.first, first)
    cluster.create(pair.mark, mark)
    return True


def _files(files: Sequence[Path]) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files}


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
