"""What each value of the chart may be: values.schema.json, said once.

Owns the kinds and bounds of values. Those of `gateway.settings` are gateway/config.py's own, so
that a ConfigMap cannot hold what the gateway would refuse; what the chart sets itself is not there.
Unknown keys are refused everywhere but in what is Kubernetes' own. What must fit together is in
templates/_validate.tpl.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.config import GatewayConfig
from gateway.tenants.tenants_file import TENANT_NAME, TenantSpec
from gateway.variants.groups_file import MAX_MEMBERS, GroupSpec, MemberSpec
from scheduler.policies import POLICIES

Schema = dict[str, Any]

# Addresses, directories and keys: the chart mounts them, so it must say where. Of workers, which
# have pods of their own here, it says these to them.
SET_BY_THE_CHART = frozenset(
    {
        *("host", "port", "worker_bind", "insecure", "tls_cert", "tls_key", "curve_keys"),
        *("tenants_file", "tenants", "groups_file", "models_dir", "cache_dir"),
        *("device", "workers", "intra_op_threads", "cache_mb", "emulate", "record"),
        *("replica", "replicas"),
    }
)
# The driver maps memory in granules of 2 MiB; other sizes would only waste address space.
PAGE_SIZES_MB = [1, 2, 4, 8, 16, 32, 64, 128, 256]

TEXT: Schema = {"type": "string"}
FULL_TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "array", "items": TEXT}
SWITCH: Schema = {"type": "boolean"}
FREE: Schema = {"type": "object"}  # Kubernetes' own, and checked by its API server
FREE_LIST: Schema = {"type": "array"}
NAMED: Schema = {"type": "array", "items": {"type": "object", "required": ["name"]}}
TEXT_BY_NAME: Schema = {"type": "object", "additionalProperties": TEXT}
# Of an image without its tag, which has a value of its own: REGISTRY:PORT/path/name.
REPOSITORY: Schema = {"type": "string", "pattern": r"^([\w.-]+(:[0-9]+)?/)?[a-z0-9._/-]*$"}
TAG: Schema = {"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"}
# Beginning of names of Services, which are DNS labels.
NAME_PART: Schema = {"type": "string", "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$"}
POOL_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$"}
# Of models that have a path, and so a route; of all others the gateways know.
MODEL_NAMES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "pattern": r"^[A-Za-z0-9_~-][A-Za-z0-9._~-]*$"},
}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
OBJECT_NAME: Schema = {
    "type": "string",
    "maxLength": 253,
    "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
}
KEY_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": "^[0-9.]+([kMGT]|[KMGT]i)?$"}
MAYBE_QUANTITY: Schema = {"type": "string", "pattern": "^([0-9.]+([kMGT]|[KMGT]i)?)?$"}
DIRECTORY: Schema = {"type": "string", "pattern": "^(/.*)?$"}
URL_PATH: Schema = {"type": "string", "pattern": "^/"}
ORIGIN = r"[a-z][a-z0-9+.-]*://[^\sA-Z/@*,]+"


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def whole(least: int, most: int | None = None, *, or_null: bool = False) -> Schema:
    bounds = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return {"type": ["integer", "null"] if or_null else "integer", **bounds}


def number_or_share(least: int) -> Schema:
    share = "^(100|[1-9]?[0-9])%$" if least == 0 else "^(100|[1-9][0-9]?)%$"
    return {"type": ["integer", "string"], "minimum": least, "pattern": share}


def closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


LEVEL = one_of("debug", "info", "warning", "error")
PULL_POLICY = one_of("Always", "IfNotPresent", "Never")
SECRET_KEY = closed({"name": OBJECT_NAME, "key": FULL_TEXT})
RESOURCES = closed({"requests": FREE, "limits": FREE, "claims": FREE_LIST})
TOPOLOGY_SPREAD = closed(
    {
        "enabled": SWITCH,
        "topologyKey": FULL_TEXT,
        "maxSkew": whole(1),
        "whenUnsatisfiable": one_of("ScheduleAnyway", "DoNotSchedule"),
    }
)
# Of a pod, of either kind.
POD: Mapping[str, Schema] = {
    "logLevel": LEVEL,
    "env": NAMED,
    "resources": RESOURCES,
    "nodeSelector": TEXT_BY_NAME,
    "tolerations": FREE_LIST,
    "affinity": FREE,
    "priorityClassName": OBJECT_NAME,
    "topologySpread": TOPOLOGY_SPREAD,
    "podLabels": TEXT_BY_NAME,
    "podAnnotations": TEXT_BY_NAME,
}

IMAGE = {"repository": REPOSITORY, "tag": TAG, "digest": DIGEST}

MODELS = closed(
    {
        "type": one_of("", "existingClaim", "hostPath", "image", "pull"),
        "subPath": {"type": "string", "pattern": "^([^/].*)?$"},  # within the volume
        "existingClaim": closed({"name": OBJECT_NAME}),
        "hostPath": closed({"path": DIRECTORY}),
        "image": closed({"reference": TEXT, "pullPolicy": PULL_POLICY}),
        "pull": closed(
            {
                "image": FULL_TEXT,
                "source": TEXT,
                "existingSecret": OBJECT_NAME,
                "env": NAMED,
                "command": TEXTS,
                "args": TEXTS,
                "sizeLimit": MAYBE_QUANTITY,
                "resources": RESOURCES,
            }
        ),
    }
)

WORKER: Mapping[str, Schema] = {
    "mode": one_of("gpu", "cpu"),
    "kind": one_of("auto", "DaemonSet", "StatefulSet"),
    "replicas": whole(0, 10_000),
    "gpusPerPod": whole(1, 64),
    "image": closed(IMAGE),
    "gpu": closed(
        {
            "resourceName": FULL_TEXT,
            "memoryMb": whole(1, or_null=True),
            "runtimeClassName": OBJECT_NAME,
            "nodeSelector": TEXT_BY_NAME,
            "tolerations": FREE_LIST,
        }
    ),
    "cacheMb": whole(1, or_null=True),
    "shardLabel": FULL_TEXT,
    "cache": closed(
        {
            "type": one_of("hostPath", "emptyDir", "claim"),
            "hostPath": closed({"path": {**DIRECTORY, "pattern": "^/.+"}, "setOwner": SWITCH}),
            "claim": closed({"size": QUANTITY, "storageClass": OBJECT_NAME}),
        }
    ),
    "startupMinutes": whole(1, 1440),
    "healthPort": PORT,
    "maxUnavailable": number_or_share(1),
    "terminationGracePeriodSeconds": whole(1),
    **POD,
}
# Whether they have a name is the only thing that pools must say.
POOL = {**closed({"name": POOL_NAME, **WORKER}), "required": ["name"]}

OPTIONAL: Mapping[str, Schema] = {
    "ingress": closed(
        {
            "enabled": SWITCH,
            "className": OBJECT_NAME,
            "annotations": TEXT_BY_NAME,
            "host": TEXT,
            "path": URL_PATH,
            "tls": FREE_LIST,
        }
    ),
    "httpRoute": closed(
        {
            "enabled": SWITCH,
            "parentRefs": NAMED,
            "hostnames": TEXTS,
            "path": URL_PATH,
            "owners": {"type": "object", "additionalProperties": MODEL_NAMES},
        }
    ),
    "podDisruptionBudget": closed(
        {
            "enabled": SWITCH,
            "gateway": closed({"maxUnavailable": number_or_share(0)}),
            "worker": closed({"maxUnavailable": number_or_share(0)}),
        }
    ),
    "priorityClass": closed({"create": SWITCH, "value": whole(-(2**31), 10**9)}),
    "networkPolicy": closed(
        {
            "enabled": SWITCH,
            "clients": FREE_LIST,
            "monitoring": FREE_LIST,
            "gatewayEgress": FREE_LIST,
            "workerEgress": FREE_LIST,
        }
    ),
    "serviceMonitor": closed(
        {
            "enabled": SWITCH,
            "labels": TEXT_BY_NAME,
            "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
            "apiKeySecret": SECRET_KEY,
            "tls": closed({"caKey": TEXT, "serverName": TEXT}),
        }
    ),
    "prometheusRule": closed({"enabled": SWITCH, "labels": TEXT_BY_NAME}),
    "dashboards": closed({"enabled": SWITCH, "labels": TEXT_BY_NAME, "annotations": TEXT_BY_NAME}),
    "autoscaling": closed(
        {
            "minReplicas": whole(1, 10_000),
            "maxReplicas": whole(1, 10_000),
            # an HPA gets it in thousandths
            "refusedRatio": {"type": "number", "minimum": 0.001, "maximum": 1},
            "behavior": FREE,
            "keda": closed(
                {
                    "enabled": SWITCH,
                    "prometheusAddress": {"type": "string", "pattern": "^(https?://.+)?$"},
                    "pollingInterval": whole(1, 3600),
                    "authenticationRef": OBJECT_NAME,
                }
            ),
            "hpa": closed({"enabled": SWITCH}),
        }
    ),
    "tests": closed(
        {
            "model": TEXT,
            "json": TEXT,
            "sloMs": {"type": "number", "exclusiveMinimum": 0},
            "apiKeySecret": SECRET_KEY,
        }
    ),
}


def values_schema() -> Schema:
    """The whole of it."""
    properties = {
        "global": {"type": "object", "description": "of a chart that this one is part of"},
        "nameOverride": NAME_PART,
        "fullnameOverride": NAME_PART,
        "image": closed({**IMAGE, "pullPolicy": PULL_POLICY, "pullSecrets": NAMED}),
        "models": MODELS,
        "gateway": _gateway(),
        "worker": closed({"pools": {"type": "array", "items": POOL}, **WORKER}),
        "auth": closed(
            {
                "enabled": SWITCH,
                "existingTenantsSecret": OBJECT_NAME,
                "tenants": _tenants(),
            }
        ),
        "curve": closed(
            {
                "enabled": SWITCH,
                "existingGatewaySecret": OBJECT_NAME,
                "existingWorkerSecret": OBJECT_NAME,
                "workerNames": {"type": "array", "minItems": 1, "items": KEY_NAME},
            }
        ),
        "keysJob": closed({"resources": RESOURCES}),
        "serviceAccount": closed({"annotations": TEXT_BY_NAME}),
        **OPTIONAL,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the Remontoir chart",
        **closed(properties),
    }


def settings_schema() -> dict[str, Schema]:
    """Of `gateway.settings`, by name: gateway/config.py's own kinds and bounds."""
    settings = {
        name: setting
        for name, setting in _members_of(GatewayConfig).items()
        if name not in SET_BY_THE_CHART
    }
    settings["page_mb"] = {"enum": PAGE_SIZES_MB}
    # What these texts must look like the gateway says when it starts: here it is said before.
    settings["policy"]["pattern"] = rf"^({'|'.join(POLICIES)})(:.*)?$"
    settings["otlp_endpoint"]["pattern"] = r"^https?://[^\s/]+"
    settings["cors_origins"]["pattern"] = rf"^(\*|{ORIGIN}( *, *{ORIGIN})*)$"
    return settings


