"""The book of open requests: queues, states, deadlines, and the one reply each.

The parts of the scheduler share it; nothing else writes requests, queues or timers.
"""

from collections import Counter

from scheduler.device import DeviceMirror, Outstanding
from scheduler.events import Command, Expired, Outcome, Reason, Reply
from scheduler.model_queue import ModelQueue
from scheduler.request import Request, RequestState
from scheduler.state import ModelState, SchedulerState
from scheduler.timers import Timers


class Ledger:
    """`out` collects the commands of the event being handled; `now` is its instant."""

    def __init__(self, state: SchedulerState) -> None:
        self.state = state
        self.requests: dict[int, Request] = {}  # all and only open requests
        self.timers = Timers()
        self.anomalies: Counter[str] = Counter()
        self.out: list[Command] = []
        self.now = 0

    def enqueue(self, model: ModelState, request: Request) -> None:
        queue = model.queues.get(request.batch_key)
        if queue is None:
            queue = model.queues[request.batch_key] = self.new_queue(request)
        self.state.count_queued(model, 1)
        if queue.push(request):
            self.announce(model, queue)
        if model.wants_load:
            self.state.want(model)

    def new_queue(self, request: Request) -> ModelQueue:
        """An empty one for requests of this kind."""
        return ModelQueue(
            request.model,
            request.batch_key,
            request.shape_key,
            request.elements,
            keeps_arrival_order=self.state.keeps_arrival_order,
            keeps_tenants=self.state.tenants is not None,
        )

    def dequeue(self, model: ModelState, request: Request) -> None:
        queue = model.queues[request.batch_key]
        was_head = queue.head is request
        if was_head:
            queue.pop_head()
        else:
            queue.remove(request)
        self.state.count_queued(model, -1)
        if was_head:
            self.announce(model, queue)

    def dequeue_all(self, model: ModelState) -> list[Request]:
        """Empty the model's queues; the requests stay open, and it is the caller's to go on."""
        requests: list[Request] = []
        for queue in model.queues.values():
            queue.latest_start_ns = None
            self.timers.clear(queue)
            requests += queue
        model.queues.clear()
        if requests:
            self.state.count_queued(model, -len(requests))
        model.wants_replica = False
        return requests

    def announce(self, model: ModelState, queue: ModelQueue) -> None:
        """The queue's head changed: tell the devices its new key, and set its expiry."""
        head = queue.head
        if head is None:
            queue.latest_start_ns = None
            self.timers.clear(queue)
            del model.queues[queue.batch_key]
            model.wants_replica = model.wants_replica and model.num_queued > 0
            return
        device = model.reference()
        estimate = device.exec_estimate(queue)
        latest_ns = head.deadline_ns - estimate.guard[head.rows] - self.state.margin_ns(device)
        if latest_ns != queue.latest_start_ns:
            queue.latest_start_ns = latest_ns
            for holder in model.holders:
                holder.push_ready(latest_ns, queue)
        patience_ns = 0 if self.state.waits_to_the_end else estimate.plan[head.rows]
        self.timers.set(queue, head.deadline_ns - patience_ns)

    def close(self, request: Request, state: RequestState, outcome: Outcome) -> None:
        request.move_to(state)
        del self.requests[request.request_id]
        self.reply(request.request_id, outcome)

    def reply(self, request_id: int, outcome: Outcome) -> None:
        self.out.append(Reply(request_id, outcome))

    def expire_heads(self, queue: ModelQueue, now: int) -> None:
        """Answer the heads that cannot make it any more even if they started this instant."""
        model = self.state.models[queue.model]
        head = queue.head
        latest_ns = 0
        while head is not None:
            latest_ns = head.deadline_ns
            if not self.state.waits_to_the_end:
                latest_ns -= model.quickest_ns(queue, head.rows)
            if now < latest_ns:
                break
            queue.pop_head()
            self.state.count_queued(model, -1)
            waited_ms = (now - head.arrival_ns) / 1e6
            detail = f"waited {waited_ms:.1f} ms for a device; too late to execute now"
            self.close(
                head,
                RequestState.EXPIRED,
                Expired(Reason.DEADLINE_EXCEEDED_QUEUED, detail),
            )
            head = queue.head
        self.announce(model, queue)
        if queue.wake_at_ns is not None and queue.wake_at_ns <= now:
            self.timers.set(queue, latest_ns)  # a quicker device than the reference has time still

    def expire_executing(self, outstanding: Outstanding, now: int) -> None:
        """Answer the members of a batch whose deadline is here, without waiting for it."""
        for request in outstanding.requests:
            if request.state is RequestState.DISPATCHED and now >= request.answer_by_ns:
                detail = f"still executing after {(now - request.arrival_ns) / 1e6:.1f} ms"
                self.close(
                    request,
                    RequestState.EXPIRED,
                    Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, detail),
                )
        self.watch_deadlines(outstanding)

    def wake_by(self, device: DeviceMirror, at_ns: int) -> None:
        """Look at the device then, or earlier if somebody else wants that."""
        if not device.is_awaited_by(at_ns):
            self.timers.set(device, at_ns)

    def watch_deadlines(self, outstanding: Outstanding) -> None:
        first_ns: int | None = None
        for request in outstanding.requests:
            if request.state is RequestState.DISPATCHED and (
                first_ns is None or request.answer_by_ns < first_ns
            ):
                first_ns = request.answer_by_ns
        if first_ns is not None:
            self.timers.set(outstanding, first_ns)
