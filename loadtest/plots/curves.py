"""Curves: goodput over a variable, the distribution of latencies, tails of prediction errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from loadtest.plots.style import (
    GREY,
    colour,
    dash,
    drawing,
    fitted,
    legend_below,
    marker,
    new_figure,
)
from loadtest.results.intervals import interval
from loadtest.results.summary import completion_errors_ns, prediction_errors_ns
from loadtest.results.tables import INFER, LOAD, SERVED, Numbers, Table, Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
# A curve of more points is thinned to about as many, evenly in rank and again towards its tail.
MAX_POINTS = 2_000
# More SLOs than these would be a fence of lines: then the shortest and the longest stand for all.
MAX_SLOS = 4


def goodput(
    series: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    title: str = "Goodput by SLO",
    x_label: str = "SLO (ms)",
    y_label: str = "goodput (requests/s)",
    bound: Mapping[float, float] | None = None,
    log_x: bool = True,
) -> "Figure":
    """One line per policy: x → one value per seed. Bars are 95 % intervals, from 3 seeds on."""
    with drawing():
        figure, (axis,) = new_figure(5.0)
        for index, (label, points) in enumerate(series.items()):
            xs = sorted(points)
            means = [float(np.mean(points[x])) for x in xs]
            halves = [interval(points[x]).half_width if len(points[x]) >= 3 else 0.0 for x in xs]
            axis.errorbar(
                xs, means, yerr=halves if any(halves) else None, label=label, capsize=3,
                elinewidth=1.0,
                color=colour(index), marker=marker(index), markersize=6, linestyle=dash(index),
            )  # fmt: skip
        if bound:
            xs = sorted(bound)
            axis.plot(xs, [bound[x] for x in xs], color=GREY, linestyle=":", label="upper bound")
        every_x = sorted({x for points in series.values() for x in points} | set(bound or ()))
        if log_x and every_x and every_x[0] > 0:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(every_x, [f"{x:g}" for x in every_x])
        axis.set_ylim(bottom=0)
        axis.set(title=fitted(title), xlabel=x_label, ylabel=y_label)
        legend_below(figure, *axis.get_legend_handles_labels())
    return figure


def latency_cdf(
    runs: Mapping[str, Tables],
    window: tuple[int, int] | None = None,
    *,
    title: str = "Latency at the client",
) -> "Figure":
    """Per run, the share of all requests that were served within so long.

    A curve ends at the share that was served at all. Every SLO is a line, up to MAX_SLOS of them.
    """
    with drawing():
        figure, (axis,) = new_figure(5.0)
        slos: set[int] = set()
        for index, (label, tables) in enumerate(runs.items()):
            requests = _arrived_in(tables.requests, window)
            slos.update(np.unique(requests["slo_ns"]).tolist())
            served = requests.rows(requests.has("outcome", SERVED))
            latency_ms = np.sort(served["answered_ns"] - served["arrival_ns"]) / 1e6
            ranks = _ranks(len(latency_ms))
            axis.step(
                latency_ms[ranks], (ranks + 1) / max(1, len(requests)), where="post",
                label=label, color=colour(index), linestyle=dash(index),
            )  # fmt: skip
        for index, (label, slo_ms) in enumerate(_slo_lines(slos).items()):
            axis.axvline(slo_ms, color=GREY, linestyle=dash(index + 3), label=label)
        axis.set_xscale("log")
        _plain_ticks(axis, (1.0, 2.0, 5.0))
        axis.set_ylim(0, 1.02)
        axis.set(
            title=fitted(title), xlabel="latency (ms)", ylabel="share of all requests served within"
        )
        legend_below(figure, *axis.get_legend_handles_labels())
    return figure


def _slo_lines(slos: set[int]) -> dict[str, float]:
    """Label → milliseconds."""
    slos_ms = [slo_ns / 1e6 for slo_ns in sorted(slos)]
    if len(slos_ms) <= MAX_SLOS:
        return {f"SLO {slo_ms:g} ms": slo_ms for slo_ms in slos_ms}
    return {
        f"{which} of {len(slos_ms)} SLOs: {slo_ms:g} ms": slo_ms
        for which, slo_ms in (("shortest", slos_ms[0]), ("longest", slos_ms[-1]))
    }


def prediction_errors(
    tables: Tables,
    window: tuple[int, int] | None = None,
    *,
    title: str = "Prediction errors",
) -> "Figure":
    """Tails, as Clockwork (OSDI'20, section 6.5) draws them: the share of actions that erred by
    more than so much, those that took longer than expected apart from those that were quicker.

    Above: durations. Below: completions, from the end that was planned when the action was sent.
    """
    actions = tables.actions
    if window is not None:
        sent_ns = actions["sent_ns"]
        actions = actions.rows((sent_ns >= window[0]) & (sent_ns < window[1]))
    with drawing():
        from matplotlib.ticker import FuncFormatter

        figure, axes = new_figure(7.0, 2, 2)
        figure.suptitle(fitted(title), fontsize=13, fontweight="bold", x=0.01, ha="left")
        for row, (what, errors_of) in enumerate(
            (("duration", prediction_errors_ns), ("completion", completion_errors_ns))
        ):
            for index, kind in enumerate((INFER, LOAD)):
                errors_us = errors_of(actions, kind) / 1e3
                for column, errors in enumerate((errors_us, -errors_us)):
                    _tail(axes[2 * row + column], errors, kind.upper(), index)
            axes[2 * row].set_title(f"{what}: longer than expected")
            axes[2 * row + 1].set_title(f"{what}: shorter than expected")
            if what == "completion":
                axes[2].set_title("completion: later than planned")
                axes[3].set_title("completion: earlier than planned")
        for axis in axes:
            axis.set(xlabel="error (µs)", ylabel="share that erred by more")
            axis.set_yscale("log")
            axis.set_xscale("symlog", linthresh=1.0, linscale=0.3)
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_ylim(top=1.2)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(loc="lower left")  # tails fall to the right
            else:
                axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", color=GREY)
    return figure


def _tail(axis: "Axes", errors_us: Floats, label: str, index: int) -> None:
    """The share of all that erred by more, in this direction: from what did at all, at 0, down by
    a step at each error.
    """
    beyond = np.sort(errors_us[errors_us > 0])
    if not len(beyond):
        return
    # densest at the last ranks: the tail is what this picture is for
    ranks = len(beyond) - 1 - _ranks(len(beyond))[::-1]
    shares = (len(beyond) - ranks) / len(errors_us)
    axis.step(
        [0.0, *beyond[ranks]], [shares[0], *shares], where="pre",
        label=f"{label} ({len(errors_us):,})", color=colour(index), linestyle=dash(index),
    )  # fmt: skip


def _ranks(count: int) -> npt.NDArray[np.int64]:
    """Ascending ranks 0 … count - 1, all of them or about MAX_POINTS; both ends are kept dense."""
    if count <= MAX_POINTS:
        return np.arange(count)
    evenly = np.linspace(0, count - 1, MAX_POINTS // 2)
    tail = np.geomspace(1, count, MAX_POINTS // 4) - 1
    return np.unique(np.concatenate((evenly, tail, count - 1 - tail)).astype(np.int64))


def _arrived_in(requests: Table, window: tuple[int, int] | None) -> Table:
    if window is None:
        return requests
    arrival_ns: Numbers = requests["arrival_ns"]
    return requests.rows((arrival_ns >= window[0]) & (arrival_ns < window[1]))


def _plain_ticks(axis: "Axes", subs: tuple[float, ...] = (1.0,)) -> None:
    """On a logarithmic axis: 0.2, 5, 100 and no powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
