"""In place of kubelets: runs what pods of the chart say, as processes of this machine.

Owns the life of every pod that the scheduler has given a node. The commands of gateways, CPU
workers, the keys job and `helm test` are run for real, by this checkout in place of an image, with
the arguments, ConfigMaps, Secrets and service accounts that the API server has; probes are asked
as the pod says. What needs a GPU is called running, and no more. There is no root file system and
no network of its own here: paths of mounts are put into arguments and configuration, and gateway N
has the address 127.0.0.(N + 1).
"""

import base64
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.helm_cluster import ApiServer, Json
from tests.gateway.running import ROOT, environment
from tests.system.test_joining import free_port

POLL_S = 0.2
SERVICE = re.compile(r"[a-z0-9.-]+\.svc(?=:)")
GATEWAY = re.compile(r"-gateway-(\d+)(\.|$)")


class Pod:
    """One that has a node: its files, and its process where there is one."""

    def __init__(self, manifest: Json, home: Path) -> None:
        self.manifest = manifest
        self.home = home
        self.home.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home / "log"
        self.ports: dict[str, int] = {}
        self.reported = ""

    @property
    def path(self) -> str:
        meta = self.manifest["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    @property
    def component(self) -> str:
        labels: dict[str, str] = self.manifest["metadata"]["labels"]
        return labels.get("app.kubernetes.io/component", "")

    @property
    def container(self) -> Json:
        [container] = self.manifest["spec"]["containers"]
        assert isinstance(container, dict)
        return container


class Kubelet:
    """Of all nodes, until the `with` block ends, which raises what went wrong meanwhile."""

    def __init__(self, server: ApiServer, home: Path) -> None:
        self._server = server
        self._home = home
        self._pods: dict[str, Pod] = {}  # all that run here, by uid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="kubelet")
        self._fault: str | None = None
        self.logs: dict[str, str] = {}  # of pods that ended, by name
        self.exit_codes: dict[str, int] = {}

    def __enter__(self) -> "Kubelet":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=60)
        for pod in self._pods.values():
            if pod.process is not None:
                pod.process.kill()
                pod.process.wait()
        assert self._fault is None, self._fault

    def log_of(self, name: str) -> str:
        running = [p for p in self._pods.values() if p.manifest["metadata"]["name"] == name]
        return running[0].log.read_text() if running else self.logs.get(name, "")

    def _live(self) -> None:
        try:
            while not self._is_over.wait(POLL_S):
                for manifest in self._server.list("/api/v1/pods"):
                    if manifest["spec"].get("nodeName"):
                        self._see_to(manifest)
        except Exception:
            self._fault = traceback.format_exc()

    def _see_to(self, manifest: Json) -> None:
        meta = manifest["metadata"]
        pod = self._pods.get(meta["uid"])
        if "deletionTimestamp" in meta:
            self._stop(pod, manifest)
        elif pod is not None:
            self._report(pod)
        elif manifest["status"].get("phase") == "Pending":
            pod = Pod(manifest, self._home / f"{meta['name']}-{meta['uid'][:8]}")
            self._pods[meta["uid"]] = pod
            if runs_here(pod):
                self._start(pod)
            self._report(pod)

    def _stop(self, pod: Pod | None, manifest: Json) -> None:
        meta = manifest["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if pod is not None:
            del self._pods[meta["uid"]]
            if pod.process is not None:
                pod.process.send_signal(signal.SIGTERM)
                self.exit_codes[meta["name"]] = pod.process.wait(timeout=60)
            self.logs[meta["name"]] = pod.log.read_text() if pod.log.exists() else ""
        self._server.delete_now(path)

    def _start(self, pod: Pod) -> None:
        mounts = self._mounts(pod)
        texts = [self._own(pod, text, mounts) for text in pod.container["args"]]
        if pod.manifest["spec"].get("automountServiceAccountToken", True):
            texts.append(f"--service-account={self._service_account(pod)}")
        settings = {
            entry["name"]: self._own(pod, self._value(pod, entry), mounts)
            for entry in pod.container.get("env", ())
        }
        host, _, port = self._server.url.removeprefix("https://").partition(":")
        settings |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        temporary = mounts["/tmp"]
        settings |= {"HOME": temporary, "TMPDIR": temporary}
        with pod.log.open("w") as log:
            pod.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *texts],
                cwd=ROOT,
                env=environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _mounts(self, pod: Pod) -> dict[str, str]:
        """Directories of this machine by where the container has them."""
        volumes = {volume["name"]: volume for volume in pod.manifest["spec"].get("volumes", ())}
        mounts: dict[str, str] = {}
        for mount in pod.container["volumeMounts"]:
            mounts[mount["mountPath"]] = str(self._directory(pod, volumes[mount["name"]]))
        config = mounts.get("/etc/remontoir/config")
        for file in Path(config).iterdir() if config else ():
            file.write_text(self._own(pod, file.read_text(), mounts))
        return mounts

    def _directory(self, pod: Pod, volume: Json) -> Path:
        namespace = pod.manifest["metadata"]["namespace"]
        directory = pod.home / volume["name"]
        if "hostPath" in volume:
            path = Path(volume["hostPath"]["path"])
            if path.is_dir():
                return path
            node = pod.manifest["spec"]["nodeName"]
            directory = self._home / "nodes" / node / str(path).strip("/")
        directory.mkdir(parents=True, exist_ok=True)
        content: dict[str, bytes] = {}
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            data = self._server.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")["data"]
            content = {key: text.encode() for key, text in data.items()}
        elif "secret" in volume:
            secret = self._server.secret(namespace, volume["secret"]["secretName"])
            items = volume["secret"].get("items") or [{"key": k, "path": k} for k in secret]
            content = {item["path"]: secret[item["key"]] for item in items}
        for name, value in content.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(value)
            (directory / name).chmod(0o600)
        return directory

    def _service_account(self, pod: Pod) -> Path:
        """What a pod finds mounted of it, with the token that the server's controller made."""
        namespace = pod.manifest["metadata"]["namespace"]
        name = pod.manifest["spec"]["serviceAccountName"]
        end_s = time.monotonic() + 20
        tokens: list[Json] = []
        while not tokens and time.monotonic() < end_s:
            found = self._server.list(f"/api/v1/namespaces/{namespace}/secrets")
            tokens = [
                secret
                for secret in found
                if secret["type"] == "kubernetes.io/service-account-token"
                and secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == name
                and "token" in secret.get("data", {})
            ]
        directory = pod.home / "service-account"
        directory.mkdir()
        (directory / "token").write_bytes(base64.b64decode(tokens[0]["data"]["token"]))
        (directory / "namespace").write_text(namespace)
        (directory / "ca.crt").write_bytes(self._server.ca.read_bytes())
        return directory

    def _value(self, pod: Pod, entry: Json) -> str:
        source = entry.get("valueFrom")
        if source is None:
            return str(entry["value"])
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            namespace = pod.manifest["metadata"]["namespace"]
            return self._server.secret(namespace, reference["name"])[reference["key"]].decode()
        part: Any = pod.manifest
        for word in source["fieldRef"]["fieldPath"].split("."):
            part = part[word]
        return str(part)

    def _own(self, pod: Pod, text: str, mounts: dict[str, str]) -> str:
        """As the pod has it: its variables, its files, its neighbours, and a port for its probes,
        which several pods of this one machine cannot share.
        """
        meta = pod.manifest["metadata"]
        text = text.replace("$(POD_NAME)", meta["name"])
        text = text.replace("$(NODE_NAME)", pod.manifest["spec"]["nodeName"])
        if mounts:
            longest_first = sorted(mounts, key=len, reverse=True)
            paths = "|".join(re.escape(path) for path in longest_first)
            text = re.sub(rf"(?<![\w/])({paths})(?![\w-])", lambda m: mounts[m[1]], text)
        if text.startswith("--health-port="):
            pod.ports["health"] = free_port()
            text = f"--health-port={pod.ports['health']}"
        text = text.replace("0.0.0.0", address_of(meta["name"]))
        return SERVICE.sub(lambda match: address_of(match[0]), text)

    def _report(self, pod: Pod) -> None:
        """The pod's state, to the API server, where it is another than last time."""
        code = None if pod.process is None else pod.process.poll()
        if code is None:
            state = {"running": {"startedAt": _now()}}
            is_ready, phase = pod.process is None or self._is_ready(pod), "Running"
        else:
            state = {"terminated": {"exitCode": code, "finishedAt": _now()}}
            is_ready, phase = False, "Failed" if code else "Succeeded"
            self.logs[pod.manifest["metadata"]["name"]] = pod.log.read_text()
        told = f"{phase} {is_ready}"
        if told == pod.reported:
            return
        pod.reported = told
        container = {"name": pod.container["name"], "image": "i", "imageID": "i", "restartCount": 0}
        container |= {"ready": is_ready, "started": True, "state": state}
        conditions = [
            {"type": kind, "status": str(is_so)}
            for kind, is_so in (
                ("PodScheduled", True),
                ("Initialized", True),
                ("ContainersReady", is_ready),
                ("Ready", is_ready),
            )
        ]
        number = list(self._pods.values()).index(pod) + 2
        address = f"10.9.0.{number}"
        status = {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]}
        status |= {"conditions": conditions, "containerStatuses": [container]}
        self._server.patch(f"{pod.path}/status", {"status": status})

    def _is_ready(self, pod: Pod) -> bool:
        """All its probes say so: it has started, lives, and can be asked."""
        ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())}
        ports |= pod.ports
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if kind not in pod.container:
                continue
            asked = pod.container[kind]["httpGet"]
            try:
                address = address_of(pod.manifest["metadata"]["name"])
                url = f"http://{address}:{ports[asked['port']]}{asked['path']}"
                if httpx.get(url, timeout=5).status_code != 200:
                    return False
            except httpx.HTTPError:
                return False
        return True


def address_of(name: str) -> str:
    """Of a pod, or of the Service that is called so."""
    gateway = GATEWAY.search(name)
    return f"127.0.0.{int(gateway[1]) + 1}" if gateway else "127.0.0.1"


def runs_here(pod: Pod) -> bool:
    """Not what is for a GPU, nor a gateway whose workers are."""
    args = pod.container["args"]
    if pod.component in ("keys", "check"):
        return True
    return pod.manifest["metadata"]["labels"].get("e2e") == "real" and "--device=all" not in args


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
