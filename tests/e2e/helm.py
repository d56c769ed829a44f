"""The chart by a real helm, and on a real Kubernetes API server: `make helm-e2e`.

First as text (helm_render.py). Then on an API server with its scheduler and controllers, and
made-up nodes, of which two have a GPU: installed, upgraded, rolled back and uninstalled; workers
land on GPU nodes, and one too many stays Pending; keys are made by their job with the rights it is
given, and kept. In CPU mode gateway and worker are run for real as their pods say
(helm_kubelet.py), with CURVE and API keys, until their probes are content, and `helm test` passes;
then an upgrade replaces all of them under load (helm_rolling.py). What this cannot show is in
docs/kubernetes.md. Ten minutes the first time, in which the server is built; two to four later.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.helm_cluster import ApiServer, Json, add_custom_kinds, add_node, cluster, until
from tests.e2e.helm_kubelet import Kubelet
from tests.e2e.helm_render import CHART, NAMESPACE, SETS, Helm, check_text
from tests.e2e.helm_rolling import Load
from tests.e2e.tools import LeftOut
from tests.gateway.running import ROOT, environment
from tests.gpuworker import onnx_models
from tests.system.test_joining import free_port

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
WORKER = "app.kubernetes.io/component=worker"
# 1.20 knows an older server-side apply, which refuses what later ones take.
APPLY = ("--server-side=false", "--wait", "--timeout", "3m")
KEYS = ("api-keys", "curve-gateway", "curve-worker", "tenants")


class Story:
    """One namespace, and helm in it."""

    def __init__(self, helm: Helm, server: ApiServer, kubeconfig: Path, kubelet: Kubelet) -> None:
        self._helm = helm
        self._kubeconfig = kubeconfig
        self.server = server
        self.kubelet = kubelet

    def helm(self, *arguments: object) -> str:
        done = self.tried(*arguments)
        assert done.returncode == 0, f"helm {arguments[0]}: {done.stdout[-4000:]}"
        return done.stdout

    def tried(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self._helm.tried("-n", NAMESPACE, *arguments, kubeconfig=self._kubeconfig)

    def pods(self, selector: str) -> dict[str, Json]:
        return {pod["metadata"]["name"]: pod for pod in self.server.list(PODS, selector)}

    def nodes(self, selector: str) -> list[str]:
        """Where its pods are, those without a node left out."""
        found = (pod["spec"].get("nodeName") for pod in self.pods(selector).values())
        return sorted(filter(None, found))

    def settings(self, release: str) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{release}-remontoir"
        text: str = self.server.get(path)["data"]["config.yaml"]
        return text

    def keys(self, release: str) -> dict[str, dict[str, bytes]]:
        return {k: self.server.secret(NAMESPACE, f"{release}-remontoir-{k}") for k in KEYS}


def main() -> int:
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="remontoir-helm-") as scratch:
        home = Path(scratch)
        try:
            helm = Helm(home)
            check_text(helm, home)
            with running(helm, home) as story:
                on_gpu_nodes(story, home)
                everything(story)
                on_cpus(story, home)
        except LeftOut as why:
            print(f"helm-e2e: left out: {why}")
            return 1
        except (AssertionError, subprocess.CalledProcessError) as error:
            print(f"helm-e2e: FAILED: {error}\n{getattr(error, 'stdout', None) or ''}")
            return 1
    print(f"helm-e2e: all of it in {time.monotonic() - begin_s:.0f} s")
    return 0


@contextmanager
def running(helm: Helm, home: Path) -> Iterator[Story]:
    with cluster(home) as (server, kubeconfig):
        version = server.get("/version")["gitVersion"]
        print(
            f"helm-e2e: a Kubernetes API server {version}, its scheduler and controllers",
            flush=True,
        )
        server.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        add_node(server, "cpu-1")
        add_node(server, "gpu-1", gpus=1)
        add_node(server, "gpu-2", gpus=1)
        add_custom_kinds(server)
        with Kubelet(server, home / "pods") as kubelet:
            yield Story(helm, server, kubeconfig, kubelet)


def models_of(home: Path) -> Path:
    models = home / "models"
    if not models.exists():
        for name in ("mlp", "other"):
            onnx_models.write_model(models, name, onnx_models.mlp())
    return models


def on_gpu_nodes(story: Story, home: Path) -> None:
    base = ["--set=image.repository=example/remontoir", "--set=models.type=hostPath"]
    base += [f"--set=models.hostPath.path={models_of(home)}"]
    switches = ["--set=podDisruptionBudget.enabled=true", "--set=networkPolicy.enabled=true"]
    told = story.helm("install", "r", CHART, *base, *switches, *APPLY)
    assert "no policy/v1: no PodDisruptionBudget was made" in told, told
    assert story.nodes(f"app.kubernetes.io/instance=r,{WORKER}") == ["gpu-1", "gpu-2"]
    assert story.nodes("app.kubernetes.io/component=gateway") == ["cpu-1"]
    print("helm-e2e: install: a worker on each of two GPU nodes, the gateway on neither")

    keys = story.keys("r")
    print("helm-e2e: keys were made by their job, with its own rights and no others:")
    print("          " + ", ".join(f"{name} ({', '.join(sorted(k))})" for name, k in keys.items()))

    # one more than there are GPUs
    more = ["--set=worker.kind=StatefulSet", "--set=worker.replicas=1"]
    more += ["--set=autoscaling.hpa.enabled=true"]
    told = story.helm("install", "more", CHART, *base, *more, "--server-side=false")
    assert "no autoscaling/v2: no HorizontalPodAutoscaler was made" in told, told
    path = f"{PODS}/more-remontoir-worker-0-0"

    def reasons() -> str:
        conditions = story.server.get(path)["status"].get("conditions", ())
        return " ".join(c.get("message", "") for c in conditions)

    until(lambda: "Insufficient nvidia.com/gpu" in reasons(), "the scheduler says why not")
    assert story.server.get(path)["status"]["phase"] == "Pending"
    print(f"helm-e2e: one worker more than GPUs stays Pending: {reasons()}")
    story.helm("uninstall", "more", "--wait", "--timeout", "2m")

    before = story.settings("r")
    upgrade = ["upgrade", "r", CHART, *base, *switches]
    done = story.tried(*upgrade, "--set=gateway.settings.default_slo_ms=0", "--server-side=false")
    assert done.returncode != 0
    assert "/gateway/settings/default_slo_ms" in done.stdout, done.stdout
    assert story.settings("r") == before
    missing = [*upgrade, "--set=auth.existingTenantsSecret=nowhere", "--server-side=false"]
    done = story.tried(*missing)
    why = "auth.existingTenantsSecret: there is no Secret nowhere in namespace serving"
    assert done.returncode != 0, done.stdout
    assert why in done.stdout, done.stdout
    story.server.create(SECRETS, {"metadata": {"name": "nowhere"}, "data": {"tenants": "eA=="}})
    done = story.tried(*missing)
    assert "Secret nowhere has no key tenants.yaml; it has tenants" in done.stdout, done.stdout
    print(
        f"helm-e2e: a broken upgrade changes nothing; a key secret that is missing is said: {why}"
    )

    story.helm(*upgrade, "--set=gateway.settings.default_slo_ms=250", *APPLY)
    assert "default_slo_ms: 250" in story.settings("r")
    until(lambda: gateway_has(story, "r", "default_slo_ms: 250"), "the gateway's pod is a new one")
    assert story.keys("r") == keys
    hashed = f"k{1:012x}:{2:064x}"
    story.helm(*upgrade, f"--set=auth.tenants.shop.keys={{{hashed}}}", *APPLY)
    own = story.server.secret(NAMESPACE, "r-remontoir-own-tenants")["tenants.yaml"]
    assert hashed in own.decode(), own
    assert tenants_secret(story, "r") == "r-remontoir-own-tenants"
    story.helm("rollback", "r", 1, *APPLY)
    assert tenants_secret(story, "r") == "r-remontoir-tenants"
    assert story.settings("r") == before
    assert story.keys("r") == keys
    history = story.helm("history", "r")
    assert "Rollback to 1" in history, history
    print("helm-e2e: upgrade and rollback: settings change and come back, keys stay; from keys")
    print("          that were made to tenants of one's own, and back")

    story.helm("uninstall", "r", "--wait", "--timeout", "2m")
    gone(story, "r")
    assert story.keys("r") == keys
    story.helm("install", "r", CHART, *base, *APPLY)
    assert story.keys("r") == keys
    print("helm-e2e: uninstall: nothing is left but the keys, which a new install takes again")
    story.helm("uninstall", "r", "--wait", "--timeout", "2m")
    gone(story, "r")


def gateway_has(story: Story, release: str, setting: str) -> bool:
    """Whether the pod was made after the ConfigMap had that: by the checksum it carries."""
    [pod] = story.pods(
        f"app.kubernetes.io/instance={release},app.kubernetes.io/component=gateway"
    ).values() or [None]
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{release}-remontoir-gateway"
    wanted = story.server.get(path)["spec"]["template"]["metadata"]["annotations"]
    return (
        setting in story.settings(release)
        and pod is not None
        and pod["metadata"]["annotations"]["checksum/config"] == wanted["checksum/config"]
    )


def tenants_secret(story: Story, release: str) -> str:
    """Which one its gateway reads."""
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{release}-remontoir-gateway"
    volumes = story.server.get(path)["spec"]["template"]["spec"]["volumes"]
    [name] = [volume["secret"]["secretName"] for volume in volumes if volume["name"] == "tenants"]
    assert isinstance(name, str)
    return name


def gone(story: Story, release: str) -> None:
    selector = f"app.kubernetes.io/instance={release}"
    for path in (
        *("/apis/apps/v1/statefulsets", "/apis/apps/v1/daemonsets", "/apis/batch/v1/jobs"),
        *("/api/v1/services", "/api/v1/configmaps", "/api/v1/serviceaccounts", "/api/v1/pods"),
        *("/apis/rbac.authorization.k8s.io/v1/roles", "/apis/networking.k8s.io/v1/networkpolicies"),
    ):
        until(lambda path=path: not story.server.list(path, selector), f"{path} of {release} go")


def everything(story: Story) -> None:
    """The server takes every kind of object that the chart can make."""
    [values] = [file for file in SETS if file.stem == "everything"]
    story.server.create(
        "/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
    )
    pair = {"tls.crt": "eA==", "tls.key": "eA==", "ca.crt": "eA=="}
    story.server.create(SECRETS, {"metadata": {"name": "tls"}, "data": pair})
    story.helm("install", "all", CHART, "-f", values, "--server-side=false", "--timeout", "2m")
    told = story.helm("get", "manifest", "all")
    kinds = sorted(
        {line.removeprefix("kind: ") for line in told.splitlines() if line[:6] == "kind: "}
    )
    print(f"helm-e2e: the server takes {len(kinds)} kinds of objects: {', '.join(kinds)}")
    story.helm("uninstall", "all", "--wait", "--timeout", "2m")
    gone(story, "all")


def on_cpus(story: Story, home: Path) -> None:
    """Real processes behind the pods, with the keys that the job made."""
    port, worker_port = free_port(), free_port()
    values = ["--set=image.repository=example/remontoir", "--set=models.type=hostPath"]
    values += [f"--set=models.hostPath.path={models_of(home)}", "--set=worker.mode=cpu"]
    values += [f"--set=gateway.port={port}", f"--set=gateway.service.port={port}"]
    values += [f"--set=gateway.workerPort={worker_port}", "--set=gateway.settings.drain_s=1"]
    values += ["--set=gateway.podLabels.e2e=real", "--set=worker.podLabels.e2e=real"]
    values += ["--set=worker.cacheMb=64", "--set=gateway.preStopSeconds=1"]
    values += ["--set=gateway.replicas=2", "--set=worker.replicas=2"]
    done = story.tried("install", "cpu", CHART, *values, *APPLY)
    logs = {name: story.kubelet.log_of(name) for name in story.pods("")}
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{logs}"
    story.helm("test", "cpu", "--timeout", "1m")
    said = story.kubelet.logs["cpu-remontoir-check"]
    assert said.count("ok  ") == 4, said
    print("helm-e2e: in CPU mode gateways and workers run as their pods say; `helm test` says:")
    print("          " + "\n          ".join(said.strip().splitlines()))
    key = story.keys("cpu")["api-keys"]["client.key"].decode()
    for number in range(2):
        for model in ("mlp", "other"):
            url = f"http://127.0.0.{number + 1}:{port}"
            command = [sys.executable, "-m", "gateway", "check", "--url", url, "--model", model]
            settings = environment(REMONTOIR_API_KEY=key)
            done = subprocess.run(
                command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{model} at gateway {number}: {done.stdout}{done.stderr}"
    print("helm-e2e: each of two gateways, with workers of its own, answers for every model")
    straight_to_owners(story, home, values)
    rolled_under_load(story, values, port, key)
    story.helm("uninstall", "cpu", "--wait", "--timeout", "2m")
    gone(story, "cpu")
    codes = story.kubelet.exit_codes
    ended = {name: codes[name] for name in codes if name.startswith("cpu-remontoir-")}
    assert len(ended) == 6, ended
    assert set(ended.values()) == {0}, ended
    print(f"helm-e2e: uninstalled, they ended well: {', '.join(sorted(ended))}")


def straight_to_owners(story: Story, home: Path, values: list[str]) -> None:
    """What `remontoir replicas` says to the chart makes a Service for each owner, of its pod."""
    [line] = [x for x in story.settings("cpu").splitlines() if x.startswith("replicas: ")]
    command = [sys.executable, "-m", "gateway", "replicas", "--format", "helm"]
    command += ["--models", str(models_of(home)), "--replicas", line.removeprefix("replicas: ")]
    owners = home / "owners.yaml"
    owners.write_text(
        subprocess.run(
            command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )
    route = ["--set=httpRoute.enabled=true", "--set=httpRoute.parentRefs[0].name=public"]
    story.helm("upgrade", "cpu", CHART, *values, *route, "-f", owners, *APPLY)
    services = f"/api/v1/namespaces/{NAMESPACE}/services"
    told = story.server.list(services, "app.kubernetes.io/component=owner")
    assert told, owners.read_text()
    for service in told:
        selector = ",".join(f"{k}={v}" for k, v in service["spec"]["selector"].items())
        assert list(story.pods(selector)) == [service["metadata"]["name"]], selector
    names = ", ".join(service["metadata"]["name"] for service in told)
    print(f"helm-e2e: httpRoute.owners, by `remontoir replicas --format helm`: {names}, each alone")


def rolled_under_load(story: Story, values: list[str], port: int, key: str) -> None:
    """An upgrade that replaces both gateways and the two workers of each, one after the other:
    every request is answered.
    """
    selector = "app.kubernetes.io/component=gateway"
    before, workers_before = uids(story, selector), uids(story, WORKER)
    with Load(story.server, PODS, selector, port=port, key=key, models=["mlp", "other"]) as load:
        until(lambda: load.answers["200"] > 20, "the load is answered")
        changed = ("--set=gateway.settings.default_slo_ms=900", "--set=worker.cacheMb=80")
        story.helm("upgrade", "cpu", CHART, *values, *changed, *APPLY)
        so_far = load.answers["200"]
        until(lambda: load.answers["200"] > so_far + 20, "the load is answered by the new ones")
    after, workers_after = uids(story, selector), uids(story, WORKER)
    assert not before & after, "a gateway was not replaced"
    assert len(workers_after) == 4, workers_after
    assert not workers_before & workers_after, "a worker was not replaced"
    assert before | after == load.pods_asked, "not all of them were asked"
    logs = {name: story.kubelet.log_of(name)[-2000:] for name in story.pods(selector)}
    assert set(load.answers) == {"200"}, f"{load.answers}\n{logs}"
    print(
        f"helm-e2e: gateways and workers replaced by an upgrade, {load.answers['200']} requests"
        " meanwhile: all were answered 200"
    )


def uids(story: Story, selector: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in story.pods(selector).values()}


if __name__ == "__main__":
    sys.exit(main())
