"""One request of a workload: who is asked, when, and by when the answer is wanted."""

from typing import NamedTuple

from scheduler.priority import NORMAL


class Ask(NamedTuple):
    """`at_ns` counts from the start of the run; `stream` is the index of the workload entry.

    `client` tells the clients of a closed loop apart; it is -1 for an open-loop stream. Asks sort
    by time.
    """

    at_ns: int
    model: str
    slo_ns: int
    stream: int
    tenant: str = ""
    client: int = -1
    priority: int = NORMAL
