"""Applies what the policies decide: reserves, sends, and sets the next time to look.

Everything an action needs is reserved before it is sent and released on its result
(scheduler/results.py), on the failure path too.
"""

from itertools import islice
from typing import Final

from scheduler import staging
from scheduler.actions import Action, EvictWeights, Infer, LoadWeights, ReleaseModel
from scheduler.device import DeviceMirror, Outstanding, WeightsState
from scheduler.events import Expired, Reason, Send
from scheduler.ledger import Ledger
from scheduler.policies.batching import BatchPlan, Deferred, FinishedBatch
from scheduler.policies.protocols import Policy
from scheduler.policies.residency import LoadPlan
from scheduler.request import Request, RequestState
from scheduler.spec import MILLISECOND_NS
from scheduler.state import ModelState
from scheduler.work_tracker import WorkTracker

FOREVER_NS: Final = 2**62
# A device looks so often for a LOAD that nobody waits for; of those that have nothing to do, so
# many are asked for a copy of a model whose requests have to wait.
SPECULATE_EVERY_NS: Final = 2 * MILLISECOND_NS
MAX_IDLE: Final = 4


class Planner:
    """One call per device or model that an event touched; no walk over the others."""

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger = ledger
        self._state = ledger.state
        self._batching = policy.batching
        self._residency = policy.residency
        self._is_speculative = policy.residency.is_speculative
        self._schedule_ahead = policy.schedule_ahead
        self._max_outstanding = (
            policy.max_outstanding_infers or ledger.state.config.max_outstanding_infers
        )
        # all and only devices whose last batch was deferred, until they are sent one, by worker id
        self._deferring: dict[str, DeviceMirror] = {}
        self._next_action_id = 1

    def plan_for(self, model: ModelState, now: int) -> None:
        """Something changed for this model only: look at the devices it concerns."""
        if model.holders:
            if len(model.holders) == 1:
                self._plan_infers(model.holders[0], now)
            else:
                by_free = [(d.exec_lane.free_at(now), i, d) for i, d in enumerate(model.holders)]
                by_free.sort()
                for free_ns, _, device in by_free:
                    if not model.num_queued:
                        break
                    send_at_ns = free_ns - device.schedule_ahead_ns
                    if send_at_ns <= now or not device.is_awaited_by(send_at_ns):
                        self._plan_infers(device, now)
        if model.needs_load:
            idle = [device for device in model.offered_by if not device.num_moves]
            for device in sorted(idle, key=_roomiest_first):
                self.plan_loads(device, now)
                if not model.needs_load:
                    break
        elif self._is_speculative and model.num_queued and not model.loading_on:
            for device in list(islice(self._state.idle.values(), MAX_IDLE)):
                if self._plan_copy(device, model, now):
                    break

    def plan_refused_cold(self, model: ModelState, now: int) -> None:
        """A request was refused because the weights are absent: have them for the next one."""
        if model.is_cold:
            self._state.refused_cold.pop(model.name, None)
            self._state.refused_cold[model.name] = None
            for device in list(model.offered_by):
                if not model.is_cold:
                    break
                self.plan_loads(device, now)

    def plan_released(self, model: ModelState, now: int) -> None:
        """Requests of this model left its queue unsent: others may use what was kept for them."""
        for device in list(model.holders):
            self.plan(device, now)

    def plan(self, device: DeviceMirror, now: int) -> None:
        # LOADs first: where lanes are shared, an Infer sent now would stand in their way, and a
        # LOAD that is worth it has requests waiting that are cold until it ends.
        self.plan_loads(device, now)
        self._plan_infers(device, now)

    def _plan_infers(self, device: DeviceMirror, now: int) -> None:
        while device.num_infers < self._max_outstanding and not device.is_stopping:
            send_at_ns = device.exec_lane.free_at(now) - device.schedule_ahead_ns
            if send_at_ns > now:
                if not device.is_awaited_by(send_at_ns) and (
                    device.trials or device.peek_ready() is not None
                ):
                    self._look_again(device, device.exec_lane, send_at_ns, now)
                return
            if device.peek_ready() is None:
                if device.trials:
                    self._plan_trial(device, now)
                return
            plan = self._batching.next_infer(self._state, device, now)
            if plan is None:
                return
            if isinstance(plan, Deferred):
                self._ledger.wake_by(device, max(plan.until_ns, now + 1))
                self._deferring[device.worker_id] = device
                return
            self._deferring.pop(device.worker_id, None)
            self._send_infer(device, plan, now)
            self._look_at_deferring(self._state.models[plan.queue.model], now)

    def has_open_lane(self, model: ModelState, now: int) -> bool:
        """Whether a device with the weights could be sent an Infer now: the conditions of
        `_plan_infers`, without asking for a batch, by which batching may learn something.
        """
        return any(
            device.num_infers < self._max_outstanding
            and not device.is_stopping
            and device.exec_lane.free_at(now) - device.schedule_ahead_ns <= now
            for device in model.holders
        )

    def _plan_trial(self, device: DeviceMirror, now: int) -> None:
        """Measure a staged model while there is nothing else to do, and nothing under way that
        somebody may wait for.
        """
        if device.num_infers or device.num_moves:
            return
        trial = staging.next_trial(device, now)
        if trial is None:
            if device.trials:
                self._ledger.wake_by(device, device.next_trial_ns)
            return
        action = staging.begin_trial(device, trial, self._new_action_id(), now)
        del self._state.idle[device.worker_id]
        generation = device.weights[trial.model].generation
        self._remember(device, action, action.expected_duration_ns, [], generation)
        self._ledger.out.append(Send(device.worker_id, action))

    def _look_at_deferring(self, model: ModelState, now: int) -> None:
        """What others had deferred may have changed, now that some of its requests were sent."""
        if self._deferring and model.num_queued:
            for other in list(model.holders):
                if other.worker_id in self._deferring:
                    self._plan_infers(other, now)

    def on_fleet_changed(self, now: int, *, gone: DeviceMirror | None = None) -> None:
        """A device has joined, or takes no more work: what others deferred for it may be due."""
        self._state.fleet_version += 1
        if gone is not None:
            self._deferring.pop(gone.worker_id, None)
        for device in list(self._deferring.values()):
            self._plan_infers(device, now)

    def plan_loads(self, device: DeviceMirror, now: int) -> None:
        state = self._state
        if device.num_moves or device.is_stopping or not self._may_load(device):
            return
        if not state.may_load:
            # Nobody waits for it: a look now and then is enough.
            if now < device.speculates_at_ns:
                return
            device.speculates_at_ns = now + SPECULATE_EVERY_NS
        send_at_ns = device.load_lane.free_at(now) - device.schedule_ahead_ns
        if send_at_ns > now:
            self._look_again(device, device.load_lane, send_at_ns, now)
            return
        plan = self._residency.next_load(state, device, now)
        if plan is None and state.staged:
            plan = staging.load_for(state, device, now)
        if plan is None:
            if device.retry_until_ns > now:
                self._ledger.wake_by(device, device.next_retry_ns(now))
        else:
            self._carry_out(device, plan, now)

    def _plan_copy(self, device: DeviceMirror, model: ModelState, now: int) -> bool:
        """Let a device with nothing to do take a copy of what waits elsewhere; whether it does."""
        send_at_ns = device.load_lane.free_at(now) - device.schedule_ahead_ns
        if device.num_moves or device.is_stopping or send_at_ns > now:
            return False
        plan = self._residency.copy_of(self._state, device, model, now)
        if plan is not None:
            self._carry_out(device, plan, now)
        return plan is not None

    def _carry_out(self, device: DeviceMirror, plan: LoadPlan, now: int) -> None:
        for name in plan.evict:
            self.send_evict(device, name, now)
        self._send_load(device, plan.model, now)
        for name in plan.evict:
            displaced = self._state.models.get(name)
            if displaced is not None and displaced.needs_load:
                self.plan_for(displaced, now)  # another device may take it in

    def _send_infer(self, device: DeviceMirror, plan: BatchPlan, now: int) -> None:
        queue, requests, start_ns = plan.queue, plan.requests, plan.start_ns
        model = self._state.models[queue.model]
        head = queue.head
        for request in requests:
            if request is queue.head:
                queue.pop_head()
            else:
                queue.remove(request)
            request.move_to(RequestState.DISPATCHED)
        self._state.count_queued(model, -len(requests))
        if plan.given_up:
            self._give_up(model, plan, now)
        if queue.head is not head:
            self._ledger.announce(model, queue)
        record = device.touch(queue.model, plan.rows, now)
        record.num_infers += 1
        device.num_infers += 1
        self._state.idle.pop(device.worker_id, None)
        action = Infer(
            self._new_action_id(),
            queue.model,
            plan.executed_rows,
            tuple([request.request_id for request in requests]),
            tuple([request.rows for request in requests]),
            start_ns - device.schedule_ahead_ns,
            plan.latest_ns if plan.latest_ns > start_ns else start_ns,
            plan.expected_ns,
        )
        # Who came later than that, or had to wait for one of many outstanding, says nothing of it.
        lane = device.exec_lane
        is_held = (
            len(lane) > 0
            and requests[0].arrival_ns <= lane.free_at(now) - device.schedule_ahead_ns
            and device.num_infers < self._max_outstanding
        )
        lane.add(action.action_id, start_ns=start_ns, duration_ns=plan.expected_ns)
        device.exec_shares.add(
            single_ns=device.exec_estimate(queue).plan[1], duration_ns=plan.expected_ns, now=now
        )
        outstanding = self._remember(
            device, action, plan.expected_ns, requests, record.generation, is_held
        )
        self._ledger.watch_deadlines(outstanding)
        self._ledger.out.append(Send(device.worker_id, action))

    def _give_up(self, model: ModelState, plan: BatchPlan, now: int) -> None:
        """Answer those who are left out so that a batch may be larger, or start before them."""
        if self._state.waits_to_the_end:
            for request in plan.given_up:
                request.is_given_up = True
            return
        for request in plan.given_up:
            plan.queue.remove(request)
            waited_ms = (now - request.arrival_ns) / 1e6
            detail = f"waited {waited_ms:.1f} ms, and was given up for a batch of {plan.rows}"
            outcome = Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail)
            self._ledger.close(request, RequestState.EXPIRED, outcome)
        self._state.count_queued(model, -len(plan.given_up))

    def _send_load(self, device: DeviceMirror, name: str, now: int) -> None:
        model = self._state.models[name]
        record = device.record(name)
        record.move_to(WeightsState.LOADING, name)
        record.generation += 1
        expected_ns = device.estimates(name).load_plan_ns
        start_ns = device.load_start_at(now)
        record.ready_at_ns = start_ns + expected_ns
        device.pages_free -= record.num_pages
        device.num_moves += 1
        model.loading_on.append(device)
        model.wants_replica = False
        self._state.refused_cold.pop(name, None)
        device.released.pop(name, None)
        if name in self._state.staged:
            self._state.staged[name].loaded_on[device.worker_id] = None
        latest_ns = max(
            (queue.last_deadline_ns for queue in model.queues.values()), default=FOREVER_NS
        )
        action = LoadWeights(
            self._new_action_id(),
            name,
            record.num_pages,
            start_ns - device.schedule_ahead_ns,
            max(latest_ns - expected_ns, start_ns),
            expected_ns,
        )
        device.load_lane.add(action.action_id, start_ns=start_ns, duration_ns=expected_ns)
        self._remember(device, action, expected_ns, [], record.generation)
        self._ledger.out.append(Send(device.worker_id, action))

    def send_evict(self, device: DeviceMirror, name: str, now: int) -> None:
        record = device.weights[name]
        record.move_to(WeightsState.EVICTING, name)
        self.drop_holder(name, device)
        # The worker frees pages in the order of arrival, so the LOAD sent next may count on them.
        device.pages_free += record.num_pages
        start_ns = device.load_start_at(now) - device.schedule_ahead_ns
        action = EvictWeights(self._new_action_id(), name, start_ns, FOREVER_NS)
        self._remember(device, action, 0, [], record.generation)
        self._ledger.out.append(Send(device.worker_id, action))

    def _may_load(self, device: DeviceMirror) -> bool:
        """Whether a look for something to LOAD can find anything."""
        return self._state.may_load or (self._state.num_queued > 0 and self._is_speculative)

    def on_executed(
        self, device: DeviceMirror, batch: FinishedBatch, late_ns: int | None, now: int
    ) -> None:
        """Let the policy learn from it. `late_ns` is how long after the execution before it had
        ended the order reached the worker, of an order that was held back; else None.
        """
        state = self._state
        if state.tenants is not None:
            state.tenants.charge(batch.requests, batch.duration_ns, len(state.devices), now)
        self._batching.on_finished(device, batch, now)
        if late_ns is not None:
            self._schedule_ahead.on_held(device, late_ns, now)

    def first_schedule_ahead_ns(self) -> int:
        """Of a device that joins."""
        return self._schedule_ahead.first_ns(self._state.config.schedule_ahead_ns)

    def overlooked(self, device: DeviceMirror, now: int) -> str | None:
        """What this device could be sent, though no look at it is planned when it could.

        Between two events that must be None: it would be lost. For invariants.
        """
        state = self._state
        if device.is_stopping:
            return None
        if device.num_infers < self._max_outstanding:
            plan = self._batching.next_infer(state, device, now)
            if isinstance(plan, Deferred):
                is_awaited = device.is_awaited_by(max(plan.until_ns, now + 1))
                if not is_awaited and not self._is_awaited(device, device.exec_lane, now):
                    return "what was deferred"
            elif plan is not None and not self._is_awaited(device, device.exec_lane, now):
                return f"{len(plan.requests)} requests of {plan.queue.model}"
        if not device.num_moves and self._may_load(device):
            load = self._residency.next_load(state, device, now)
            # What is loaded on speculation is looked for at some events only.
            if (
                load is not None
                and (state.models[load.model].needs_load or state.models[load.model].is_cold)
                and not self._is_awaited(device, device.load_lane, now)
            ):
                return f"a LOAD of {load.model}"
        return None

    def _is_awaited(self, device: DeviceMirror, lane: WorkTracker, now: int) -> bool:
        """Whether the device will be looked at by the time something may be sent to its lane."""
        send_at_ns = lane.free_at(now) - device.schedule_ahead_ns
        if send_at_ns <= now:
            return False
        return lane.is_overdue(now) or device.is_awaited_by(send_at_ns)

    def _look_again(
        self, device: DeviceMirror, lane: WorkTracker, send_at_ns: int, now: int
    ) -> None:
        """When something may be sent to the lane. While its head is overdue no instant is: what is
        expected moves on with the clock, and the head's result is what the device is looked at for.
        """
        if not lane.is_overdue(now):
            self._ledger.wake_by(device, send_at_ns)

    def evict_unserved(self, device: DeviceMirror, name: str, now: int) -> None:
        """Weights of a model that is not served any more go as soon as nothing uses them."""
        record = device.weights[name]
        if (
            record.is_unserved
            and record.state is WeightsState.RESIDENT
            and not record.num_infers
            and not device.is_stopping
        ):
            self.send_evict(device, name, now)

    def release_unloaded(self, device: DeviceMirror, name: str, now: int) -> None:
        """What was unloaded goes from the host too, once the device has no pages of it."""
        if (
            name in self._state.unloaded
            and name in device.offered
            and name not in device.released
            and device.weights_state(name) is WeightsState.ABSENT
            and not device.is_stopping
        ):
            device.released[name] = None
            start_ns = device.load_start_at(now) - device.schedule_ahead_ns
            action = ReleaseModel(self._new_action_id(), name, start_ns, FOREVER_NS)
            self._remember(device, action, 0, [], 0)
            self._ledger.out.append(Send(device.worker_id, action))

    def drop_holder(self, name: str, device: DeviceMirror) -> None:
        """The weights are on their way out there, or were never there."""
        model = self._state.models.get(name)
        if model is not None and device in model.holders:
            model.holders.remove(device)
            if model.wants_load:
                self._state.want(model)

    def _remember(
        self,
        device: DeviceMirror,
        action: Action,
        expected_ns: int,
        requests: list[Request],
        generation: int,
        is_held: bool = False,
    ) -> Outstanding:
        outstanding = Outstanding(
            action,
            sent_ns=self._ledger.now,
            expected_ns=expected_ns,
            requests=requests,
            generation=generation,
            is_held=is_held,
        )
        device.outstanding[action.action_id] = outstanding
        return outstanding

    def _new_action_id(self) -> int:
        action_id = self._next_action_id
        self._next_action_id += 1
        return action_id


def _roomiest_first(device: DeviceMirror) -> int:
    return -device.pages_free
