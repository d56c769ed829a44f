"""Requests one by one out of a file, as a stream of a workload."""

import gzip
from pathlib import Path

import pytest

from loadtest.workloads import Ask, Requests, SloShare, open_loop
from loadtest.workloads.request_files import read_requests
from scheduler.event_log import Foreseen, Handled
from scheduler.events import RequestArrived, RequestsArrived
from scheduler.spec import MILLISECOND_NS, SECOND_NS
from tests.loadtest.recorded_day import day, written

TEXT = "at_s,model,slo_ms\n10.5,a,20\n11,b,\n11.5,c,30\n12.5,a,40\n"


def asks(path: Path, *, models: list[str], duration_s: float = 100, **more: object) -> list[Ask]:
    entry = Requests(models="*", slo_ms=50, file=str(path), **more)  # type: ignore[arg-type]
    return list(open_loop([entry], duration_s=duration_s, seed=1, models=models))


def told(found: list[Ask]) -> list[tuple[float, str, float]]:
    return [(a.at_ns / SECOND_NS, a.model, a.slo_ns / MILLISECOND_NS) for a in found]


def test_rows_are_played_from_the_first_on_and_those_of_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    assert told(asks(path, models=["a", "b"])) == [(0, "a", 20), (0.5, "b", 50), (2, "a", 40)]
    assert told(asks(path, models=["c"], keeps_slos=False)) == [(1.0, "c", 50)]
    assert told(asks(path, models=["a"], speed=2, duration_s=0.9)) == [(0, "a", 20)]
    assert told(asks(path, models=["a"], speed=2, duration_s=1.1))[-1] == (1, "a", 40)
    late = asks(path, models=["a"], start_s=5, stop_s=6)
    assert told(late) == [(5, "a", 20)]


def test_a_packed_file_is_read_too_and_without_models_they_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"at_s\n" + b"".join(b"%d\n" % i for i in range(200))))
    found = asks(path, models=["a", "b"], duration_s=200)
    assert [ask.at_ns for ask in found] == [i * SECOND_NS for i in range(200)]
    assert 60 < sum(ask.model == "a" for ask in found) < 140
    assert found == asks(path, models=["a", "b"], duration_s=200)


def test_a_mix_of_slos_is_drawn_for_rows_that_have_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("at_s,slo_ms\n" + "".join(f"{i},\n" for i in range(100)) + "100,7\n")
    mix = (SloShare(slo_ms=10, weight=1), SloShare(slo_ms=20, weight=1))
    entry = Requests(models="*", slo_ms=mix, file=str(path))
    found = list(open_loop([entry], duration_s=200, seed=1, models=["m"]))
    assert {ask.slo_ns // MILLISECOND_NS for ask in found[:-1]} == {10, 20}
    assert found[-1].slo_ns == 7 * MILLISECOND_NS


def test_what_came_to_a_gateway_is_played_those_that_were_turned_away_too(tmp_path: Path) -> None:
    entries = day()
    listed = read_requests(str(written(tmp_path / "day.rec", entries)))
    turned_away = [e for e in entries if isinstance(e, Foreseen) and e.refusal is not None]
    events = [e.event for e in entries if isinstance(e, Handled)]
    num_arrived = sum(isinstance(event, RequestArrived) for event in events) + sum(
        len(event.requests) for event in events if isinstance(event, RequestsArrived)
    )
    assert turned_away
    assert len(listed.at_ns) == len(turned_away) + num_arrived
    assert list(listed.at_ns) == sorted(listed.at_ns)
    assert listed.at_ns[0] == 0
    assert all(slo_ns > 0 for slo_ns in listed.slo_ns)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("when\n1\n", "no column at_s; there are when"),
        ("at_s\n", "no request in it"),
        ("at_s\nsoon\n", "line 2: at_s 'soon' is no number"),
        ("at_s\ninf\n", "line 2: at_s 'inf' is no finite number"),
        ("at_s\n2\n1\n", "line 3: at_s 1 is before the 2 of the line above"),
        ("at_s,slo_ms\n1,-3\n", "line 2: slo_ms -3 is negative"),
        ("at_s,model\n1,\n", "line 2: model is empty"),
        ("at_s,model\n1,z\n", "asks z, none of which is among a"),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_by_name(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="requests of") as refused:
        asks(path, models=["a"])
    assert words in str(refused.value)
    assert "t.csv" in str(refused.value)
