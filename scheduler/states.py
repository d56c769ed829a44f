"""docs/states.md, written from the tables of legal moves: `python -m scheduler.states`.

It owns the sentences, never the moves: those are read from where they are enforced.
"""

import enum
from collections.abc import Mapping
from typing import TypeVar

from scheduler.device import WEIGHTS_MOVES, WeightsState
from scheduler.request import LEGAL_MOVES, OPEN_STATES, RequestState

_State = TypeVar("_State", bound=enum.Enum)

REQUEST_SENTENCES: Mapping[RequestState, str] = {
    RequestState.QUEUED: "admitted, and waiting for a device",
    RequestState.DISPATCHED: "in an Infer that was sent to a worker",
    RequestState.SERVED: "executed inside its SLO; its outputs went out",
    RequestState.FAILED: "the engine failed on its input, its worker was lost, its model removed",
    RequestState.EXPIRED: "admitted, but its deadline passed or could not be met any more",
    RequestState.CANCELLED: "the client went away before its answer",
    RequestState.REJECTED: "refused: at the door, or since it asked not to be queued",
}
WEIGHTS_SENTENCES: Mapping[WeightsState, str] = {
    WeightsState.ABSENT: "not on the device; the state of every model at first",
    WeightsState.LOADING: "a LoadWeights was sent, its pages are taken",
    WeightsState.RESIDENT: "loaded and usable: Infers may be sent",
    WeightsState.EVICTING: "an EvictWeights was sent; its pages are free for what is sent later",
}

_PAGE = """\
# States

Written by `python -m scheduler.states > docs/states.md` from the tables in `scheduler/request.py`
and `scheduler/device.py`; a test compares. Each table has one function that moves along it, and a
move that is not listed raises: it would be a bug of ours, never of a client or a worker.

## Requests

A request is answered exactly once, on its way into one of the final states.

{request_sentences}

```mermaid
{request_diagram}
```

DISPATCHED → QUEUED: the action failed and another device, or another try, can still make it.
QUEUED → REJECTED: the request asked not to be queued, and nothing could start it at once.

## Weights

Of one model on one device, with a number that counts the LOADs (the *generation*): what a worker
says about an older generation is ignored.

{weights_sentences}

```mermaid
{weights_diagram}
```

LOADING → ABSENT: the LOAD failed. RESIDENT → ABSENT: the worker says that it does not have them,
and the worker is the truth. EVICTING → RESIDENT: the worker refused to evict.
"""


def diagram(moves: Mapping[_State, frozenset[_State]], first: _State, final: list[_State]) -> str:
    """The table as a Mermaid state diagram, in the order of the enum."""
    lines = ["stateDiagram-v2", f"    [*] --> {first.name}"]
    for state, targets in moves.items():
        lines += [
            f"    {state.name} --> {target.name}" for target in type(state) if target in targets
        ]
    return "\n".join(lines + [f"    {state.name} --> [*]" for state in final])


def page() -> str:
    """The whole of docs/states.md."""
    return _PAGE.format(
        request_sentences=_listed(REQUEST_SENTENCES),
        request_diagram=diagram(
            LEGAL_MOVES,
            RequestState.QUEUED,
            [state for state in RequestState if state not in OPEN_STATES],
        ),
        weights_sentences=_listed(WEIGHTS_SENTENCES),
        weights_diagram=diagram(WEIGHTS_MOVES, WeightsState.ABSENT, []),
    )


def _listed(sentences: Mapping[RequestState, str] | Mapping[WeightsState, str]) -> str:
    return "\n".join(f"* **{state.name}**: {text}." for state, text in sentences.items())


if __name__ == "__main__":
    print(page(), end="")
