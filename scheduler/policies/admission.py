"""Admit or refuse at the door: predict the finish on the best device, refuse what cannot make it.

A refusal is worth most when it is early. What is predicted is the order that batching will follow:
earlier latest starts go first, except that work with fewer requests per millisecond does not push
out a request that it would make late (policies/batching.py decides the same way).
"""

import math
from bisect import bisect_right

import msgspec

from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import Reason, Rejected
from scheduler.profile import ExecEstimate
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS, SECOND_NS
from scheduler.state import ModelState, SchedulerState

# Queues of other models looked at per prediction; beyond it the rest is taken as not in the way.
MAX_QUEUES_AHEAD = 32
# A model whose full batches take less than this share of the time per row of single executions
# cannot serve what was admitted for full batches in smaller ones.
LIVES_ON_BATCHING = 0.8
MIN_RETRY_AFTER_NS = MILLISECOND_NS
# Weights that take pages.
HELD = frozenset({WeightsState.LOADING, WeightsState.RESIDENT})


class Admission(msgspec.Struct, frozen=True, gc=False):
    """The predicted end of the request's execution; whether another copy of the weights is due."""

    finish_ns: int
    wants_replica: bool = False


class AdmitAll:
    """Baseline: whatever a device could ever serve is queued."""

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = _refuse_impossible(state, request)
        return refused if refused is not None else Admission(now)


class DeadlineFeasible:
    """Refuse at once what no device is predicted to finish in time (Clockwork never did)."""

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = _refuse_impossible(state, request)
        if refused is not None:
            return refused
        model = state.models[request.model]
        warm = _best(state, model, request, now)
        if warm is not None and warm[1] > request.deadline_ns and len(model.holders) > 1:
            warm = _best_shared(state, model, request, now)
        if warm is not None and warm[1] <= request.deadline_ns:
            return Admission(warm[0])
        cold = _best_cold(state, model, request, now)
        if cold is not None and cold[1] <= request.deadline_ns:
            return Admission(cold[0], wants_replica=bool(model.holders))
        options = [option for option in (warm, cold) if option is not None]
        if not options:
            return Rejected(
                Reason.COLD_MODEL,
                f"{request.model} is not loaded, and no device can make room for it now",
                retry_after_ns=SECOND_NS,
            )
        return _refusal(request, model, now, min(options, key=lambda option: option[1]), warm)


def _refuse_impossible(state: SchedulerState, request: Request) -> Rejected | None:
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


def _refuse_for_ever(
    state: SchedulerState, model: ModelState, request: Request, slo_ns: int
) -> Rejected | None:
    name = request.model
    fitting = [d for d in model.offered_by if model.fits(d)]
    if not fitting:
        device = model.offered_by[0]
        return Rejected(
            Reason.LARGER_THAN_CACHE,
            f"{name} needs {model.spec.num_pages(device.spec.page_bytes)} pages, the cache of"
            f" {device.worker_id} has {device.spec.total_pages}",
        )
    best_ns = min(_best_case_ns(state, device, request) for device in fitting)
    if slo_ns >= best_ns:
        return None
    return Rejected(
        Reason.SLO_INFEASIBLE_EVER,
        f"SLO {slo_ns / 1e6:.3f} ms, {name} takes {best_ns / 1e6:.3f} ms even idle and loaded",
        predicted_ns=best_ns,
        min_slo_ns=best_ns,
    )


def _best_case_ns(state: SchedulerState, device: DeviceMirror, request: Request) -> int:
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    return estimate.plan[request.rows] + state.config.reply_margin_ns


def _best(
    state: SchedulerState, model: ModelState, request: Request, now: int
) -> tuple[int, int] | None:
    """(planned finish, finish with guard and margin) on the best device that holds the weights."""
    best: tuple[int, int] | None = None
    for device in model.holders:
        option = _finish_on(state, model, request, device, now=now, start_ns=device.start_at(now))
        if best is None or option[1] < best[1]:
            best = option
    return best


