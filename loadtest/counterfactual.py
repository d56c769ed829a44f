"""What another policy would have done with a recorded day, beside what was done.

It owns the second run: the recorded arrivals, cancellations, early looks, workers and models at
their instants, the product's scheduler with the other policy, and workers that take as long as the
recorded ones did. It must never feed a recorded result or wake-up to the other scheduler: those
were consequences of the recorded decisions.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.recorded import opened, said_of, scheduler_of
from loadtest.recorded_durations import RecordedDurations, Sources
from loadtest.report import percent, shown
from loadtest.results import Collector, Group, Tables, summarise
from scheduler.event_log import Foreseen, Handled
from scheduler.events import (
    ActionFinished,
    Rejected,
    Reply,
    RequestArrived,
    RequestsArrived,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from scheduler.policies import parse
from scheduler.recording import Recording, RecordingError
from scheduler.scheduler import Scheduler
from scheduler.simulation import Simulation
from scheduler.spec import SECOND_NS
from scheduler.words import counted

CANNOT_TELL = (
    "What this cannot tell: clients that wait, retry or give up would have behaved otherwise with "
    "other answers, and other batches heat and share the machine otherwise."
)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one day, twice; what is per second is so of all the recorded time."""

    recorded_policy: str
    recorded_ns: int  # from the first event to the last
    recorded: Group
    other: Group
    sources: Sources  # of the durations of the other run's actions
    num_uploads: int  # refused by an early look in the recording, and let in by the other policy
    warning: str  # what the reader should know of the file; "" mostly


class _Other:
    """Plays a recording's causes to another scheduler, each at its instant."""

    def __init__(
        self, recording: Recording, scheduler: Scheduler, durations: RecordedDurations
    ) -> None:
        self._entries = (e for e in recording if isinstance(e, Handled | Foreseen))
        self._scheduler = scheduler
        self._durations = durations
        self._next = next(self._entries, None)
        origin_ns = 0 if self._next is None else self._next.now
        self.collector = Collector(scheduler, origin_ns=origin_ns)
        self._simulation = Simulation(scheduler, (), observer=self.collector, keeps_outcomes=False)
        self._num_foreseen = 0
        self.num_uploads = 0
        self._workers: set[str] = set()  # all and only those that joined and are not lost
        # What an early look has refused, and will arrive all the same in the recording.
        self._turned_away: set[tuple[str, int, int]] = set()

    def run(self) -> None:
        self._schedule()
        self._simulation.run()

    def _schedule(self) -> None:
        if self._next is not None:
            self._simulation.call_at(self._next.now, self._feed)

    def _feed(self) -> None:
        entry = self._next
        assert entry is not None
        self._next = next(self._entries, None)
        if isinstance(entry, Foreseen):
            self._foresee(entry)
        else:
            self._happen(entry)
        self._schedule()

    def _happen(self, entry: Handled) -> None:
        simulation, event = self._simulation, entry.event
        now = simulation.now
        match event:
            case ActionFinished() | Tick():
                return  # consequences of other decisions
            case WorkerJoined():
                self._workers.add(event.worker_id)
                simulation.join(self._durations.worker(event))
            case WorkerLost():
                if event.worker_id in self._workers:
                    self._workers.remove(event.worker_id)
                    simulation.lose(event.worker_id)
                    simulation.step(event, now)
            case RequestArrived():
                if not self._was_turned_away(event):
                    simulation.step(event, now)
            case RequestsArrived():
                stays = tuple(r for r in event.requests if not self._was_turned_away(r))
                if stays:
                    simulation.step(RequestsArrived(stays), now)
            case _:
                simulation.step(event, now)

    def _foresee(self, entry: Foreseen) -> None:
        now = self._simulation.now
        self._num_foreseen += 1
        refusal = self._scheduler.foresee(entry.event, now)
        if refusal is not None:
            _note_refused(self.collector, entry, refusal, -self._num_foreseen)
            if entry.refusal is None:
                self._turned_away.add(_key(entry.event))
        elif entry.refusal is not None:
            self.num_uploads += 1
            arrived = msgspec.structs.replace(entry.event, request_id=-self._num_foreseen)
            self._simulation.step(arrived, now)

    def _was_turned_away(self, request: RequestArrived) -> bool:
        key = _key(request)
        if key not in self._turned_away:
            return False
        self._turned_away.remove(key)
        return True


def _key(request: RequestArrived) -> tuple[str, int, int]:
    return request.model, request.arrival_ns, request.deadline_ns


def _note_refused(
    collector: Collector, entry: Foreseen, refusal: Rejected, request_id: int
) -> None:
    """A request that an early look refused never arrives; it counts all the same."""
    arrived = msgspec.structs.replace(entry.event, request_id=request_id)
    collector(entry.now, arrived, [Reply(request_id, refusal)])


