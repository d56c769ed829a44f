"""The worker's main thread: membership in a gateway, orders to the lanes, results to the gateway.

It owns the session and the conversation: it answers pings at once, verifies orders, hands them to
the lanes and sends exactly one report for each. It never executes, loads or decides. All it does
takes microseconds, so a late Pong is never its doing.

A *session* is one membership, from a Welcome until the gateway is lost. Orders die with their
session: what runs is finished without a report, what waits is dropped, and Hello is said only when
both lanes are quiet, so that the pages it reports are true.
"""

import logging
import os
import queue
import time
import uuid
from collections.abc import Callable, Mapping

import zmq

from gpuworker import linux, orders
from gpuworker.accepted import (
    AcceptedEvict,
    AcceptedInfer,
    AcceptedLoad,
    AcceptedRelease,
    Bench,
    Finished,
    InputPhase,
)
from gpuworker.additions import Additions, Provide
from gpuworker.backend import Backend
from gpuworker.curve_keys import CurveKeys
from gpuworker.gateway_link import GatewayLink
from gpuworker.lane import Flush, LaneThread, Stop, Work
from gpuworker.page_cache import PageCache
from scheduler import wire
from scheduler.actions import Action, Code, EvictWeights, Infer, LoadWeights, ReleaseModel, Result
from scheduler.spec import SECOND_NS, ModelSpec

_log = logging.getLogger("gpuworker")

EXIT_DONE = 0
EXIT_BROKEN = 1
EXIT_REFUSED = 3

# The gateway pings five times a second; fifteen missed pings are a gateway that is gone.
GATEWAY_SILENCE_NS = 3 * SECOND_NS
# Hello is repeated until it is answered: often enough to be back a second after a restart.
HELLO_INTERVAL_NS = 1 * SECOND_NS
# A gateway that refuses our connection is asked again as often; its keys may be read anew. The log
# says so less often.
RETRY_INTERVAL_NS = 1 * SECOND_NS
REFUSAL_LOG_INTERVAL_NS = 30 * SECOND_NS
# A gateway that knows of a later one sends us away. If none was found for so long, there is none.
YIELD_NS = 30 * SECOND_NS
# How often the main thread looks at the clock when nothing arrives, joined and not.
TICK_MS = 100
JOINING_TICK_MS = 20
# Lanes wake from timed waits this exactly instead of 50 µs late: windows are judged in µs.
TIMER_SLACK_NS = 1_000
# Long work takes long turns, so that whoever has short ones (a gateway on the same core) need not
# wait for one to end: with equal turns a wake-up in the middle of a batch came up to 4 ms late.
LANE_SLICE_NS = 10_000_000
# With short turns alone, whoever has just had a few milliseconds' worth of them must wait for as
# long. On a CPU of its own, or among several, a lane does not need to be nice.
NICE_ON_ONE_CPU = 10
# A lane that is at one thing for so long will not come back: nobody waits for a batch of a minute.
STUCK_AFTER_NS = 60 * SECOND_NS
# How long a lane that is still busy may delay the exit once the worker is refused or broken.
JOIN_TIMEOUT_S = 1.0
# A session no gateway ever has: that of orders the worker gives itself.
_OWN_SESSION = -1
_ANY_TIME_NS = 2**63 - 1