def _best_shared(
    state: SchedulerState, model: ModelState, request: Request, now: int
) -> tuple[int, int]:
    """The same, taking into account that other holders take a part of those who wait. It looks at
    each of them closely, so it is asked only where the request would be refused otherwise.
    """
    rows_of = [_rows_in_time(state, device, request, now) for device in model.holders]
    options = [
        _finish_on(
            state,
            model,
            request,
            device,
            now=now,
            start_ns=device.start_at(now),
            rows_elsewhere=sum(rows_of) - rows,
        )
        for device, rows in zip(model.holders, rows_of, strict=True)
    ]
    return min(options, key=lambda option: option[1])


def _best_cold(
    state: SchedulerState, model: ModelState, request: Request, now: int
) -> tuple[int, int] | None:
    """The same on the device where the weights could be soonest; None where none can load now."""
    pending_ns = state.pending_load_ns(model)
    soonest: tuple[int, DeviceMirror] | None = None
    for device in model.loading_on or model.offered_by:
        ready_ns = _weights_ready_at(state, model, device, now, pending_ns)
        if ready_ns is not None and (soonest is None or ready_ns < soonest[0]):
            soonest = (ready_ns, device)
    if soonest is None:
        return None
    start_ns = max(soonest[0], soonest[1].start_at(now))
    # A further copy needs to take only what those that are there cannot.
    rows_elsewhere = sum(_rows_in_time(state, device, request, now) for device in model.holders)
    return _finish_on(
        state,
        model,
        request,
        soonest[1],
        now=now,
        start_ns=start_ns,
        rows_elsewhere=rows_elsewhere,
    )


def _fits_beside_pinned(state: SchedulerState, model: ModelState, device: DeviceMirror) -> bool:
    """Whether the device would have room if everything that may go had gone."""
    kept = sum(
        device.weights[name].num_pages
        for name in state.pinned
        if name != model.spec.name and device.weights_state(name) in HELD
    )
    return model.spec.num_pages(device.spec.page_bytes) <= device.spec.total_pages - kept


def _rows_in_time(state: SchedulerState, device: DeviceMirror, request: Request, now: int) -> int:
    """Rows of the request's kind that the device could finish by its deadline."""
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    end_ns = request.deadline_ns - state.margin_ns(device)
    start_ns = device.start_at(now)
    start_ns += _work_ahead(
        device, request, estimate, start_ns, end_ns - estimate.guard[request.rows]
    )
    size = _usual_batch(estimate, request)
    if end_ns - start_ns < estimate.plan[size]:
        return max(0, bisect_right(estimate.plan, end_ns - start_ns) - 1)
    return (end_ns - start_ns) // estimate.plan[size] * size


def _weights_ready_at(
    state: SchedulerState, model: ModelState, device: DeviceMirror, now: int, pending_ns: int
) -> int | None:
    """When weights that are not resident there could be; None where no LOAD is possible now."""
    name = model.spec.name
    record = device.weights.get(name)
    if record is not None:
        if record.state is WeightsState.LOADING:
            return record.ready_at_ns
        if record.state is WeightsState.RESIDENT or record.retry_at_ns > now:
            return None
    if not model.fits(device) or (state.pinned and not _fits_beside_pinned(state, model, device)):
        return None
    return device.load_start_at(now) + pending_ns + device.estimates(name).load_plan_ns


