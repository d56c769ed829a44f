"""A request as the scheduler sees it, of what its endpoint has read.

It owns which fact stands where. Whether it is submitted or asked about, its caller says.
"""

from gateway.inference.exchange import Exchange
from gateway.inference.tensors import Inputs, ModelPlan, ShapeClass
from scheduler.events import RequestArrived


def arrival_of(
    exchange: Exchange,
    plan: ModelPlan,
    work: Inputs | ShapeClass,
    batch_key: str,
    is_impatient: bool,
    request_id: int = 0,
) -> RequestArrived:
    """Without an id of its own it can only be asked about."""
    arrival_ns = exchange.arrival_ns
    tenant = exchange.tenant
    return RequestArrived(
        request_id,
        plan.key,
        arrival_ns,
        arrival_ns + exchange.slo_ns,
        work.rows,
        batch_key,
        work.shape_key,
        work.elements,
        is_impatient,
        "" if tenant is None else tenant.name,
        exchange.priority,
    )
