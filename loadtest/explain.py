"""`remontoir explain`: one request's story out of a recording, or the list to choose from.

Owns which request is meant, and the listing. What is told is scheduler/story.py.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from loadtest.recorded import damage_of, opened, scheduler_of
from loadtest.words import Words
from scheduler.event_log import Foreseen, Handled, Named
from scheduler.events import (
    Expired,
    ModelAdded,
    Outcome,
    Rejected,
    Reply,
    RequestArrived,
    Served,
    WorkerJoined,
)
from scheduler.policies import PolicyError
from scheduler.recording import Recording, RecordingError
from scheduler.scheduler import Scheduler
from scheduler.situation import sentences, situation
from scheduler.spec import public_name
from scheduler.story import NAMES, Story, arrivals_in, foreseen_story
from scheduler.words import listed, ms

EARLY = "early-"  # what ids of requests start with that were refused before their body was read


class Answered(msgspec.Struct, frozen=True):
    """A line of the list. `request_id` is the scheduler's, or early-N; `name` the client's."""

    request_id: str
    name: str
    request: RequestArrived
    origin_ns: int  # of the recording
    answered_ns: int
    outcome: Outcome

    @property
    def is_refused(self) -> bool:
        return isinstance(self.outcome, Rejected)

    @property
    def is_late(self) -> bool:
        """Let in, and not served in time."""
        if isinstance(self.outcome, Served):
            return self.answered_ns > self.request.deadline_ns
        return isinstance(self.outcome, Expired)


def answered(recording: Recording) -> Iterator[Answered]:
    """Every answer in the recording, in the order given."""
    names: dict[int, str] = {}  # all and only of open requests
    unanswered: dict[int, RequestArrived] = {}
    early: Answered | None = None  # its name comes with the next entry
    num_foreseen = 0
    origin_ns: int | None = None
    for entry in recording:
        if origin_ns is None and isinstance(entry, Handled | Foreseen):
            origin_ns = entry.now
        if early is not None:
            name = entry.name if isinstance(entry, Named) and not entry.request_id else ""
            yield msgspec.structs.replace(early, name=name)
            early = None
        if isinstance(entry, Named):
            names[entry.request_id] = entry.name
        elif isinstance(entry, Foreseen):
            num_foreseen += 1
            if entry.refusal is not None:
                early_id = f"{EARLY}{num_foreseen}"
                early = Answered(
                    early_id, "", entry.event, origin_ns or 0, entry.now, entry.refusal
                )
        elif isinstance(entry, Handled):
            for request in arrivals_in(entry.event):
                unanswered[request.request_id] = request
            for command in entry.commands or ():
                if isinstance(command, Reply):
                    number = command.request_id
                    name, request = names.pop(number, ""), unanswered.pop(number)
                    yield Answered(
                        str(number), name, request, origin_ns or 0, entry.now, command.outcome
                    )


def find(recording: Recording, wanted: str) -> str:
    """The id of the list for what a client or the list calls it. Raises RecordingError."""
    found: list[str] = []
    is_id = False
    num_foreseen = 0
    for entry in recording:
        if isinstance(entry, Foreseen):
            num_foreseen += 1
            is_id = is_id or wanted == f"{EARLY}{num_foreseen}"
        elif isinstance(entry, Named):
            if entry.name == wanted:
                found.append(
                    str(entry.request_id) if entry.request_id else f"{EARLY}{num_foreseen}"
                )
        elif isinstance(entry, Handled):
            ids = (str(request.request_id) for request in arrivals_in(entry.event))
            is_id = is_id or wanted in ids
    if len(found) == 1:
        return found[0]
    if is_id:
        return wanted
    if found:
        raise RecordingError(f"{wanted} names {len(found)} requests, choose: {listed(found)}")
    raise RecordingError(f"no request {wanted} in it; `remontoir explain FILE --list` has them all")


def models_in(recording: Recording) -> set[str]:
    """All that it knows: served at some time, offered by a worker, or asked for in vain."""
    models = {spec.name for spec in recording.header.models}
    for entry in recording:
        if isinstance(entry, Foreseen):
            models.add(entry.event.model)
        elif isinstance(entry, Handled):
            event = entry.event
            models.update(request.model for request in arrivals_in(event))
            if isinstance(event, ModelAdded):
                models.add(event.spec.name)
            elif isinstance(event, WorkerJoined):
                models.update(spec.name for spec in event.models)
    return models


def tell(recording: Recording, request_id: str) -> list[str]:
    """The story of a request, with an id of the list. Raises PolicyError."""
    scheduler: Scheduler | None = scheduler_of(recording.header)
    story: Story | None = None
    words: Words | None = None
    num_foreseen = 0
    for entry in recording:
        if not isinstance(entry, Handled | Foreseen):
            continue
        if words is None:
            words = Words(entry.now)
            if not request_id.startswith(EARLY):
                story = Story(int(request_id), words.since_start)
        if isinstance(entry, Foreseen):
            num_foreseen += 1
            if request_id == f"{EARLY}{num_foreseen}":
                return foreseen_story(
                    entry, words.since_start, told_around=_around(scheduler, entry)
                )
            if scheduler is not None:
                scheduler.foresee(entry.event, entry.now)
            continue
        if story is not None:
            story.before(entry, scheduler)
        if scheduler is not None and not _runs_along(scheduler, entry):
            scheduler = None
        if story is not None:
            story.after(entry, scheduler)
            if story.is_over:
                break
    told = [] if story is None else story.sentences
    if scheduler is None:
        told.append(
            "Today's scheduler decides otherwise than the recorded one (see `remontoir replay`), "
            "so that what was around the request is not known from some point on."
        )
    return told


def _around(scheduler: Scheduler | None, foreseen: Foreseen) -> list[str]:
    if scheduler is None:
        return []
    request = foreseen.event
    return sentences(situation(scheduler, request, foreseen.now), request, NAMES)


def _runs_along(scheduler: Scheduler, entry: Handled) -> bool:
    try:
        return scheduler.handle(entry.event, entry.now) == entry.commands
    except Exception:  # of a recorded scheduler that broke, or of one that decided otherwise
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if (args.request_id is None) != args.list:
        parser().error("give one of REQUEST_ID and --list")
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        if args.list:
            print_list(args, console)
            return 0
        with opened(args.file, "looking for it") as recording:
            request_id = find(recording, args.request_id)
        damage = damage_of(recording, args.file)
        with opened(args.file, "running it again") as recording:
            told = tell(recording, request_id)
    except (RecordingError, PolicyError) as error:
        print(f"remontoir explain: {error}", file=sys.stderr)
        return 2
    for sentence in (*damage, *told):
        console.print(sentence)
    return 0


def print_list(args: argparse.Namespace, console: Console) -> None:
    """One line each, for eyes and grep. Raises RecordingError for a model that it does not know.

    The file is read twice: what is missing of it is known at its end, and belongs before the list.
    """
    with opened(args.file, "looking through it") as recording:
        models = models_in(recording)
        models |= {public_name(name) for name in models}  # of a version, its model
        if args.model is not None and args.model not in models:
            known = listed(sorted(models)) or "none"
            raise RecordingError(f"no model {args.model!r} in it; there are {known}")
    for sentence in damage_of(recording, args.file):
        console.print(sentence)
    num_lines = 0
    with opened(args.file, "reading") as recording:
        console.print(
            f"{'id':>10}  {'arrived':>14}  {'SLO':>10}  {'took':>10}  model, what came, its name"
        )
        for line in answered(recording):
            request = line.request
            arrived = Words(line.origin_ns).at(request.arrival_ns)
            if args.model not in (None, request.model, public_name(request.model)):
                continue
            if (args.refused or args.late) and not (
                (args.refused and line.is_refused) or (args.late and line.is_late)
            ):
                continue
            num_lines += 1
            slo_ns = request.deadline_ns - request.arrival_ns
            console.print(
                f"{line.request_id:>10}  {arrived:>14}  {ms(slo_ns):>10}  "
                f"{ms(line.answered_ns - request.arrival_ns):>10}  {request.model}, "
                f"{_verdict(line)}  {line.name}"
            )
    if not num_lines:
        console.print("No request of that kind is in it.")


def _verdict(line: Answered) -> str:
    kind = type(line.outcome).__name__.lower()
    if isinstance(line.outcome, Served):
        return "served late" if line.is_late else kind
    reason = getattr(line.outcome, "reason", None)
    return kind if reason is None else f"{kind} {reason.value}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="remontoir explain",
        description="Tell one request's story out of a recording (`remontoir serve --record "
        "FILE`): when it arrived with which SLO, what was ahead of it, why it waited, was batched "
        "or was refused, what it took and whether it was good.",
    )
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument(
        "request_id",
        metavar="REQUEST_ID",
        nargs="?",
        help="the x-request-id of its answer, or an id of --list",
    )
    made.add_argument("--list", action="store_true", help="list the requests instead")
    made.add_argument("--refused", action="store_true", help="only those that were refused")
    made.add_argument("--late", action="store_true", help="only those let in and not in time")
    made.add_argument("--model", help="only those of this model")
    return made


if __name__ == "__main__":
    sys.exit(main())
