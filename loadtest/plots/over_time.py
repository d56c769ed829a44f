"""What the devices' samples show over time: pages, schedule_ahead, how busy their lanes were."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadtest.plots.style import (
    GREY,
    colour,
    dash,
    drawing,
    fitted,
    legend_below,
    natural,
    new_figure,
)
from loadtest.results.tables import Table, Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More devices are drawn together: their sum, or each as a thin line under their median.
MAX_DEVICES = 6
_STATES = (("pages_resident", "resident", 0), ("pages_loading", "loading", 1))


def pages(tables: Tables, *, title: str = "Pages") -> "Figure":
    """Resident, loading and free pages over time: per device, or of all where there are many."""
    devices = tables.devices
    parts = list(_by_worker(devices))
    if len(parts) > MAX_DEVICES:
        parts = [(f"all {len(parts)} devices", _summed(devices))]
    # one axis of time for all: who joins late or is lost shows as such
    span_s = (devices["at_ns"].min() / 1e9, devices["at_ns"].max() / 1e9) if parts else (0, 0)
    columns = 1 if len(parts) <= 1 else 2
    rows = max(1, -(-len(parts) // columns))
    with drawing():
        figure, axes = new_figure(1.2 + (3.6 if rows == 1 else 2.3 * rows), rows, columns)
        figure.suptitle(fitted(title), fontsize=13, fontweight="bold", x=0.01, ha="left")
        for axis, (worker, samples) in zip(axes, parts, strict=False):
            seconds = samples["at_ns"] / 1e9
            heights = [samples[column] for column, _, _ in _STATES] + [samples["pages_free"]]
            axis.stackplot(
                seconds, *heights, labels=[label for _, label, _ in _STATES] + ["free"],
                colors=[colour(index) for _, _, index in _STATES] + ["#e8e8e8"], step="post",
            )  # fmt: skip
            axis.set(title=worker, xlabel="time (s)", ylabel="pages")
            axis.set_ylim(0, max(1, int(np.max(np.sum(heights, axis=0)))))
            axis.set_xlim(span_s[0], max(span_s[1], span_s[0] + 1e-9))
        for axis in axes[len(parts) :]:
            axis.set_axis_off()
        if parts:
            legend_below(figure, *axes[0].get_legend_handles_labels())
    return figure


def schedule_ahead(tables: Tables, *, title: str = "schedule_ahead") -> "Figure":
    """schedule_ahead of every device over time, and below it the gap rate where one was kept."""
    has_gaps = bool((tables.devices["gap_rate"] > 0).any())
    with drawing():
        figure, axes = new_figure(6.0 if has_gaps else 4.0, 2 if has_gaps else 1)
        _lines(axes[0], tables.devices, "schedule_ahead_ns", 1e6)
        axes[0].set(title=fitted(title), ylabel="schedule_ahead (ms)")
        if has_gaps:
            _lines(axes[1], tables.devices, "gap_rate", 1.0)
            axes[1].set(ylabel="gap rate")
        axes[-1].set_xlabel("time (s)")
        for axis in axes:
            axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
        legend_below(figure, *axes[-1].get_legend_handles_labels())
    return figure


def busy(tables: Tables, *, title: str = "How busy the lanes were") -> "Figure":
    """Busy share of the EXEC and LOAD lane of every device, between one sample and the next."""
    with drawing():
        figure, axes = new_figure(6.0, 2)
        for axis, kind in zip(axes, ("exec", "load"), strict=True):
            _lines(axis, tables.devices, f"{kind}_busy_share", 0.01, where="pre")
            axis.set(ylabel=f"{kind.upper()} busy (%)")
            axis.set_ylim(0, 103)
        axes[0].set_title(fitted(title))
        axes[-1].set_xlabel("time (s)")
        legend_below(figure, *axes[-1].get_legend_handles_labels())
    return figure


def _lines(
    axis: "Axes",
    devices: Table,
    column: str,
    unit: float,
    where: Literal["pre", "post"] = "post",
) -> None:
    """`where`: whether a sample tells of the time before it or after."""
    parts = list(_by_worker(devices))
    is_crowd = len(parts) > MAX_DEVICES
    for index, (worker, samples) in enumerate(parts):
        axis.step(
            samples["at_ns"] / 1e9, samples[column] / unit, where=where,
            label=None if is_crowd else worker,
            color=GREY if is_crowd else colour(index),
            linestyle="-" if is_crowd else dash(index),
            linewidth=0.6 if is_crowd else 1.6,
        )  # fmt: skip
    if is_crowd:
        instants = np.unique(devices["at_ns"])
        middle = [np.median(devices[column][devices["at_ns"] == at]) / unit for at in instants]
        axis.step(
            instants / 1e9, middle, where=where, color=colour(0),
            label=f"median of {len(parts)} devices (grey: each)",
        )  # fmt: skip


def _by_worker(devices: Table) -> Iterator[tuple[str, Table]]:
    for worker in sorted(set(devices.texts("worker")), key=natural):
        yield worker, devices.rows(devices.has("worker", worker))


def _summed(devices: Table) -> Table:
    """Pages of all devices at each instant."""
    instants, places = np.unique(devices["at_ns"], return_inverse=True)
    columns = {"at_ns": instants}
    for name in ("pages_free", "pages_loading", "pages_resident"):
        columns[name] = np.bincount(places, weights=devices[name]).astype(np.int64)
    return Table(columns)