class Worker:
    """One device's main thread. `run` may be called once and returns the process's exit code.

    `beat` is told, whenever this thread turns, whether a gateway has the worker.
    """

    def __init__(
        self,
        *,
        connect: str,
        name: str,
        backend: Backend,
        parent_pid: int | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        keys: CurveKeys | None = None,
        provide: Provide = lambda _: None,
        beat: Callable[[bool], None] | None = None,
    ) -> None:
        self._name = name
        self._connect = connect
        self._incarnation = uuid.uuid4().hex
        self._backend = backend
        self._telemetry = backend.telemetry
        self._parent_pid = parent_pid
        self._clock = clock
        self._beat = beat
        self._pages = PageCache(backend.device.total_pages)
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._exec_lane = self._lane("exec")
        self._load_lane = self._lane("load")
        # In the order in which an Infer passes through them.
        self._lanes = [self._exec_lane, self._load_lane]
        self._flushed_first = [self._exec_lane, self._load_lane]
        self._input_lane: LaneThread | None = None
        deliver: Callable[[Work], None] | None = None
        if backend.overlaps_io:
            # What is still in its input phase comes into the EXEC lane before that is flushed.
            self._input_lane = self._lane("input", on_flushed=lambda: self._exec_lane.put(Flush()))
            output_lane = self._lane("output")
            deliver = output_lane.put
            self._lanes = [self._input_lane, *self._lanes, output_lane]
            self._flushed_first = [self._input_lane, self._load_lane]
        self._bench = Bench(
            backend, self._pages, self._on_lane_finished, clock, deliver, self._telemetry
        )
        self._link = GatewayLink(connect, context, keys)
        self._additions = Additions(backend, provide=provide, ring=self._link.ring)

        self._session = 0
        self._is_joined = False
        self._refused_models: Mapping[str, str] = {}
        self._num_accepted = 0  # handed to a lane and not yet finished, of whatever session
        self._max_frame_bytes = 0  # of a report; 0: no limit
        self._hello_due_ns = 0
        # The gateway that has had us, and its epoch; since when an earlier one says so.
        self._gateway, self._epoch = "", 0
        self._yields_since_ns: int | None = None
        self._retry_due_ns: int | None = None  # to connect anew, after a refusal
        self._refusals_logged: dict[str, int] = {}  # when each may be again
        self._heard_ns = 0
        self._stop_reason: str | None = None
        self._is_stopping = False
        self._broken_reason: str | None = None
        self._exit_code: int | None = None
        self.num_malformed = 0

    def request_stop(self, reason: str) -> None:
        """Finish what runs, report, say Goodbye and return. Safe in signal handlers and threads."""
        self._stop_reason = reason
        self._link.ring()

    def run(self) -> int:
        """Serve until stopped, dismissed, refused or broken, then free everything."""
        for lane in self._lanes:
            lane.start()
        try:
            while True:
                self._see_to_what_is_due(self._clock())
                if self._exit_code is not None:
                    return self._exit_code
                if self._beat is not None:
                    self._beat(self._is_joined)
                frames = self._link.wait(TICK_MS if self._is_joined else JOINING_TICK_MS)
                while not self._finished.empty():
                    self._on_finished(self._finished.get())
                for offer in self._additions.take():
                    self._tell(offer)
                if frames is not None:
                    self._on_frames(frames)
        finally:
            if self._exit_code == EXIT_BROKEN:
                self._leave()  # what a broken device is asked to give back may fail, or never end
            else:
                self.close()

    # What arrives

    def _on_frames(self, frames: list[wire.Buffer]) -> None:
        now = self._heard_ns = self._clock()
        try:
            message = wire.decode_to_worker(frames[0])
        except wire.WireError as error:
            self.num_malformed += 1
            _log.warning("unreadable message, the %d. so far: %s", self.num_malformed, error)
            self._link.send(wire.Unreadable(str(error)))
            # It may have been an order, which nobody can answer now: both sides start over.
            self._end_session("a message could not be read")
            return
        match message:
            case wire.Ping():
                telemetry = self._telemetry
                sample = None if telemetry is None else telemetry.last
                self._link.send(wire.Pong(message.sent_ns, now, self._clock(), sample))
            case wire.Order():
                self._on_order(message, frames[1:], now)
            case wire.Welcome():
                self._on_welcome(message)
            case wire.AddModel():
                if self._is_joined:
                    self._on_add_model(message.spec)
            case wire.DropModel():
                if self._is_joined:
                    self._remove(self._additions.drop(message.name))
            case wire.Rejoin():
                self._end_session("the gateway does not know this worker any more")
            case wire.Superseded():
                self._look_for_later(message.reason, now)
            case wire.Goodbye():
                self._on_goodbye(message.reason)
            case wire.Refused():
                _log.error("the gateway refuses this worker: %s", message.reason)
                self._exit_code = EXIT_REFUSED
            case wire.Unreadable():
                _log.error("the gateway could not read a message: %s", message.reason)

    def _on_order(self, order: wire.Order, frames: list[wire.Buffer], received_ns: int) -> None:
        action = self._additions.own(order.action)
        if not self._is_joined:
            _log.info("dropped action %d: ordered in a session that is over", action.action_id)
            return
        try:
            if self._is_stopping:
                raise orders.OrderRefusal(Code.SHUTTING_DOWN, "the worker is stopping")
            views = orders.verify(
                action,
                order.tensors,
                frames,
                models=self._backend.models,
                refused_models=self._refused_models,
                page_bytes=self._backend.device.page_bytes,
            )
        except orders.OrderRefusal as refusal:
            self.num_malformed += refusal.code is Code.MALFORMED
            self._report(orders.refused(action, refusal, received_ns=received_ns))
            return
        self._accept(action, order.tensors, views, self._session, received_ns)

    def _accept(
        self,
        action: Action,
        tensors: tuple[wire.RequestTensors, ...],
        views: list[list[memoryview]],
        session: int,
        received_ns: int,
    ) -> None:
        """From here on exactly one Finished comes back for the action."""
        self._num_accepted += 1
        bench = self._bench
        match action:
            case Infer():
                infer = AcceptedInfer(
                    bench,
                    action,
                    session=session,
                    received_ns=received_ns,
                    tensors=tensors,
                    views=views,
                )
                if self._input_lane is None:
                    self._exec_lane.put(infer)
                else:
                    self._input_lane.put(InputPhase(infer, self._exec_lane.put))
            case LoadWeights():
                self._load_lane.put(
                    AcceptedLoad(bench, action, session=session, received_ns=received_ns)
                )
            case EvictWeights():
                self._load_lane.put(
                    AcceptedEvict(bench, action, session=session, received_ns=received_ns)
                )
            case ReleaseModel():
                self._load_lane.put(
                    AcceptedRelease(bench, action, session=session, received_ns=received_ns)
                )

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        if self._is_joined:
            # Two Hellos crossed two Welcomes: orders of the first may have moved pages since the
            # second Hello named them. Introduce ourselves once more, with what is true.
            self._end_session("welcomed twice")
            return
        self._is_joined = True
        self._gateway, self._epoch = welcome.gateway, welcome.epoch
        self._yields_since_ns = None
        self._refused_models = welcome.refused_models
        self._max_frame_bytes = welcome.max_frame_bytes
        self._refusals_logged.clear()
        self._additions.welcome(welcome.names)
        _log.info("joined as %s", welcome.worker_id)
        for model, reason in sorted(welcome.refused_models.items()):
            _log.warning("the gateway refuses model %s: %s", model, reason)
        for model in self._pages.resident():
            if model in self._refused_models:
                # The gateway's mirror does not count its pages, so nobody else would free them.
                eviction = EvictWeights(0, model, 0, _ANY_TIME_NS)
                self._accept(eviction, (), [], _OWN_SESSION, self._heard_ns)
        for model in welcome.refused_models:
            if self._additions.is_added(model):  # gone from the gateway while we were away
                self._remove(model)

    def _on_goodbye(self, reason: str) -> None:
        """The next gateway finds the weights where they are; who has started us for this one, ends
        us by a signal.
        """
        if self._is_joined and not self._is_stopping:
            self._link.send(wire.Goodbye("the gateway said goodbye"))
            self._end_session(f"the gateway said goodbye: {reason}", logging.INFO)
            self._hello_due_ns = self._heard_ns + HELLO_INTERVAL_NS  # that one takes none

    def _look_for_later(self, reason: str, now: int) -> None:
        self._log_refusal(reason, now)
        if self._yields_since_ns is None:
            self._yields_since_ns = now
        elif now - self._yields_since_ns > YIELD_NS:
            _log.warning("no later gateway in %d s: this one will do", YIELD_NS // SECOND_NS)
            self._epoch, self._yields_since_ns = 0, None
        self._retry_due_ns = now + RETRY_INTERVAL_NS

    def _on_add_model(self, spec: ModelSpec) -> None:
        offer = self._additions.add(spec)
        if offer is None:
            return
        own = self._additions.own_name(spec.name)
        # Under its own name it may be another's content to the gateway; under the given, it is not.
        self._refused_models = {m: why for m, why in self._refused_models.items() if m != own}
        self._tell(offer)

    def _remove(self, model: str) -> None:
        if self._pages.state_of(model) is None:
            self._backend.remove(model)
        else:
            _log.error("%s is not removed: it has pages", model)

    # What leaves

    def _tell(self, offer: wire.Offer | wire.CannotOffer) -> None:
        """Without a session nobody waits for it: Hello names all that is ready."""
        if self._is_joined and not self._link.send(offer):
            self._end_session("the connection to the gateway broke")

    def _on_finished(self, finished: Finished) -> None:
        self._num_accepted -= 1
        if finished.fatal is not None:
            self._broken_reason = finished.fatal
        if self._is_joined and finished.session == self._session:
            frames = wire.pack_tensors(finished.buffers)
            limit = self._max_frame_bytes
            if limit and frames and max(map(len, frames)) > limit:
                # sent, it would end the connection, and so every other order with it
                self._report(orders.without_outputs(finished.result, frames, limit))
            else:
                self._report(finished.result, finished.tensors, frames)

    def _report(
        self,
        result: Result,
        tensors: tuple[wire.RequestTensors, ...] = (),
        frames: list[wire.Buffer] | None = None,
    ) -> None:
        if not self._link.send(wire.Report(result, tensors), frames or ()):
            self._end_session("the connection to the gateway broke")

    # Membership and the end

    def _see_to_what_is_due(self, now: int) -> None:
        """Act on flags and on the time: broken, stop, silence, Hello."""
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            self._stop_reason = "the parent process is gone"
        if self._broken_reason is None:
            self._broken_reason = self._stuck(now)
        if self._broken_reason is not None:
            _log.critical("giving up: %s", self._broken_reason)
            self._exit_code = EXIT_BROKEN
        elif self._exit_code is not None:
            return
        elif self._stop_reason is not None:
            self._stop(self._stop_reason)
        elif self._is_joined:
            if self._link.has_broken():
                self._end_session("the connection to the gateway broke")
            elif now - self._heard_ns > GATEWAY_SILENCE_NS:
                silence_s = (now - self._heard_ns) / SECOND_NS
                self._end_session(f"nothing heard from the gateway for {silence_s:.1f} s")
                # Over TCP a peer that vanished still looks connected, for a quarter of an hour.
                self._link.reconnect()
        elif self._retry_due_ns is not None or self._is_turned_away(now):
            self._retry(now)
        elif self._link.is_new():
            self._hello_due_ns = now  # whoever was told before may be another
        elif now >= self._hello_due_ns and self._num_accepted == 0:
            self._say_hello(now)

    def _is_turned_away(self, now: int) -> bool:
        """Whether the gateway refused our connection; says so now and then, and when to retry."""
        reason = self._link.refusal()
        if reason is None:
            return False
        self._retry_due_ns = now + RETRY_INTERVAL_NS
        self._log_refusal(reason, now)
        return True

    def _log_refusal(self, reason: str, now: int) -> None:
        if now >= self._refusals_logged.get(reason, now):
            self._refusals_logged[reason] = now + REFUSAL_LOG_INTERVAL_NS
            _log.error("%s refuses the connection: %s; trying on", self._connect, reason)

    def _retry(self, now: int) -> None:
        if self._retry_due_ns is not None and now >= self._retry_due_ns:
            self._retry_due_ns = None
            self._link.reconnect()

    def _stuck(self, now: int) -> str | None:
        """Which lane does not come back from what it does, for how long."""
        for lane in self._lanes:
            running = lane.running
            if running is not None and now - running[1] > STUCK_AFTER_NS:
                model, since_ns = running
                return (
                    f"the {lane.name} lane has been at {model} for"
                    f" {(now - since_ns) / SECOND_NS:.0f} s: the device does not answer"
                )
        return None

    def _say_hello(self, now: int) -> None:
        hello = wire.Hello(
            name=self._name,
            incarnation=self._incarnation,
            device=self._backend.device,
            models=tuple(self._backend.models.values()),
            resident=self._pages.resident(),
            gateway=self._gateway,
            epoch=self._epoch,
        )
        if self._link.send(hello):  # else there is no connection yet: again at the next tick
            self._hello_due_ns = now + HELLO_INTERVAL_NS
            self._link.has_broken()  # what broke before is no news of this connection

    def _end_session(self, reason: str, level: int = logging.WARNING) -> None:
        """Forget the gateway's orders and prepare to say Hello; nothing when not joined."""
        if not self._is_joined:
            return
        _log.log(level, "leaving the session: %s", reason)
        self._is_joined = False
        self._session += 1
        self._hello_due_ns = 0
        self._flush_lanes()

    def _stop(self, reason: str) -> None:
        """Refuse what waits, finish what runs, then say Goodbye."""
        if not self._is_stopping:
            _log.info("stopping: %s", reason)
            self._is_stopping = True
            self._flush_lanes()
        if self._num_accepted == 0:
            self._link.send(wire.Goodbye(reason))
            self._exit_code = EXIT_DONE

    def _flush_lanes(self) -> None:
        for lane in self._flushed_first:
            lane.put(Flush())

    def close(self) -> None:
        """Give everything back. What a lane still works with is left, until this is called again:
        its thread is a daemon and ends with the process.
        """
        if self._leave():
            self._backend.close()

    def _leave(self) -> bool:
        """End the lanes, and if all of them do, the connection."""
        have_ended = []
        for lane in self._lanes:
            lane.put(Stop())
            have_ended.append(lane.join(JOIN_TIMEOUT_S))
        have_ended.append(self._additions.close(JOIN_TIMEOUT_S))
        if all(have_ended):
            self._link.close()
        return all(have_ended)

    # The lanes' side

    def _lane(self, name: str, on_flushed: Callable[[], None] = lambda: None) -> LaneThread:
        return LaneThread(
            name,
            clock=self._clock,
            on_start=self._start_lane,
            on_death=self._on_lane_death,
            on_flushed=on_flushed,
        )

    def _start_lane(self) -> None:
        self._backend.bind_thread()
        linux.set_timer_slack(TIMER_SLACK_NS)
        linux.set_time_slice(LANE_SLICE_NS)
        if linux.num_usable_cpus() == 1:
            linux.set_thread_nice(NICE_ON_ONE_CPU)

    def _on_lane_finished(self, finished: Finished) -> None:
        self._finished.put(finished)
        self._link.ring()

    def _on_lane_death(self, lane: str, error: BaseException) -> None:
        _log.critical("the %s lane died", lane, exc_info=error)
        self._broken_reason = f"the {lane} lane died: {type(error).__name__}: {error}"
        self._link.ring()
