"""The report on results: one page that fetches nothing, says what is partial, and sorts."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import msgspec
import pytest

from loadtest.analysis import prices
from loadtest.analysis.ceilings import Ceilings
from loadtest.analysis.cell import lines_of, without_common
from loadtest.analysis.guidance import sentences
from loadtest.analysis.leaderboard import METRICS, UnknownMetric, board, metric
from loadtest.analysis.pictures import merged_latency
from loadtest.analysis.report_page import Roofs, batch_rates, report_html
from loadtest.analysis.roofline import KindShare, KindTime, Point
from tests.loadtest.analysis_cells import a_cell, a_day

PRICES = prices.load()
MADE_AT = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
CEILINGS = Ceilings(
    device="cpu", threads=1, flops_per_s=100e9, memory_bytes_per_s=10e9, cache_bytes_per_s=40e9
)


def a_point(model: str, batch: int, execution_s: float) -> Point:
    return Point(
        model=model,
        batch=batch,
        flops=batch * 10**9,
        moved_bytes=10**8,
        least_bytes=10**7 + batch * 10**6,
        weights_bytes=10**7,
        execution_s=execution_s,
    )


def a_page(cells, **more) -> str:
    return report_html(cells, PRICES, title="<a day>", made_at=MADE_AT, **more)


class _Seen(HTMLParser):
    """Ids, links and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.targets: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            elif key in ("src", "srcset", "action", "data"):
                self.fetched.append(value)
            elif key in ("href", "xlink:href"):
                (self.targets if value.startswith("#") else self.fetched).append(value)

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag) -> None:
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def page() -> str:
    cells = a_day(repeats=3, rates=(0.6, 1.5))
    cells[0] = msgspec.structs.replace(cells[0], partial="the target died after 3.1 s")
    roofs = Roofs(
        ceilings=CEILINGS,
        points=(a_point("resnet18", 1, 0.02), a_point("resnet18", 8, 0.1)),
        kinds={"resnet18": (KindShare(kind="Conv", nodes=20, flops=10**9, moved_bytes=10**8),)},
        times={"resnet18": (KindTime(kind="FusedConv", calls=20, seconds=0.02),)},
        missing=("magika: there is no model.onnx",),
    )
    return a_page(cells, roofs=roofs)


def test_the_page_has_every_section_and_fetches_nothing(page: str):
    seen = _Seen()
    seen.feed(page)
    assert seen.headings == [
        "In short", "Leaderboard", "Latency", "Goodput by rate", "Goodput by SLO",
        "Model by batch size", "Roofline", "Stages and cold start", "Cost", "What was run",
    ]  # fmt: skip
    assert seen.fetched == []
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert "<title>&lt;a day&gt;</title>" in page


def test_ids_are_unique_and_every_reference_has_its_target(page: str):
    seen = _Seen()
    seen.feed(page)
    assert len(seen.ids) == len(set(seen.ids))
    used = {target[1:] for target in seen.targets} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(seen.ids)


def test_pictures_take_their_colours_from_the_page(page: str):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--series-0)" in drawn
    assert "var(--ink)" in drawn
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn)) <= {"#000000"}


def test_what_was_cut_short_is_said(page: str):
    assert "the target died after 3.1 s" in page
    assert "cut short: 1" in page


def test_the_page_says_money_energy_and_carbon_dioxide():
    cell = a_cell(busy=1.0, good=100, late=0, refused=0)
    text = a_page([cell])
    assert "<td>0.00125</td><td>0.1535</td><td>0.0614</td>" in text
    measured = a_page([a_cell(good=100, late=0, refused=0, energy_j=20.0)])
    assert "<td>0.0722 (measured)</td>" in measured
    assert "those of prices.yaml, as of 2024 to 2025, not verified" in text


def test_the_cheapest_is_the_mean_of_repeats_of_a_line_that_keeps_its_promise():
    cells = [
        a_cell(rate_per_s=10.0, repeat=0, sent=100, good=100, late=0, refused=0),
        a_cell(rate_per_s=10.0, repeat=1, sent=100, good=99, late=1, refused=0),
        a_cell(rate_per_s=40.0, sent=400, good=200, late=0, refused=200),  # half the price
    ]
    usd = (0.045 / 3600 * 1000) * (1 / 10 + 1 / 9.9) / 2
    assert f"<td>99.5</td><td>{usd:.5f}</td>" in a_page(cells)
    lost = a_page(cells[2:])  # where none does, what there is
    assert "<td>50.0</td><td>0.0006" in lost


