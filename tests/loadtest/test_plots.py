"""Pictures: what is drawn is what the tables say, read back from the axes and never from pixels."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from loadtest.plots import (
    busy,
    goodput,
    lanes,
    latency_cdf,
    pages,
    png_of,
    prediction_errors,
    schedule_ahead,
)
from loadtest.plots.curves import MAX_POINTS, _ranks
from loadtest.plots.style import ALARM, GREY
from loadtest.results import Collector, Table, Tables, interval
from scheduler.actions import Code
from scheduler.events import Expired, Reason, Rejected
from tests.loadtest.results_story import (
    Script,
    infer,
    inferred,
    load,
    loaded,
    ms,
    not_inferred,
    scheduler_with,
    served,
)


def size_of(figure) -> tuple[int, int]:
    with Image.open(io.BytesIO(png_of(figure))) as image:
        image.verify()
        return image.size


def lines_of(axis) -> dict[str, list[tuple[float, float]]]:
    """Label → points, of what has a label."""
    return {
        line.get_label(): list(
            zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
        )
        for line in axis.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def legend_of(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def answered(latencies_ms: Sequence[float], rejected: int = 0, slo_ms: float = 10) -> Tables:
    told = Script(Collector(scheduler_with("w0")))
    told.arrive(0, *range(len(latencies_ms) + rejected), slo_ms=slo_ms)
    for request_id, latency_ms in enumerate(latencies_ms):
        told.answer(latency_ms, (request_id, served()))
    for request_id in range(len(latencies_ms), len(latencies_ms) + rejected):
        told.answer(99, (request_id, Rejected(Reason.OVERLOADED, "")))
    return told.collector.tables()


# ---------------------------------------------------------------------- curves


def test_goodput_is_the_mean_over_seeds_with_intervals_from_three_on() -> None:
    ours = {10.0: [600, 610, 620], 25.0: [800, 800, 800]}
    figure = goodput({"remontoir": ours, "fifo": {10.0: [100, 120]}}, bound={10.0: 650, 25.0: 900})
    [axis] = figure.axes
    first, second = axis.containers
    assert first.lines[0].get_xydata().tolist() == [[10, 610], [25, 800]]
    half = interval([600, 610, 620]).half_width
    [bars] = first.lines[2]
    [low, high] = bars.get_segments()[0].tolist()
    assert low == [10, pytest.approx(610 - half)]
    assert high == [10, pytest.approx(610 + half)]
    assert second.lines[0].get_xydata().tolist() == [[10, 110]]
    assert second.lines[2] == ()  # two seeds: no interval
    assert lines_of(axis)["upper bound"] == [(10, 650), (25, 900)]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10", "25"]
    assert axis.get_xscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("SLO (ms)", "goodput (requests/s)")
    assert legend_of(figure) == ["upper bound", "remontoir", "fifo"]


def test_an_axis_from_zero_on_is_linear() -> None:
    [axis] = goodput({"a": {0.0: [1.0], 5.0: [2.0]}}).axes
    assert axis.get_xscale() == "linear"


def test_a_latency_curve_ends_at_the_share_that_was_served() -> None:
    figure = latency_cdf({"ours": answered([1, 2, 4], rejected=1), "other": answered([3] * 2)})
    curves = lines_of(figure.axes[0])
    assert curves["ours"] == [(1, 0.25), (2, 0.5), (4, 0.75)]
    assert curves["other"] == [(3, 0.5), (3, 1.0)]
    assert curves["SLO 10 ms"] == [(10, 0), (10, 1)]


def test_every_slo_is_a_line_of_its_own_look() -> None:
    figure = latency_cdf({"a": answered([1], slo_ms=20), "b": answered([1], slo_ms=10)})
    [axis] = figure.axes
    lines = lines_of(axis)
    assert list(lines) == ["a", "b", "SLO 10 ms", "SLO 20 ms"]
    assert (lines["SLO 10 ms"], lines["SLO 20 ms"]) == ([(10, 0), (10, 1)], [(20, 0), (20, 1)])
    shorter, longer = axis.get_lines()[2:]
    assert shorter.get_color() == longer.get_color() == GREY
    assert shorter.get_linestyle() != longer.get_linestyle()


def test_of_many_slos_the_shortest_and_the_longest_are_lines() -> None:
    runs = {f"{slo_ms}": answered([1], slo_ms=slo_ms) for slo_ms in (10, 2.5, 20, 40, 80)}
    lines = lines_of(latency_cdf(runs).axes[0])
    assert [label for label in lines if "SLO" in label] == [
        "shortest of 5 SLOs: 2.5 ms", "longest of 5 SLOs: 80 ms",
    ]  # fmt: skip


def test_a_latency_curve_counts_the_window_only() -> None:
    told = Script(Collector(scheduler_with()))
    told.arrive(0, 1)
    told.arrive(50, 2)
    told.answer(5, (1, served()))
    told.answer(53, (2, served()))
    figure = latency_cdf({"a": told.collector.tables()}, (ms(50), ms(100)))
    assert lines_of(figure.axes[0])["a"] == [(3, 1.0)]


def test_tails_of_prediction_errors_are_shares_of_all_actions() -> None:
    """Expected 5 ms each: two take 1 and 3 ms more, one takes 2 ms less, one is exact."""
    told = Script(Collector(scheduler_with("w0")))
    begin_ms = 0.0
    for action_id, took_ms in enumerate((6, 8, 3, 5), start=1):
        told.send(begin_ms, infer(action_id, action_id, start_ms=begin_ms))
        told.finish(begin_ms + 9, inferred(action_id, begin_ms, begin_ms + took_ms))
        begin_ms += 20
    told.send(begin_ms, load(5, start_ms=begin_ms))
    told.finish(begin_ms + 20, loaded(5, begin_ms + 4, begin_ms + 4 + 8))  # exact, and 4 ms late
    figure = prediction_errors(told.collector.tables())
    longer, shorter, later, earlier = figure.axes
    assert lines_of(longer) == {"INFER (4)": [(0, 0.5), (1000, 0.5), (3000, 0.25)]}
    assert lines_of(shorter) == {"INFER (4)": [(0, 0.25), (2000, 0.25)]}
    assert lines_of(later) == {
        "INFER (4)": [(0, 0.5), (1000, 0.5), (3000, 0.25)],
        "LOAD (1)": [(0, 1.0), (4000, 1.0)],  # a single one is seen, too
    }
    assert lines_of(earlier) == {"INFER (4)": [(0, 0.25), (2000, 0.25)]}
    assert longer.get_yscale() == "log"


def test_errors_of_a_window_and_none_at_all() -> None:
    told = Script(Collector(scheduler_with("w0")))
    told.send(0, infer(1, 1, start_ms=0))
    told.finish(9, inferred(1, 0, 6))
    tables = told.collector.tables()
    assert lines_of(prediction_errors(tables, (0, 1)).axes[0])
    figure = prediction_errors(tables, (1, 2))
    assert [lines_of(axis) for axis in figure.axes] == [{}] * 4
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["none"] * 4


def test_a_long_curve_is_thinned_and_keeps_both_ends() -> None:
    assert _ranks(MAX_POINTS).tolist() == list(range(MAX_POINTS))
    ranks = _ranks(1_000_000)
    assert len(ranks) <= 1.5 * MAX_POINTS
    assert np.all(np.diff(ranks) > 0)
    assert ranks[:3].tolist() == [0, 1, 2]
    assert ranks[-3:].tolist() == [999_997, 999_998, 999_999]
    assert np.diff(ranks).max() <= 1001


# ---------------------------------------------------------------------- lanes


def played() -> Tables:
    """w0: LOAD n 0-8, EXEC n 9-14 with a late answer. w2: EXEC m 2-7, and one too late at 8."""
    told = Script(Collector(scheduler_with("w0", "w2")))
    told.arrive(0, 1, model="n", slo_ms=12)
    told.arrive(0, 2, 3, 4, model="m", slo_ms=20)
    told.send(0, load(1, start_ms=0, model="n"))
    told.send(0, infer(2, 2, 3, start_ms=2), infer(3, 4, start_ms=8), worker_id="w2")
    told.finish(8, inferred(2, 2, 7), [(i, served("w2", 2)) for i in (2, 3)], worker_id="w2")
    told.finish(9, loaded(1, 0, 8))
    told.send(9, infer(4, 1, start_ms=9, model="n"))
    told.finish(10, not_inferred(3, Code.TOO_LATE, 9), worker_id="w2")
    told.answer(12, (1, Expired(Reason.DEADLINE_EXCEEDED_EXECUTING, "")))
    told.finish(15, inferred(4, 9, 14))
    return told.collector.tables()


def bars_of(axis) -> list[tuple[float, float, float]]:
    """(lane, begin, end)"""
    return sorted(
        (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_x() + bar.get_width())
        for bar in axis.patches
    )


def test_lanes_are_drawn_as_measured() -> None:
    [axis] = lanes(played(), 0, ms(20)).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "w0  EXEC", "w0  LOAD", "w2  EXEC", "w2  LOAD",
    ]  # fmt: skip
    assert bars_of(axis) == [(0, 9, 14), (1, 0, 8), (2, 2, 7)]
    assert [(text.get_text(), *text.get_position()) for text in axis.texts] == [
        ("1", 11.5, 0), ("2", 4.5, 2),
    ]  # fmt: skip
    assert axis.get_xlim() == (0, 20)


def test_late_answers_are_framed_and_what_did_not_start_is_crossed() -> None:
    from matplotlib.colors import to_hex

    figure = lanes(played(), 0, ms(20))
    [axis] = figure.axes
    framed = [bar.get_x() for bar in axis.patches if to_hex(bar.get_edgecolor()) == ALARM.lower()]
    assert framed == [9]
    [cross] = axis.get_lines()
    assert (cross.get_marker(), cross.get_xydata().tolist()) == ("x", [[8, 2]])
    assert legend_of(figure) == ["m", "n", "LOAD", "with late answers", "too late"]


def test_a_model_has_one_colour_in_both_lanes() -> None:
    [axis] = lanes(played(), 0, ms(20)).axes
    colour_at = {bar.get_x(): bar.get_facecolor()[:3] for bar in axis.patches}
    assert colour_at[9] == colour_at[0] != colour_at[2]


def test_only_what_touches_the_window_is_drawn() -> None:
    figure = lanes(played(), ms(1), ms(2))
    assert bars_of(figure.axes[0]) == [(1, 0, 8)]
    assert legend_of(figure) == ["n", "LOAD"]


def test_lanes_without_loads_and_beyond_the_colours() -> None:
    told = Script(Collector(scheduler_with("w0")))
    for number in range(1, 31):
        worker = f"w{number}"
        told.send(0, infer(number, number, start_ms=0, model=f"m{number}"), worker_id=worker)
        told.finish(50, inferred(number, 0, number), worker_id=worker)
    figure = lanes(told.collector.tables(), 0, ms(30))
    [axis] = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[:3] + names[-1:] == ["w1  EXEC", "w2  EXEC", "w3  EXEC", "w24  EXEC"]
    assert axis.get_title(loc="left") == "Timeline of lanes, first 24 of 30 lanes"
    assert "m30" in legend_of(figure)
    assert "25 other models" in legend_of(figure)


def test_an_empty_timeline_is_an_error_and_an_idle_one_a_picture() -> None:
    with pytest.raises(ValueError, match=r"timeline \[5 ns, 5 ns\) is empty"):
        lanes(played(), 5, 5)
    assert size_of(lanes(played(), ms(100), ms(200)))[0] == 1080


# ---------------------------------------------------------------------- over time


def sampled(num_devices: int, *, gaps: bool = False) -> Tables:
    """At 1 and 2 s; device i has i pages free and 2 loading of 100, 2 + i ms ahead."""
    at_ns = np.repeat([1_000_000_000, 2_000_000_000], num_devices)
    index = np.tile(np.arange(num_devices), 2)
    ones = np.ones(2 * num_devices)
    columns = {
        "at_ns": at_ns,
        "worker": index.astype(np.int16),
        "pages_free": index,
        "pages_loading": (2 * ones).astype(np.int32),
        "pages_resident": 98 - index,
        "schedule_ahead_ns": (2 + index) * 1_000_000,
        "gap_rate": 0.01 * ones * gaps,
        "exec_busy_share": 0.5 * ones,
        "load_busy_share": 0.25 * ones,
    }
    empty = played()
    names = [f"w{i}" for i in range(num_devices)]
    return Tables(empty.requests, empty.actions, Table(columns, {"worker": names}))


def test_pages_are_stacked_per_device() -> None:
    figure = pages(sampled(3))
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title(loc="left") for axis in drawn] == ["w0", "w1", "w2"]
    tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in drawn[2].collections]
    assert tops == [96, 98, 100]
    assert legend_of(figure) == ["resident", "loading", "free"]


def test_pages_of_all_devices_have_one_axis_of_time() -> None:
    """w1 is there at 2 s only."""
    whole = sampled(2)
    late = whole.devices.rows(np.array([True, False, True, True]))
    figure = pages(Tables(whole.requests, whole.actions, late))
    assert [axis.get_xlim() for axis in figure.axes if axis.axison] == [(1, 2), (1, 2)]


def test_pages_of_many_devices_are_added_up() -> None:
    [axis] = pages(sampled(7)).axes
    assert axis.get_title(loc="left") == "all 7 devices"
    tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in axis.collections]
    assert tops == [7 * 98 - 21, 7 * 100 - 21, 700]


def test_schedule_ahead_has_a_line_per_device_and_gaps_below_it() -> None:
    figure = schedule_ahead(sampled(2))
    assert lines_of(figure.axes[0]) == {"w0": [(1, 2), (2, 2)], "w1": [(1, 3), (2, 3)]}
    assert len(figure.axes) == 1
    above, below = schedule_ahead(sampled(2, gaps=True)).axes
    assert set(lines_of(above)) == {"w0", "w1"}
    assert lines_of(below)["w1"] == [(1, 0.01), (2, 0.01)]


def test_many_devices_are_grey_under_their_median() -> None:
    [axis] = schedule_ahead(sampled(9)).axes
    assert lines_of(axis) == {"median of 9 devices (grey: each)": [(1, 6), (2, 6)]}
    assert sum(line.get_color() == GREY for line in axis.get_lines()) == 9


def test_busy_shares_are_percent() -> None:
    above, below = busy(sampled(1)).axes
    assert lines_of(above) == {"w0": [(1, 50), (2, 50)]}
    assert lines_of(below) == {"w0": [(1, 25), (2, 25)]}
    assert (above.get_ylabel(), below.get_ylabel()) == ("EXEC busy (%)", "LOAD busy (%)")


# ---------------------------------------------------------------------- files


def test_every_picture_is_a_png_of_its_size() -> None:
    assert size_of(goodput({"a": {1.0: [1.0]}})) == (1080, 600)
    assert size_of(latency_cdf({"a": answered([1])})) == (1080, 600)
    assert size_of(prediction_errors(played())) == (1080, 840)
    assert size_of(lanes(played(), 0, ms(20))) == (1080, 403)
    assert size_of(pages(sampled(1))) == (1080, 576)
    assert size_of(schedule_ahead(sampled(1))) == (1080, 480)


def test_long_words_make_a_picture_higher_and_never_wider() -> None:
    words = "clockwork:schedule_ahead_ms=5,deadline_floor, noise 0.05, seed "
    figure = goodput({f"{words}{i}": {1.0: [1.0]} for i in range(5)}, title=words * 8)
    assert size_of(figure) == (1080, int(120 * (5 + 4 * 0.22)))
    title = figure.axes[0].get_title(loc="left").split("\n")
    assert (len(title), max(map(len, title)) <= 78) == (3, True)
    assert title[-1].endswith(" …")


def test_the_same_tables_give_the_same_bytes() -> None:
    assert png_of(lanes(played(), 0, ms(20))) == png_of(lanes(played(), 0, ms(20)))


def test_pictures_leave_the_users_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    png_of(goodput({"a": {1.0: [1.0]}}))
    assert dict(matplotlib.rcParams) == before
