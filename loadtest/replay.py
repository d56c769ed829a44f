"""`remontoir replay`: runs a recording again, and looks whether the same decisions come out.

Owns the comparison and its words. The scheduler is the product's own, its time the recording's: no
clock is read. With --policy it hands over to loadtest/counterfactual.py.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from loadtest.recorded import opened, said_of, scheduler_of
from loadtest.words import Words
from scheduler.event_log import Foreseen, Handled
from scheduler.events import Command, Event, RequestArrived, RequestsArrived
from scheduler.policies import PolicyError
from scheduler.recording import Recording, RecordingError
from scheduler.scheduler import Scheduler
from scheduler.spec import SECOND_NS
from scheduler.words import counted

# What has happened, as (entry, what the scheduler said now).
OnReplayed = Callable[[Handled | Foreseen, Scheduler], None]


class Difference(msgspec.Struct, frozen=True):
    """The first call whose answer was another one, both in words."""

    call: int  # which call of the recording, from 1
    at: str
    event: str
    recorded: str
    replayed: str


class Replayed(msgspec.Struct, kw_only=True):
    """What came out the same; counts end at the difference."""

    num_events: int = 0
    num_foreseen: int = 0  # calls of `foresee`, refused or not
    num_requests: int = 0
    num_commands: int = 0
    virtual_ns: int = 0
    broke: str = ""  # what the scheduler raised at the end, in the recording too
    difference: Difference | None = None


def replay(recording: Recording, on_entry: OnReplayed | None = None) -> Replayed:
    """Runs the recording to its end, or to the first difference."""
    scheduler = scheduler_of(recording.header)
    replayed = Replayed()
    words: Words | None = None
    first_ns = 0
    for entry in recording:
        if not isinstance(entry, Handled | Foreseen):
            continue
        if words is None:
            first_ns = entry.now
            words = Words(first_ns)
        replayed.difference = _difference(scheduler, entry, words, replayed)
        if replayed.difference is not None:
            break
        replayed.virtual_ns = entry.now - first_ns
        if on_entry is not None:
            on_entry(entry, scheduler)
    return replayed


def _difference(
    scheduler: Scheduler, entry: Handled | Foreseen, words: Words, replayed: Replayed
) -> Difference | None:
    call = replayed.num_events + replayed.num_foreseen + 1
    if isinstance(entry, Foreseen):
        refusal = scheduler.foresee(entry.event, entry.now)
        if refusal == entry.refusal:
            replayed.num_foreseen += 1
            return None
        recorded, said = words.refusal(entry.refusal), words.refusal(refusal)
        told = f"a request of {entry.event.model} was foreseen"
        return Difference(call, words.at(entry.now), told, recorded, said)
    event = entry.event
    commands: list[Command] | None = None
    broke = ""
    try:
        commands = scheduler.handle(event, entry.now)
        scheduler.next_wakeup()  # a gateway asks after every event
    except Exception as error:  # it may be what was recorded: a gateway that broke
        broke = f"  it broke: {type(error).__name__}: {error}"
    if commands == entry.commands:
        replayed.num_events += 1
        replayed.num_requests += num_requests(event)
        replayed.num_commands += len(commands or ())
        replayed.broke = broke
        return None
    return Difference(
        call,
        words.at(entry.now),
        words.event(event),
        words.commands(entry.commands),
        broke or words.commands(commands),
    )


def num_requests(event: Event) -> int:
    if isinstance(event, RequestsArrived):
        return len(event.requests)
    return int(isinstance(event, RequestArrived))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.policy is None and args.schedule_ahead_ms is not None:
        print("remontoir replay: --schedule-ahead-ms needs --policy", file=sys.stderr)
        return 2
    console = Console(highlight=False, soft_wrap=True)
    try:
        if args.policy is not None:
            from loadtest import counterfactual

            counterfactual.run(args, console)
            return 0
        return _run_exact(args.file, console)
    except (RecordingError, PolicyError) as error:
        print(f"remontoir replay: {error}", file=sys.stderr)
        return 2


def _run_exact(path: Path, console: Console) -> int:
    begin_s = time.perf_counter()
    with opened(path, "replaying") as recording:
        replayed = replay(recording)
    took_s = time.perf_counter() - begin_s
    if said := said_of(recording, path):
        console.print(said, style="yellow", markup=False)
    say_counts(console, replayed, is_whole=recording.cut is None)
    console.print(f"It took {took_s:.1f} s.", style="dim")
    difference = replayed.difference
    if difference is None:
        return 0 if recording.cut is None else 1
    console.print(
        f"The first difference is call {difference.call:,}, at {difference.at}: "
        f"{difference.event}.\nRecorded:\n{difference.recorded}\n"
        f"Replayed:\n{difference.replayed}",
        markup=False,
    )
    return 1


def say_counts(console: Console, replayed: Replayed, *, is_whole: bool) -> None:
    same = "All equal" if is_whole else "Equal as far as it goes"
    if replayed.difference:
        same = "Equal until it differs"
    console.print(
        f"{same}: {counted(replayed.num_commands, 'decision')} on "
        f"{counted(replayed.num_events, 'event')} and "
        f"{counted(replayed.num_foreseen, 'early look')} at an upload; "
        f"{counted(replayed.num_requests, 'request')} in "
        f"{replayed.virtual_ns / SECOND_NS:.1f} s of recorded time."
    )
    if replayed.broke:
        console.print(f"At the end, as in the recording:\n{replayed.broke}", markup=False)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="remontoir replay",
        description="Run a recording (`remontoir serve --record FILE`) again in virtual time and "
        "check that the same decisions come out, each of them exactly. Exit code 1: they do not, "
        "and the first difference is shown; or the file is not whole, and what is left is equal.",
        epilog="With --policy: what another policy would have done with the recorded arrivals, "
        "cancellations, workers and models. What runs takes as long as it took on the recorded "
        "worker (drawn by --seed from its own executions of that model and batch size). What this "
        "cannot tell: clients that wait for an answer before they ask again, retry or give up "
        "would have behaved otherwise with other answers; other batches heat, throttle and "
        "share the machine otherwise than the recorded ones.",
    )
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--policy", metavar="TEXT", help="a policy's name, or name:option=value,...")
    made.add_argument("--seed", type=int, default=1, help="of the durations drawn (default: 1)")
    made.add_argument(
        "--schedule-ahead-ms", type=float, metavar="N", help="of that policy, in place of its rule"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
