"""What helps, by the reason of a no: the sentence for whoever runs the gateway.

It owns these sentences, one for each reason of the error table, and nothing else: the live page,
`remontoir top`, `remontoir requests` and the stories show them. What the client is told is
gateway/errors.py's.
"""

from scheduler.events import Reason

REMEDIES: dict[str, str] = {
    Reason.SLO_INFEASIBLE_NOW.value: "Busy lanes: more devices. Idle lanes: a looser SLO.",
    Reason.COLD_MODEL.value: "More memory (--cache-mb), fewer models, or pin the urgent ones.",
    Reason.SLO_INFEASIBLE_EVER.value: "A looser SLO or a faster device; /quote says the least.",
    Reason.WOULD_QUEUE.value: "Nothing: it asked for now or never.",
    Reason.OVERLOADED.value: "Clients that heed Retry-After; more devices.",
    Reason.WORKER_LOST.value: "The worker's log says why; a second device for the model.",
    Reason.MODEL_UNAVAILABLE.value: "Mend the model: `remontoir models` says what is wrong.",
    Reason.LARGER_THAN_CACHE.value: "More memory (--cache-mb): one device must hold all of it.",
    Reason.DEADLINE_EXCEEDED_QUEUED.value: (
        "Slower than predicted, or passed over for a higher class: more devices."
    ),
    Reason.DEADLINE_EXCEEDED_EXECUTING.value: (
        "Slower than predicted: who else uses the devices and the gateway's core?"
    ),
    Reason.NO_WORKER.value: "Start a worker.",
    Reason.ENGINE_ERROR.value: "The worker's log says what failed; the version before may not.",
    Reason.INVALID_INPUT.value: "The client must mend its input; the answer says what is wrong.",
    Reason.INTERNAL_ERROR.value: "Report it, with the gateway's log.",
    "starting": "Wait until it is ready: /readyz says when.",
    "draining": "Send clients to another gateway before this one ends.",
    "replica_unavailable": "Start the replica that has the model: `remontoir replicas` names it.",
    "unauthenticated": "A valid key: it may have been rotated.",
    "forbidden": "The tenants file says what the key may do.",
    "slo_below_tenant_minimum": "A looser SLO, or a smaller min_slo_ms of the tenant.",
    "quota_exceeded": "Fewer requests, or a larger quota of the tenant.",
    "bad_request": "The client must mend it; the answer says what is wrong.",
    "not_found": "The client's spelling, or a model that is not in the repository.",
    "method_not_allowed": "The client must use the method that the route has.",
    "timeout": "The client or its network is slow to send.",
    "too_large": "Smaller bodies, or a larger max_body_mb.",
    "headers_too_large": "The client sends too much of a header.",
    "unsupported_media_type": "Send it gzip or plain.",
}
