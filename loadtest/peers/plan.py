"""What is measured: servers, settings, workloads, loads and SLOs; and which of it is left to do.

Owns the order of the plays. A play is a load on a server for some seconds; where the server's
settings do not depend on the SLO, one play is read at every SLO, and so gives several cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

from loadtest.peers.peer import Peer

LOADS = (0.5, 0.9, 1.5, 3.0)
SLO_EXECUTIONS = (2.0, 5.0, 20.0)
# Shares of the core's time that each model is asked for, at load 1.
WORKLOADS = {"one model": {"slow": 1.0}, "mixed": {"fast": 0.5, "slow": 0.5}}
DEFAULT, TUNED = "default", "tuned"
OURS = "remontoir"
CELL_S, QUICK_CELL_S = 5.0, 2.0  # all of it takes less than an hour, and minutes
# Besides the play itself: the bare loop before it, connecting, the answers that are still to come,
# and a look at whether the server is idle; and what starting anew costs after an overload.
PLAY_EXTRA_S = 3.5
START_S = 8.0


class Play(NamedTuple):
    """`slos`: at which it is read, in multiples of an execution."""

    workload: str
    load: float
    slos: Sequence[float]

    @property
    def points(self) -> list[str]:
        return [point(self.workload, self.load, slo) for slo in self.slos]


class Session(NamedTuple):
    """One server with one set of settings. `tuned_for` is the SLO that they were made for."""

    server: str
    settings: str
    tuned_for: float | None
    plays: Sequence[Play]

    @property
    def title(self) -> str:
        tuned = "" if self.tuned_for is None else f" for {self.tuned_for:g} x"
        return f"{self.server}, {self.settings}{tuned}"


def point(workload: str, load: float, slo: float) -> str:
    return f"{workload}, load {load:g}, SLO {slo:g}"


def sessions(
    peers: Sequence[Peer],
    *,
    with_ours: bool,
    loads: Sequence[float] = LOADS,
    slos: Sequence[float] = SLO_EXECUTIONS,
) -> list[Session]:
    """Ours first; then each peer as it comes, and as tuned for each SLO."""
    found = []
    if with_ours:
        # It is told the SLO by each request: a play each, and nothing to tune.
        found.append(Session(OURS, DEFAULT, None, _plays(loads, [[slo] for slo in slos])))
    for peer in peers:
        found.append(Session(peer.name, DEFAULT, None, _plays(loads, [slos])))
        if peer.can_be_tuned:
            found += [Session(peer.name, TUNED, slo, _plays(loads, [[slo]])) for slo in slos]
    return found


def left_to_do(session: Session, done: set[tuple[str, str, str]]) -> Session:
    """Without the plays whose cells are all among (server, settings, point)."""
    plays = [
        play
        for play in session.plays
        if any((session.server, session.settings, point) not in done for point in play.points)
    ]
    return session._replace(plays=plays)


def estimated_s(todo: Sequence[Session], cell_s: float) -> float:
    plays = [play for session in todo for play in session.plays]
    # After an overload most have to be started anew.
    starts = sum(bool(session.plays) for session in todo) + sum(play.load > 1 for play in plays) / 2
    return len(plays) * (cell_s + PLAY_EXTRA_S) + starts * START_S


def _plays(loads: Sequence[float], groups: Sequence[Sequence[float]]) -> list[Play]:
    """Light ones first: nothing is left over from them."""
    return [
        Play(workload, load, slos) for load in loads for workload in WORKLOADS for slos in groups
    ]
