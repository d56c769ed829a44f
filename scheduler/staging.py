"""Models that are about to take over from others: their weights come early, and they are measured.

Owns what a staged model is given before anybody asks for it: a LOAD where the one it replaces is
resident, and trials: executions without a request, of the batches of its profile, which was
measured beside everything else on that machine. It must never take anything from a request: a LOAD
comes after all that somebody waits for, a trial onto a device with nothing else to do.
"""

import functools
import math
from collections import deque
from typing import Final

from scheduler.actions import Code, Infer, InferResult, LoadResult
from scheduler.device import DeviceMirror, Trial, Weights, WeightsState
from scheduler.policies.residency import LoadPlan
from scheduler.policies.residency.room import can_load, least_valuable, make_room
from scheduler.spec import MILLISECOND_NS
from scheduler.state import ModelState, SchedulerState, Staging

# Of each batch size and shape class: the median of three forgives one hiccup.
NUM_TRIALS: Final = 3
# Nobody who comes meanwhile waits longer than this for a trial. Larger batches are not tried: their
# estimates borrow from the smaller ones. Batches of one row are: nobody could be served without.
MAX_TRIAL_NS: Final = 20 * MILLISECOND_NS
# Of a device's time, at most one part in so many is for trials.
TRIAL_SHARE: Final = 20
# A trial is for a device that is idle now: once it is not, the trial must not start any more.
TRIAL_WINDOW_NS: Final = MILLISECOND_NS
# It came too late, since the worker was busy or far away: the next attempt.
RETRY_NS: Final = 10 * MILLISECOND_NS


def load_for(state: SchedulerState, device: DeviceMirror, now: int) -> LoadPlan | None:
    """The LOAD of a staged model onto this device, if it should be there and there is room."""
    for name, staging in state.staged.items():
        model = state.models[name]
        if _is_wanted_on(model, staging, device) and can_load(device, model, now):
            plan = _room_for(state, device, model, staging, now)
            if plan is not None:
                return plan
    return None


def is_settled(state: SchedulerState, name: str, now: int) -> bool:
    """Whether nothing more will come of waiting: its weights are wherever they should be and there
    is room, and all trials are over.
    """
    model, staging = state.models[name], state.staged[name]
    return not any(
        device.weights_state(name) is WeightsState.LOADING
        or any(trial.model == name for trial in device.trials)
        or (
            not device.is_stopping
            and _is_wanted_on(model, staging, device)
            and can_load(device, model, now)
            and _room_for(state, device, model, staging, now) is not None
        )
        for device in model.offered_by
    )


def on_weights_arrived(state: SchedulerState, device: DeviceMirror, name: str, now: int) -> None:
    """Its trials are due; and it is worth as much as the one it replaces, so that it stays."""
    staging = state.staged.get(name)
    if staging is None:
        return
    old = device.weights.get(staging.replaces)
    if old is not None:
        device.weights[name].use_score = old.score(now)
    spec = device.offered[name]
    for sample, shape in enumerate(spec.profile.shapes):
        estimate = device.estimates(name).exec(shape.shape_key, shape.elements)
        for size in spec.batch_sizes:
            if size == 1 or estimate.plan[size] <= MAX_TRIAL_NS:
                device.trials.append(
                    Trial(name, sample, shape.shape_key, shape.elements, size, NUM_TRIALS)
                )


def next_trial(device: DeviceMirror, now: int) -> Trial | None:
    """What the idle device should execute now. Drops what it cannot: the weights have left."""
    if now < device.next_trial_ns:
        return None
    trials = device.trials
    while trials:
        if device.is_resident(trials[0].model):
            return trials[0]
        trials.popleft()
    return None


