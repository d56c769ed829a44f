"""The table of request states: every pair of states, legal or not."""

import pytest

from scheduler.events import RequestArrived
from scheduler.request import LEGAL_MOVES, OPEN_STATES, IllegalMove, Request, RequestState

S = RequestState
LEGAL = {
    (S.QUEUED, S.DISPATCHED),
    (S.QUEUED, S.EXPIRED),
    (S.QUEUED, S.CANCELLED),
    (S.QUEUED, S.FAILED),
    (S.QUEUED, S.REJECTED),
    (S.DISPATCHED, S.QUEUED),
    (S.DISPATCHED, S.SERVED),
    (S.DISPATCHED, S.FAILED),
    (S.DISPATCHED, S.EXPIRED),
    (S.DISPATCHED, S.CANCELLED),
}


def request_in(state: RequestState) -> Request:
    request = Request(RequestArrived(7, "m", 0, 100))
    request.state = state
    return request


@pytest.mark.parametrize("state", S, ids=lambda s: s.value)
@pytest.mark.parametrize("target", S, ids=lambda s: s.value)
def test_every_pair_of_states_moves_or_raises(state: RequestState, target: RequestState) -> None:
    request = request_in(state)
    if (state, target) in LEGAL:
        request.move_to(target)
        assert request.state is target
    else:
        with pytest.raises(IllegalMove, match=f"request 7: {state.value} → {target.value}"):
            request.move_to(target)
        assert request.state is state


def test_the_table_names_every_state() -> None:
    assert set(LEGAL_MOVES) == set(S)


def test_only_open_states_have_a_way_out() -> None:
    assert {state for state, targets in LEGAL_MOVES.items() if targets} == OPEN_STATES