def _as_recorded(recording: Recording, durations: RecordedDurations) -> tuple[Tables, int]:
    """What was decided, whatever today's scheduler would decide, and over how long."""
    collector: Collector | None = None
    num_foreseen = first_ns = last_ns = 0
    for entry in recording:
        if not isinstance(entry, Handled | Foreseen):
            continue
        if collector is None:
            first_ns = entry.now
            collector = Collector(Scheduler(), origin_ns=first_ns)
        last_ns = entry.now
        if isinstance(entry, Handled):
            durations.learn(entry)
            collector(entry.now, entry.event, entry.commands or [])
            continue
        num_foreseen += 1
        if entry.refusal is not None:
            _note_refused(collector, entry, entry.refusal, -num_foreseen)
    if collector is None or not collector.num_answered:
        raise RecordingError("no request in it was answered")
    return collector.tables(), last_ns - first_ns


def compare(
    path: Path, policy: str, *, seed: int, schedule_ahead_ms: float | None = None
) -> Comparison:
    """Reads the recording twice. Raises RecordingError, PolicyError."""
    parse(policy, schedule_ahead_ms=schedule_ahead_ms)  # before minutes of reading
    durations = RecordedDurations(seed=seed)
    with opened(path, "as recorded") as recording:
        recorded, recorded_ns = _as_recorded(recording, durations)
    with opened(path, f"with {policy}") as recording:
        scheduler = scheduler_of(recording.header, policy, schedule_ahead_ms)
        other = _Other(recording, scheduler, durations)
        other.run()
    # A request may have arrived a little before the first event, which told of it.
    window = min(0, int(recorded.requests["arrival_ns"].min())), recorded_ns + 1
    return Comparison(
        recorded_policy=recording.header.policy,
        recorded_ns=recorded_ns,
        recorded=summarise(recorded, window).run,
        other=summarise(other.collector.tables(), window).run,
        sources=durations.sources,
        num_uploads=other.num_uploads,
        warning=said_of(recording, path),
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """`remontoir replay FILE --policy ...`."""
    compared = compare(
        args.file, args.policy, seed=args.seed, schedule_ahead_ms=args.schedule_ahead_ms
    )
    if compared.warning:
        console.print(compared.warning, style="yellow", markup=False)
    other = args.policy
    if args.schedule_ahead_ms is not None:
        other += f", schedule_ahead {args.schedule_ahead_ms:g} ms"
    console.print(f"Recorded: {compared.recorded_policy}. Instead: {other}.", markup=False)
    console.print(f"Per second: of {compared.recorded_ns / SECOND_NS:.1f} s of recorded time.")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("recorded", justify="right")
    table.add_column("instead", justify="right")
    for name, was, would in _figures(compared):
        table.add_row(name, was, would)
    console.print(table)
    sources = compared.sources
    drawn = sources.exact + sources.nearby + sources.profiled
    console.print(
        f"Durations of {drawn:,} actions: {sources.exact:,} drawn from the same worker, model and "
        f"batch size, {sources.nearby:,} from another batch size and scaled by the profile, "
        f"{sources.profiled:,} from the profile alone (seed {args.seed})."
    )
    if compared.num_uploads:
        console.print(
            f"{counted(compared.num_uploads, 'request')} that had been refused before the body was "
            "read came in at once here: how long the body would have taken is not known."
        )
    console.print(CANNOT_TELL, style="dim")


def _figures(compared: Comparison) -> Iterator[tuple[str, str, str]]:
    def of(name: str, figure: Callable[[Group], str]) -> tuple[str, str, str]:
        return name, figure(compared.recorded), figure(compared.other)

    def duration(figure_ms: float | None) -> str:
        return "-" if figure_ms is None else f"{shown(figure_ms)} ms"

    yield of("requests", lambda g: shown(g.requests))
    yield of("goodput", lambda g: f"{shown(g.goodput_per_s)}/s")
    yield of("attainment", lambda g: "-" if g.attainment is None else percent(g.attainment))
    yield of("refused", lambda g: shown(g.rejected))
    yield of("expired", lambda g: shown(g.expired))
    yield of("served late", lambda g: shown(g.late))
    yield of("failed", lambda g: shown(g.failed))
    yield of("cancelled", lambda g: shown(g.cancelled))
    yield of("latency of good ones, p50", lambda g: duration(g.latency_p50_ms))
    yield of("p99", lambda g: duration(g.latency_p99_ms))
    yield of("time to refuse, p50", lambda g: duration(g.refusal_p50_ms))
    yield of("p99", lambda g: duration(g.refusal_p99_ms))
    yield of("requests in a batch", lambda g: shown(g.mean_batch))
    yield of("LOADs", lambda g: "-" if g.loads_per_s is None else f"{shown(g.loads_per_s)}/s")
    yield of("execution per good request", lambda g: duration(g.exec_ms_per_good))
