"""Closed loops, answered by hand."""

from collections import Counter
from heapq import heapify, heappop, heappush
from random import Random

from loadtest.workloads import Ask, Closed, ClosedLoop, SloShare, closed_loops

MS = 1_000_000
SIXTEEN = Closed(models="net*", slo_ms=25, clients=16, think_ms=0.3, tenant="batch")
MIX = (SloShare(slo_ms=10, weight=1), SloShare(slo_ms=20, weight=1))


def loop(entry: Closed, *, duration_s: float = 1, seed: int = 1) -> ClosedLoop:
    models = ["net0", "other", "net1"]
    [found] = closed_loops([entry], duration_s=duration_s, seed=seed, models=models).values()
    return found


def test_every_client_asks_at_the_start() -> None:
    starts = list(loop(SIXTEEN).starts())
    assert Counter((ask.model, ask.at_ns, ask.slo_ns, ask.tenant) for ask in starts) == {
        ("net0", 0, 25 * MS, "batch"): 16,
        ("net1", 0, 25 * MS, "batch"): 16,
    }
    assert sorted(ask.client for ask in starts) == list(range(32))


def test_a_client_asks_the_same_model_again_once_it_has_thought() -> None:
    clients = loop(SIXTEEN)
    first, second, *_ = clients.starts()
    assert clients.next_after(second, 7 * MS) == second._replace(at_ns=7_300_000)
    assert clients.next_after(first, 9 * MS) == first._replace(at_ns=9_300_000)


def test_a_client_stops_after_its_number_of_requests() -> None:
    clients = loop(Closed(models="net0", slo_ms=25, clients=2, requests=2))
    one, two = clients.starts()
    again = clients.next_after(one, MS)
    assert again is not None
    assert clients.next_after(again, 2 * MS) is None
    assert clients.next_after(two, 3 * MS) is not None


def test_a_client_of_one_request_asks_once() -> None:
    clients = loop(Closed(models="net0", slo_ms=25, requests=1))
    [ask] = clients.starts()
    assert clients.next_after(ask, MS) is None


def test_nobody_asks_outside_the_window() -> None:
    clients = loop(Closed(models="net0", slo_ms=25, start_s=0.1, stop_s=0.5))
    [ask] = clients.starts()
    assert ask.at_ns == 100 * MS
    assert clients.next_after(ask, 499_699_999) is not None
    assert clients.next_after(ask, 499_700_000) is None
    assert list(loop(Closed(models="net0", slo_ms=25, start_s=2), duration_s=2).starts()) == []


def test_a_clients_slos_do_not_depend_on_the_order_of_answers() -> None:
    entry = Closed(models="net0", slo_ms=MIX, clients=2)

    def slos_of_first(*, answer_second: bool) -> list[int]:
        clients = loop(entry)
        mine, other = clients.starts()
        slos = []
        for step in range(20):
            if answer_second:
                next_other = clients.next_after(other, step * MS)
                assert next_other is not None
                other = next_other
            next_mine = clients.next_after(mine, step * MS)
            assert next_mine is not None
            slos.append(next_mine.slo_ns)
            mine = next_mine
        return slos

    assert slos_of_first(answer_second=True) == slos_of_first(answer_second=False)
    assert set(slos_of_first(answer_second=False)) == {10 * MS, 20 * MS}


def test_never_more_are_open_than_there_are_clients() -> None:
    clients = loop(SIXTEEN)
    chance = Random(3)
    waiting = list(clients.starts())
    heapify(waiting)
    answers: list[tuple[int, Ask]] = []
    num_open: Counter[str] = Counter()
    most_open: Counter[str] = Counter()
    num_asks = 0
    while waiting or answers:
        if answers and (not waiting or answers[0][0] <= waiting[0].at_ns):
            answered_ns, ask = heappop(answers)
            num_open[ask.model] -= 1
            if following := clients.next_after(ask, answered_ns):
                heappush(waiting, following)
            continue
        ask = heappop(waiting)
        num_asks += 1
        num_open[ask.model] += 1
        most_open[ask.model] = max(most_open[ask.model], num_open[ask.model])
        heappush(answers, (ask.at_ns + chance.randrange(1, 40 * MS), ask))
    assert most_open == {"net0": 16, "net1": 16}
    assert num_asks > 1000
