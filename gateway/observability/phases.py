"""A request's way through gateway and worker as phases on one timeline, for stories and traces.

It owns what the phases are called and where each begins and ends. Instants of workers are those of
the gateway's clock already (adr/0006).
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from gateway.observability.answered import Answered
from scheduler.actions import Infer, InferResult
from scheduler.events import ActionFinished, Reply, RequestArrived, RequestsArrived, Send, Served
from scheduler.hindsight import LogEntry


class Passage(msgspec.Struct, frozen=True):
    """A request's way through the scheduler, as far as the log has it; instants in ns."""

    heard_ns: int | None = None
    sent_ns: int | None = None
    infer: Infer | None = None
    result: InferResult | None = None


def phases(answered: Answered, passage: Passage) -> list[tuple[str, int, int]]:
    """(name, begin, end) in ns on the gateway's clock, in order, none longer than the request.

    admit: until the scheduler heard of it. queue: until its execution begins, without `load`, what
    of it was a LOAD of the weights. input, exec, output: on the device, the whole batch's. answer:
    until the reply was made. A request that was not served has those that it reached: worker is
    what of it was spent with one.
    """
    begin_ns, end_ns = answered.arrival_ns, answered.answered_ns
    heard_ns = begin_ns if passage.heard_ns is None else passage.heard_ns
    served, result = answered.outcome, passage.result
    told = [("admit", begin_ns, heard_ns)] if answered.number else []
    if not isinstance(served, Served) or not served.worker_id:
        if not answered.number:
            return [("admit", begin_ns, end_ns)]
        if isinstance(served, Served):  # shared: executed for another request
            return [*told, ("answer", heard_ns, end_ns)]
        if passage.sent_ns is None:
            return [*told, ("queue", heard_ns, end_ns)]
        return [*told, ("queue", heard_ns, passage.sent_ns), ("worker", passage.sent_ns, end_ns)]
    loaded_ns = heard_ns
    if served.load_ns:
        loaded_ns = heard_ns + served.load_ns
        told.append(("load", heard_ns, loaded_ns))
    if result is None:
        input_ns = begin_ns + served.queue_ns + served.load_ns
        exec_ns = input_ns + served.input_ns
        output_ns = exec_ns + served.exec_ns
        done_ns = output_ns + served.output_ns
        told += [
            ("queue", loaded_ns, input_ns),
            ("input", input_ns, exec_ns),
            ("exec", exec_ns, output_ns),
            ("output", output_ns, done_ns),
        ]
    else:
        done_ns = result.output.end_ns
        told += [
            ("queue", loaded_ns, result.input.begin_ns),
            ("input", result.input.begin_ns, result.input.end_ns),
            ("exec", result.exec.begin_ns, result.exec.end_ns),
            ("output", result.output.begin_ns, done_ns),
        ]
    told.append(("answer", done_ns, end_ns))
    # Clocks of other machines are known to some microseconds: no phase ends before it begins.
    return [(name, first, max(first, last)) for name, first, last in told]


def passage_of(log: Sequence[LogEntry], answered: Answered) -> Passage:
    """Of the last execution it was in."""
    number = answered.number
    heard_ns = sent_ns = infer = result = None
    first = bisect_left(log, answered.arrival_ns, key=_instant) if number else len(log)
    for now, event, commands in log[first:]:
        if now > answered.answered_ns:
            break
        if heard_ns is None and _brings(event, number):
            heard_ns = now
        for command in commands:
            if isinstance(command, Send):
                action = command.action
                if isinstance(action, Infer) and number in action.request_ids:
                    sent_ns, infer = now, action
            elif isinstance(command, Reply) and command.request_id == number:
                is_end = isinstance(event, ActionFinished) and infer is not None
                if is_end and isinstance(event.result, InferResult):  # type: ignore[union-attr]
                    result = event.result  # type: ignore[union-attr]
    return Passage(heard_ns, sent_ns, infer, result)


def _brings(event: object, number: int) -> bool:
    if isinstance(event, RequestArrived):
        return event.request_id == number
    return isinstance(event, RequestsArrived) and any(
        arrived.request_id == number for arrived in event.requests
    )


def _instant(entry: LogEntry) -> int:
    return entry[0]
