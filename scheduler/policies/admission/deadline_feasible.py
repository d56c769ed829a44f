"""Admit or refuse at the door: predict the finish on the best device, refuse what cannot make it.

A refusal is worth most when it is early.
"""

from typing import Final

from scheduler.device import DeviceMirror, WeightsState
from scheduler.events import Reason, Rejected
from scheduler.policies.admission import Admission
from scheduler.policies.admission.forecast import finish_on, rows_in_time
from scheduler.policies.admission.impossible import refuse_impossible
from scheduler.request import Request
from scheduler.spec import MILLISECOND_NS, SECOND_NS
from scheduler.state import ModelState, SchedulerState

MIN_RETRY_AFTER_NS: Final = MILLISECOND_NS
# Weights that take pages.
HELD = frozenset({WeightsState.LOADING, WeightsState.RESIDENT})

# Planned finish, finish with guard and margin, and where.
Forecast = tuple[int, int, DeviceMirror]


class DeadlineFeasible:
    """Refuse at once what no device is predicted to finish in time (Clockwork never did)."""

    def decide(self, state: SchedulerState, request: Request, now: int) -> Admission | Rejected:
        refused = refuse_impossible(state, request)
        if refused is not None:
            return refused
        model = state.models[request.model]
        warm = _soonest(state, model, request, now)
        if warm is not None and warm[1] > request.deadline_ns and len(model.holders) > 1:
            warm = _best(state, model, request, now)
        if warm is not None and warm[1] > request.deadline_ns and len(model.holders) > 1:
            warm = _best_shared(state, model, request, now)
        if warm is not None and warm[1] <= request.deadline_ns:
            return Admission(warm[0], worker_id=warm[2].worker_id)
        cold = _best_cold(state, model, request, now)
        if cold is not None and cold[1] <= request.deadline_ns:
            return Admission(
                cold[0], wants_replica=bool(model.holders), worker_id=cold[2].worker_id
            )
        options = [option for option in (warm, cold) if option is not None]
        if not options:
            return Rejected(
                Reason.COLD_MODEL,
                f"{request.model} is not loaded, and no device can make room for it now",
                retry_after_ns=SECOND_NS,
            )
        return _refusal(request, model, now, min(options, key=_guarded), warm)


def _soonest(
    state: SchedulerState, model: ModelState, request: Request, now: int
) -> Forecast | None:
    """On the device with the weights that is free first: the best one where devices are alike, and
    asked for every request.
    """
    first: DeviceMirror | None = None
    start_ns = 0
    for device in model.holders:
        device_start_ns = device.start_at(now)
        if first is None or device_start_ns < start_ns:
            first, start_ns = device, device_start_ns
    if first is None:
        return None
    return finish_on(state, model, request, first, now=now, start_ns=start_ns)


def _best(state: SchedulerState, model: ModelState, request: Request, now: int) -> Forecast:
    """The same on the best device that holds the weights."""
    options = [
        finish_on(state, model, request, device, now=now, start_ns=device.start_at(now))
        for device in model.holders
    ]
    return min(options, key=_guarded)


def _best_shared(state: SchedulerState, model: ModelState, request: Request, now: int) -> Forecast:
    """The same, taking into account that other holders take a part of those who wait. It looks at
    each of them closely, so it is asked only where the request would be refused otherwise.
    """
    rows_of = [rows_in_time(state, device, request, now) for device in model.holders]
    options = [
        finish_on(
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
    return min(options, key=_guarded)


def _guarded(option: Forecast) -> int:
    return option[1]


def _best_cold(
    state: SchedulerState, model: ModelState, request: Request, now: int
) -> Forecast | None:
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
    rows_elsewhere = sum(rows_in_time(state, device, request, now) for device in model.holders)
    return finish_on(
        state,
        model,
        request,
        soonest[1],
        now=now,
        start_ns=start_ns,
        rows_elsewhere=rows_elsewhere,
    )


def _weights_ready_at(
    state: SchedulerState, model: ModelState, device: DeviceMirror, now: int, pending_ns: int
) -> int | None:
    """When weights that are not resident there could be; None where no LOAD is possible now."""
    name = model.name
    record = device.weights.get(name)
    if record is not None:
        if record.state is WeightsState.LOADING:
            return record.ready_at_ns
        if record.state is WeightsState.RESIDENT or record.retry_at_ns > now:
            return None
    if not model.fits(device) or (state.pinned and not _fits_beside_pinned(state, model, device)):
        return None
    return device.load_start_at(now) + pending_ns + device.estimates(name).load_plan_ns


def _fits_beside_pinned(state: SchedulerState, model: ModelState, device: DeviceMirror) -> bool:
    """Whether the device would have room if everything that may go had gone."""
    kept = sum(
        device.weights[name].num_pages
        for name in state.pinned
        if name != model.name and device.weights_state(name) in HELD
    )
    return model.spec.num_pages(device.spec.page_bytes) <= device.spec.total_pages - kept


def _refusal(
    request: Request,
    model: ModelState,
    now: int,
    best: Forecast,
    warm: Forecast | None,
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