def begin_trial(device: DeviceMirror, trial: Trial, action_id: int, now: int) -> Infer:
    """The order, with what it holds of the device reserved."""
    estimate = device.estimates(trial.model).exec(trial.shape_key, trial.elements)
    expected_ns = estimate.plan[trial.batch_size]
    start_ns = device.start_at(now)
    device.weights[trial.model].num_infers += 1
    device.num_infers += 1
    device.exec_lane.add(action_id, start_ns=start_ns, duration_ns=expected_ns)
    return Infer(
        action_id,
        trial.model,
        trial.batch_size,
        (),
        (),
        now,
        start_ns + TRIAL_WINDOW_NS,
        expected_ns,
        trial.sample,
    )


def on_trial_finished(
    state: SchedulerState, device: DeviceMirror, action: Infer, result: InferResult, now: int
) -> None:
    """Let its duration enter the estimates; one that the engine fails on is the last."""
    trials = device.trials
    trial = trials.popleft() if trials and _is_of(trials[0], action) else None
    if result.code is Code.OK:
        duration_ns = max(1, min(result.output.end_ns, now) - result.input.begin_ns)
        device.next_trial_ns = now + (TRIAL_SHARE - 1) * duration_ns
        if trial is not None:
            estimates = device.estimates(action.model)
            estimates.measured_ns = now
            estimates.exec(trial.shape_key, trial.elements).observe(trial.batch_size, duration_ns)
            if trial.num_left > 1:
                trials.appendleft(
                    Trial(
                        trial.model,
                        trial.sample,
                        trial.shape_key,
                        trial.elements,
                        trial.batch_size,
                        trial.num_left - 1,
                    )
                )
    elif result.code is Code.TOO_LATE:
        device.next_trial_ns = now + RETRY_NS
        if trial is not None:
            trials.appendleft(trial)
    else:
        _drop_trials(device, action.model)
        staging = state.staged.get(action.model)
        if staging is not None and result.code in (Code.ENGINE_ERROR, Code.INVALID_INPUT):
            staging.problem = (
                f"a batch of {action.batch_size} failed on {device.worker_id}: {result.message}"
            )


def on_load_failed(
    state: SchedulerState, device: DeviceMirror, result: LoadResult, name: str
) -> None:
    """Weights that cannot be copied will not be served by anybody."""
    staging = state.staged.get(name)
    if staging is not None and result.code is Code.LOAD_FAILED:
        staging.problem = f"its weights could not be loaded on {device.worker_id}: {result.message}"


def end(state: SchedulerState, name: str) -> None:
    """No more of it. A trial in flight is finished, and then forgotten."""
    if state.staged.pop(name, None) is not None:
        for device in state.devices.values():
            _drop_trials(device, name)


def _is_of(trial: Trial, action: Infer) -> bool:
    return (trial.model, trial.sample, trial.batch_size) == (
        action.model,
        action.sample,
        action.batch_size,
    )


def _is_wanted_on(model: ModelState, staging: Staging, device: DeviceMirror) -> bool:
    """Once on each device that has the old one; a model that replaces none, on one device."""
    if device.worker_id in staging.loaded_on:
        return False
    if staging.replaces:
        return device.is_resident(staging.replaces)
    return model.is_cold and not staging.loaded_on


def _room_for(
    state: SchedulerState, device: DeviceMirror, model: ModelState, staging: Staging, now: int
) -> LoadPlan | None:
    """Free pages, or those of models that nobody waits for; never those of the one it replaces. A
    model that replaces none takes nobody's: nobody has asked for it yet.
    """

    value = functools.partial(_least_valuable_but, staging.replaces)
    plan = make_room(state, device, model, now, value)
    if plan is None or not plan.evict:
        return plan
    is_costly = any(
        other is not None and other.num_queued for other in map(state.models.get, plan.evict)
    )
    if is_costly or not staging.replaces or staging.replaces in plan.evict:
        return None
    return plan


def _least_valuable_but(kept: str, candidate: tuple[str, Weights], now: int) -> float:
    return math.inf if candidate[0] == kept else least_valuable(candidate, now)


def _drop_trials(device: DeviceMirror, name: str) -> None:
    device.trials = deque(trial for trial in device.trials if trial.model != name)