def _finish_on(
    state: SchedulerState,
    model: ModelState,
    request: Request,
    device: DeviceMirror,
    *,
    now: int,
    start_ns: int,
    rows_elsewhere: int = 0,
) -> tuple[int, int]:
    """(planned finish, finish with guard and margin) of a request that can start then.

    The wait is stretched by the share of the lane that shorter work took lately.
    """
    estimate = device.estimates(request.model).exec(request.shape_key, request.elements)
    margin_ns = state.margin_ns(device)
    latest_start_ns = request.deadline_ns - estimate.guard[request.rows] - margin_ns
    queue = model.queues.get(request.batch_key)
    rows = request.rows
    if queue is not None:
        # Rows, not requests, would need a running sum; requests of one row are the usual case.
        num_ahead = queue.num_due_by(request.deadline_ns)
        rows += num_ahead if queue.num_rows == len(queue) else queue.num_rows
        if rows_elsewhere:
            rows = max(request.rows, rows - rows_elsewhere)
    size = _usual_batch(estimate, request)
    own_ns = estimate.time_for(rows)
    if rows > size and estimate.plan[size] < LIVES_ON_BATCHING * size * estimate.plan[1]:
        # Later requests will fill the last batch up, too. Without the time for that, its first one
        # would hold the batch small, and all that were admitted for full batches would be late.
        own_ns = -(-rows // size) * estimate.plan[size]
    if device.ready:
        # Its own queue goes first with it: that long before its latest start others must be done.
        own_ahead_ns = own_ns - estimate.plan[request.rows]
        start_ns += _work_ahead(
            device, request, estimate, start_ns, latest_start_ns, own_ahead_ns=own_ahead_ns
        )
    last = estimate.efficient[min(rows, estimate.max_rows)]
    wait_ns = start_ns + own_ns - estimate.plan[last] - now
    share = device.exec_shares.share_of_shorter(estimate.plan[1], now) if wait_ns > 0 else 0.0
    finish_ns = now + int(wait_ns / (1 - share)) + estimate.plan[last]
    # What may go wrong with each batch before it adds up as independent errors do.
    num_batches = max(1.0, own_ns / estimate.plan[last])
    guard_ns = int((estimate.guard[last] - estimate.plan[last]) * math.sqrt(num_batches))
    return finish_ns, finish_ns + guard_ns + margin_ns


def _usual_batch(estimate: ExecEstimate, request: Request) -> int:
    """Rows of a batch where enough wait: as batching does, at most half the SLO long."""
    half_slo_ns = (request.deadline_ns - request.arrival_ns) // 2
    return estimate.efficient[max(request.rows, bisect_right(estimate.plan, half_slo_ns) - 1)]


def _work_ahead(
    device: DeviceMirror,
    request: Request,
    estimate: ExecEstimate,
    start_ns: int,
    latest_start_ns: int,
    *,
    own_ahead_ns: int = 0,
) -> int:
    """Time other models' queues will take on the device before this request."""
    ahead_ns = 0
    ns_per_row = estimate.plan[request.rows] / request.rows
    for key_ns, _, queue in device.ready[:MAX_QUEUES_AHEAD]:
        if (
            key_ns > latest_start_ns
            or key_ns != queue.latest_start_ns
            or (queue.model == request.model and queue.batch_key == request.batch_key)
            or not device.is_resident(queue.model)
        ):
            continue
        other = device.exec_estimate(queue)
        rows = queue.num_due_by(latest_start_ns + other.guard[1])
        if rows == 0:
            continue
        other_ns = other.time_for(rows)
        is_in_the_way = start_ns + ahead_ns + other_ns > latest_start_ns - own_ahead_ns
        if is_in_the_way and other_ns / rows > ns_per_row:
            continue
        ahead_ns += other_ns
    return ahead_ns


def _refusal(
    request: Request,
    model: ModelState,
    now: int,
    best: tuple[int, int],
    warm: tuple[int, int] | None,
) -> Rejected:
    guarded_ns = best[1]
    predicted_ns = guarded_ns - request.arrival_ns
    retry_after_ns = max(MIN_RETRY_AFTER_NS, guarded_ns - request.deadline_ns)
    slo_ns = request.deadline_ns - request.arrival_ns
    told = f"predicted {predicted_ns / 1e6:.1f} ms, SLO {slo_ns / 1e6:.1f} ms"
    if warm is None:
        load_ns = model.reference().estimates(request.model).load_plan_ns
        return Rejected(
            Reason.COLD_MODEL,
            f"{request.model} is not loaded and would take {load_ns / 1e6:.1f} ms to load: {told}",
            retry_after_ns=retry_after_ns,
            predicted_ns=predicted_ns,
            load_ns=load_ns,
        )
    return Rejected(
        Reason.SLO_INFEASIBLE_NOW,
        f"{model.num_queued} requests of {request.model} are queued: {told}",
        retry_after_ns=retry_after_ns,
        predicted_ns=predicted_ns,
    )