def test_of_nothing_there_is_a_page_that_says_so():
    text = a_page([])
    assert "There is nothing to say yet" in text
    assert "0 cells" in text


def test_the_page_is_the_same_for_the_same_results():
    cells = a_day(repeats=1, rates=(0.6,))
    assert a_page(cells) == a_page(cells)


def test_repeats_are_put_together_and_partial_ones_left_out():
    whole, cut = a_cell(repeat=0), a_cell(repeat=1, good=1, partial="killed")
    other = a_cell(slo_ms=50.0, partial="killed")
    lines = lines_of([cut, other, whole])
    assert [(line.first.slo_ms, line.cells, line.is_partial) for line in lines] == [
        (50.0, (other,), True),
        (100.0, (whole,), False),
    ]
    assert lines[1].attainment == 0.98
    assert lines[1].half_width([1.0, 2.0]) is None
    assert lines[1].half_width([1.0, 1.0, 1.0]) == 0.0


def test_what_all_configurations_share_is_said_once():
    cells = [
        a_cell(config=(("device", "cpu"), ("threads", n), ("policy", "fifo"))) for n in ("1", "2")
    ]
    own, shared = without_common(cells)
    assert [cell.config_name for cell in own] == ["threads=1", "threads=2"]
    assert shared == (("device", "cpu"), ("policy", "fifo"))
    assert "all of them device=cpu, policy=fifo" in a_page(cells)
    assert without_common(cells[:1])[0][0].config == ()
    assert without_common([]) == ([], ())


def test_what_two_machines_or_commits_measured_is_no_repeat():
    cells = [
        a_cell(machine="one", commit="abc", repeat=0),
        a_cell(machine="two", commit="abc", repeat=1),
        a_cell(machine="two", commit="def", repeat=2),
    ]
    own, shared = without_common(cells)
    assert shared == (("policy", "remontoir"), ("threads", "1"))
    assert {line.first.config_name for line in lines_of(own)} == {
        "machine=one, commit=abc", "machine=two, commit=abc", "machine=two, commit=def",
    }  # fmt: skip
    assert ("machine", "two") in without_common(cells[1:])[1]


def test_distributions_of_repeats_add_up():
    first = a_cell(latency=((1.0, 5), (2.0, 9)))
    second = a_cell(latency=((1.0, 1), (4.0, 3)))
    assert merged_latency([first, second]) == [(1.0, 6), (2.0, 10), (4.0, 12)]


@pytest.mark.parametrize(
    ("sort", "ascending", "expected"),
    [
        ("goodput", None, ["b", "a", "c"]),
        ("p99", None, ["a", "b", "c"]),  # c does not know it
        ("p99", False, ["b", "a", "c"]),
        ("late", None, ["c", "a", "b"]),
    ],
)
def test_the_board_is_sorted_by_any_metric(sort, ascending, expected):
    cells = [
        a_cell(config=(("n", "a"),), good=50, late=2, p99_ms=10.0),
        a_cell(config=(("n", "b"),), good=60, late=3, p99_ms=20.0),
        a_cell(config=(("n", "c"),), good=10, late=0),
    ]
    places = board(lines_of(cells), PRICES, sort=sort, ascending=ascending)
    assert [place.line.first.config[0][1] for place in places] == expected


def test_every_metric_is_known_of_a_whole_cell():
    cell = a_cell(
        p50_ms=1.0, p99_ms=2.0, p999_ms=3.0, refusal_p99_ms=0.5, cold_start_ms=9.0,
        server_cpu_s=5.0, server_rss_bytes=1 << 20, prediction_error_p99_ms=0.1,
    )  # fmt: skip
    [place] = board(lines_of([cell]), PRICES)
    values = dict(zip([m.name for m in METRICS], place.values, strict=True))
    assert None not in values.values()
    assert values["cpu"] == pytest.approx(5000 / 98)
    assert values["usd"] == pytest.approx(0.045 / 3600 * 1000 / 9.8)


def test_an_unknown_metric_lists_those_that_are():
    with pytest.raises(UnknownMetric, match="no metric 'speed'; there are goodput, attainment"):
        metric("speed")