def _tenants() -> Schema:
    """Of a tenants file, by name."""
    tenant = _members_of(TenantSpec)
    tenant["keys"]["items"]["pattern"] = "^k[0-9a-f]{12}:[0-9a-f]{64}$"
    whole_tenant: Schema = {
        **closed(tenant),
        "dependentRequired": {
            "requests_burst": ["requests_per_s"],
            "gpu_ms_burst": ["gpu_ms_per_s"],
        },
    }
    names = {"pattern": f"^{TENANT_NAME.pattern}$"}
    return {"type": "object", "propertyNames": names, "additionalProperties": whole_tenant}


def _groups() -> Schema:
    """Of a groups file, by name. A member is a model's name, or that and its accuracy."""
    member = {**closed(_members_of(MemberSpec)), "required": ["model"]}
    group = _members_of(GroupSpec)
    group["members"] = {
        "type": "array",
        "minItems": 2,
        "maxItems": MAX_MEMBERS,
        "uniqueItems": True,
        "items": {"anyOf": [FULL_TEXT, member]},
    }
    whole_group: Schema = {**closed(group), "required": ["members"]}
    return {"type": "object", "additionalProperties": whole_group}


def _members_of(kind: type[msgspec.Struct]) -> dict[str, Schema]:
    """What the struct says of its own members."""
    told = msgspec.json.schema(kind)["$defs"][kind.__name__]
    return {name: _plain(member) for name, member in told["properties"].items()}


def _gateway() -> Schema:
    return closed(
        {
            "replicas": whole(1, 1000),
            "settings": closed(settings_schema()),
            "groups": _groups(),
            "port": PORT,
            "workerPort": PORT,
            "service": closed(
                {
                    "type": one_of("ClusterIP", "NodePort", "LoadBalancer"),
                    "port": PORT,
                    "annotations": TEXT_BY_NAME,
                }
            ),
            "tls": closed({"existingSecret": OBJECT_NAME}),
            "cache": closed(
                {
                    "type": one_of("emptyDir", "claim"),
                    "size": QUANTITY,
                    "storageClass": OBJECT_NAME,
                }
            ),
            "preStopSeconds": whole(0, 3600),
            "terminationGracePeriodSeconds": whole(1, or_null=True),
            **POD,
        }
    )


def _plain(setting: Schema) -> Schema:
    """Without its default, and "or null" as a type: an anyOf would say less where it fails."""
    plain = {key: value for key, value in setting.items() if key != "default"}
    if "anyOf" in plain:
        [kind] = [choice for choice in plain.pop("anyOf") if choice != {"type": "null"}]
        plain |= {**kind, "type": [kind["type"], "null"]}
    return plain
