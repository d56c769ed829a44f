"""What no load and no waiting would change: refused at once, whatever the policy."""

from scheduler.device import DeviceMirror
from scheduler.events import Reason, Rejected
from scheduler.request import Request
from scheduler.spec import SECOND_NS
from scheduler.state import ModelState, SchedulerState


def refuse_impossible(state: SchedulerState, request: Request) -> Rejected | None:
    """What no load and no waiting would change."""
    if not state.devices:
        return Rejected(Reason.NO_WORKER, "no worker is connected", retry_after_ns=SECOND_NS)
    model = state.models[request.model]
    name = request.model
    if not model.offered_by:
        return Rejected(
            Reason.MODEL_UNAVAILABLE, f"none of {len(state.devices)} workers can serve {name}"
        )
    if not 1 <= request.rows <= model.spec.max_batch_rows:
        return Rejected(
            Reason.INVALID_INPUT,
            f"{request.rows} rows, {name} takes at most {model.spec.max_batch_rows} a request",
        )
    if state.num_queued >= state.config.max_queued_requests:
        return Rejected(
            Reason.OVERLOADED,
            f"{state.num_queued} requests are queued, the limit",
            retry_after_ns=SECOND_NS,
        )
    slo_ns = request.deadline_ns - request.arrival_ns
    if model.fits_somewhere and slo_ns >= _best_case_ns(state, model.reference(), request):
        return None
    return _refuse_for_ever(state, model, request, slo_ns)


def least_slo_ns(state: SchedulerState, model: ModelState, request: Request) -> int | None:
    """The shortest SLO that an idle device with the weights could meet; None where there is none.

    Its rows must be no more than the model takes.
    """
    best_ns = [_best_case_ns(state, d, request) for d in model.offered_by if model.fits(d)]
    return min(best_ns, default=None)


def _refuse_for_ever(
    state: SchedulerState, model: ModelState, request: Request, slo_ns: int
) -> Rejected | None:
    name = request.model
    best_ns = least_slo_ns(state, model, request)
    if best_ns is None:
        device = next(iter(model.offered_by))
        return Rejected(
            Reason.LARGER_THAN_CACHE,
            f"{name} needs {model.spec.num_pages(device.spec.page_bytes)} pages, the cache of"
            f" {device.worker_id} has {device.spec.total_pages}",
        )
    if slo_ns >= best_ns:
        return None
    return Rejected(
        Reason.SLO_INFEASIBLE_EVER,
        f"SLO {slo_ns / 1e6:.3f} ms, {name} takes {best_ns / 1e6:.3f} ms even idle and loaded",
        predicted_ns=best_ns,
        min_slo_ns=best_ns,
    )


def _best_case_ns(state: SchedulerState, device: DeviceMirror, request: Request) -> int:
    estimate = device.exec_estimate(request)
    return estimate.plan[request.rows] + state.config.reply_margin_ns