def test_the_heat_map_is_of_executions_where_they_were_measured():
    lines = lines_of([a_cell(batch=1), a_cell(batch=4), a_cell(model="magika", batch=1)])
    rates = batch_rates(lines, [a_point("resnet18", 2, 0.1)])
    assert rates == {("magika", 1): 9.8, ("resnet18", 2): 20.0}
    assert batch_rates(lines_of([a_cell()]), ()) == {}


def told(cells, **more) -> str:
    return " ".join(sentences(lines_of(cells), PRICES, **more))


def test_guidance_says_up_to_which_rate_a_promise_is_kept():
    cells = [
        a_cell(rate_per_s=rate, sent=100, good=good, refused=100 - good, late=0)
        for rate, good in ((5.0, 100), (10.0, 99), (20.0, 60))
    ]
    text = told(cells)
    assert "keeps 100 ms for 99.0 % up to 10/s; at 20/s 60.0 % are in time (6.0/s)" in text
    assert "its limit was not found" in told(cells[:2])
    assert "at no rate that was measured: 60.0 % at 20/s" in told(cells[2:])


def test_guidance_names_the_cheapest_configuration():
    cells = [
        a_cell(config=(("threads", "1"),), good=100, late=0, refused=0, devices=1, busy=1.0),
        a_cell(config=(("threads", "4"),), good=100, late=0, refused=0, devices=4, busy=1.0),
    ]
    assert "resnet18 within 100 ms is threads=1 at 10/s: 0.00125 US$" in told(cells)


def test_guidance_says_what_limits_a_model_and_whether_batching_pays():
    points = (a_point("m", 1, 0.02), a_point("m", 8, 0.1))
    text = told([], points=points, ceilings=CEILINGS, batch_rates=batch_rates([], points))
    assert "m executes 1.60 times as many rows per second in batches of 8 as of 1" in text
    assert "m at batch 1: 1,000 MFLOP at 90.9 FLOPs per byte; computing limits it" in text
    assert "It reaches 50 % of its roof" in text
    flat = {("m", 1): 100.0, ("m", 8): 101.0}
    assert "Batching does not pay for m" in told([], batch_rates=flat)


def test_guidance_doubts_figures_that_are_doubtful():
    text = told([
        a_cell(late=5, driver_error_p99_ms=20.0, errors=(("timeout", 3),), partial="disk full"),
    ])  # fmt: skip
    assert "1 of 1 lines are of runs that were cut short (disk full)" in text
    assert "p99 up to 20.00 ms" in text
    assert "3 x timeout" in text
    assert "answered too late" in text


def test_guidance_doubts_tails_and_shares_of_few_requests():
    few = told([a_cell(sent=60, good=60, late=0, refused=0)])
    assert "1 of 1 lines a run has fewer than 1,000 answers (60 at the least)" in few
    assert "with fewer than 100 its p99, too" in few
    assert "The shortest line has 60 requests: 99 % in time of so many is known to ± 2.5" in few
    assert "its p99, too" not in told([a_cell(sent=500, good=500, late=0, refused=0)])
    many = told([a_cell(sent=5000, good=5000, late=0, refused=0)])
    assert "answers" not in many
    assert "known to" not in many


def test_guidance_holds_kinds_of_arrivals_apart():
    cells = [
        a_cell(arrivals="poisson", sent=100, good=100, late=0, refused=0),
        a_cell(arrivals="on-off", sent=100, good=40, late=0, refused=60),
    ]
    text = told(cells)
    assert "resnet18 (on-off) keeps 100 ms for 99.0 % of the requests at no rate" in text
    assert "resnet18 (poisson) keeps 100 ms for 99.0 % up to 10/s" in text


def test_a_curve_says_whether_its_repeats_have_intervals():
    three = a_page(a_day(repeats=3, rates=(0.6, 1.5)))
    assert "Bars: 95 % intervals over the repeats." in three
    one = a_page(a_day(repeats=1, rates=(0.6, 1.5)))
    assert "below three repeats nothing is known" in one
    assert "Bars:" not in one


def test_energy_and_busy_go_from_measured_to_assumed():
    assert a_cell(busy=0.25, server_cpu_s=9.0).used() == 0.25
    assert a_cell(server_cpu_s=5.0, duration_s=10.0, devices=2).used() == 0.25
    assert a_cell(device="cuda-t4").used() == 1.0
