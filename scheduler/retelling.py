"""Why a request that was answered a while ago got its answer, out of the kept log, in sentences.

It owns which part of the log is told. The sentences are those of `remontoir explain`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from scheduler.device import WeightsState
from scheduler.event_log import Foreseen, Handled
from scheduler.events import RequestArrived
from scheduler.hindsight import LogEntry, recalled
from scheduler.situation import sentences
from scheduler.story import NAMES, Instant, Story, arrivals_in, foreseen_story
from scheduler.words import Names

CONTEXT = 256  # entries before an arrival: what was sent and open then has come within them
STEP = 64  # entries between two breaks: a tenth of a millisecond


def retelling(
    log: Sequence[LogEntry],
    request_id: int,
    arrival_ns: int,
    weights_now: Mapping[str, WeightsState],
    at: Instant,
    *,
    label: str,
    names: Names = NAMES,
) -> Iterator[list[str]]:
    """Yields the sentences so far now and then, so that a shell can do something else, and all of
    them last; an empty list where the log does not reach back to the arrival.

    `weights_now` are the workers that offer its model, and what they have of it.
    """
    story = Story(request_id, at, label=label, names=names)
    first = bisect_left(log, arrival_ns, key=_instant)
    index, request = _arrival_in(log, first, request_id)
    if request is None:
        yield []
        return
    begin = max(0, first - CONTEXT)
    around = recalled(log[begin:], index - begin, request, weights_now, log[index][0])
    yield story.sentences
    for number, (now, event, commands) in enumerate(log[begin:], begin):
        entry = Handled(now, event, commands)
        story.before(entry, None, around if number == index else None)
        story.after(entry, None)
        if story.is_over:
            break
        if number % STEP == 0:
            yield story.sentences
    yield story.sentences


def retell_foreseen(
    log: Sequence[LogEntry],
    foreseen: Foreseen,
    weights_now: Mapping[str, WeightsState],
    at: Instant,
    *,
    label: str,
    names: Names = NAMES,
) -> list[str]:
    """Of a request that was refused before its body was read: it never entered the log."""
    index = bisect_right(log, foreseen.now, key=_instant)
    begin = max(0, index - CONTEXT)
    request = foreseen.event
    around = recalled(log[begin:], index - begin, request, weights_now, foreseen.now)
    told_around = sentences(around, request, names)
    return foreseen_story(foreseen, at, told_around=told_around, label=label)


def _arrival_in(
    log: Sequence[LogEntry], first: int, request_id: int
) -> tuple[int, RequestArrived | None]:
    for index in range(first, len(log)):
        for request in arrivals_in(log[index][1]):
            if request.request_id == request_id:
                return index, request
            if request.request_id > request_id:
                return index, None
    return len(log), None


def _instant(entry: LogEntry) -> int:
    return entry[0]
