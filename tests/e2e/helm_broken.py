"""Values of the chart that must be refused, for `make helm-e2e`, and what is said of each."""

from typing import NamedTuple

# What the chart cannot do without, before anything is wrong.
LEAST = ("image.repository=example/remontoir", "models.type=hostPath", "models.hostPath.path=/m")
ROUTE = ("httpRoute.enabled=true", "httpRoute.parentRefs[0].name=public")


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
    Broken(
        "cache larger than a pool's memory",
        ("worker.pools[0].name=c", "worker.pools[0].mode=cpu", "worker.pools[0].cacheMb=9000"),
        ("worker.pools[0] (c).cacheMb is 9000 MiB", "limits.memory 8Gi is 8192 MiB"),
    ),
    Broken(
        "memory that is no quantity",
        ("gateway.resources.limits.memory=much",),
        ('gateway.resources.limits.memory is "much", which is no quantity of memory',),
    ),
    Broken(
        "bodies larger than memory",
        ("gateway.settings.max_buffered_mb=8192",),
        ("gateway.settings.max_buffered_mb is 8192 MiB", "limits.memory 4Gi is 4096 MiB"),
    ),
    Broken("missing image", ("image.repository=",), ("image.repository is required",)),
    Broken(
        "image with its tag",
        ("image.repository=example/remontoir:1",),
        ("/image/repository", "'example/remontoir:1' does not match pattern"),
    ),
    Broken(
        "GPUs said twice",
        (r"worker.resources.limits.nvidia\.com/gpu=0.5",),
        ("worker.resources.limits has nvidia.com/gpu: say worker.gpusPerPod instead",),
    ),
    Broken(
        "number of pods of a DaemonSet",
        ("worker.replicas=4",),
        ("worker.replicas is 4, and a DaemonSet has a pod on each node",),
    ),
    Broken(
        "claim of a DaemonSet",
        ("worker.cache.type=claim",),
        ("worker.cache.type is claim, which a DaemonSet has not",),
    ),
    Broken(
        "pool without a name",
        ("worker.pools[0].gpusPerPod=8",),
        ("/worker/pools/0", "missing property 'name'"),
    ),
    Broken(
        "pool that is there twice",
        ("worker.pools[0].name=a", "worker.pools[1].name=a"),
        ("worker.pools has a twice",),
    ),
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
        "autoscaled pools",
        ("autoscaling.hpa.enabled=true", "worker.pools[0].name=a"),
        ("autoscaling and worker.pools (1)",),
    ),
    Broken(
        "setting past its check",
        ("gateway.env[0].name=REMONTOIR_PAGE_MB", "gateway.env[0].value=x"),
        ("gateway.env has REMONTOIR_PAGE_MB", "(page_mb)"),
    ),
    Broken(
        "unknown policy",
        ("gateway.settings.policy=fastest",),
        ("/gateway/settings/policy", "does not match pattern"),
    ),
    Broken(
        "unknown setting of a tenant",
        ("auth.tenants.shop.rps=5",),
        ("/auth/tenants/shop", "additional properties 'rps' not allowed"),
    ),
    Broken(
        "tenants without a key",
        ("auth.tenants.shop.weight=2",),
        ("auth.tenants has shop, and none has a key",),
    ),
    Broken(
        "owner that is no gateway",
        (*ROUTE, "gateway.replicas=2", "httpRoute.owners.g9={m}"),
        ("httpRoute.owners has g9, and gateway.replicas 2 makes r-remontoir-gateway-0, r-remon",),
    ),
    Broken(
        "model of two owners",
        (
            *(*ROUTE, "gateway.replicas=2", "httpRoute.owners.r-remontoir-gateway-0={m}"),
            "httpRoute.owners.r-remontoir-gateway-1={m}",
        ),
        ("httpRoute.owners has model m of r-remontoir-gateway-0 and of r-remontoir-gateway-1",),
    ),
    Broken(
        "NetworkPolicy that keeps models away",
        ("networkPolicy.enabled=true", "models.type=pull", "models.pull.source=s3:b/m"),
        ("name the way to s3:b/m in networkPolicy.gatewayEgress",),
    ),
    Broken(
        "NetworkPolicy that keeps Prometheus away",
        (
            *("networkPolicy.enabled=true", "serviceMonitor.enabled=true"),
            "networkPolicy.clients[0].podSelector.matchLabels.app=shop",
        ),
        ("networkPolicy.monitoring is required",),
    ),
    Broken(
        "monitoring without a key",
        ("serviceMonitor.enabled=true", "auth.existingTenantsSecret=t"),
        ("serviceMonitor.apiKeySecret.name is required",),
    ),
    Broken(
        "pairs that nobody makes",
        ("curve.workerNames={rack-1,rack-2}",),
        ("curve.workerNames is rack-1, rack-2, and the keys that are made are of one pair",),
    ),
    Broken(
        "SLO of a tenant longer than the grace",
        ("auth.tenants.shop.default_slo_ms=30000",),
        ("auth.tenants.shop.default_slo_ms is 30000, longer than gateway.settings.answer_grace",),
    ),
    Broken(
        "no pod that an update may replace",
        ("worker.maxUnavailable=0%",),
        ("/worker/maxUnavailable", "'0%' does not match pattern"),
    ),
    Broken("a question to no model", ("tests.json=x",), ("tests.json needs tests.model",)),
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
