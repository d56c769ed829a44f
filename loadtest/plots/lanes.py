"""The timeline of lanes, as a Gantt chart: what every device executed and loaded, and what went
wrong. Draws actions as they were measured, never as they were planned.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadtest.plots.style import (
    ALARM,
    COLOURS,
    GREY,
    WIDTH_IN,
    drawing,
    fitted,
    legend_below,
    natural,
    new_figure,
)
from loadtest.results.tables import INFER, LOAD, UNKNOWN_NS, Table, Tables
from scheduler.actions import Code

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LANES = 24
# More models than colours: the busiest have one each, the rest are grey.
MODEL_COLOURS = tuple(colour for colour in COLOURS if colour not in (ALARM, "#000000"))
_BAR = 0.76
_INCH_PER_DIGIT = 0.085


def lanes(
    tables: Tables, begin_ns: int, end_ns: int, *, title: str = "Timeline of lanes"
) -> "Figure":
    """EXEC and LOAD lane of every device in [begin_ns, end_ns), coloured by model.

    A bar's figure is its rows. A framed EXEC answered some request late or not at all; a cross is
    an action that could not start in its window or failed, where it was planned to start.
    """
    if end_ns <= begin_ns:
        raise ValueError(f"the timeline [{begin_ns} ns, {end_ns} ns) is empty")
    actions = tables.actions
    seen_ns = np.where(actions["end_ns"] == UNKNOWN_NS, actions["planned_start_ns"] + 1, 0)
    last_ns = np.maximum(actions["end_ns"], seen_ns)
    first_ns = np.where(
        actions["begin_ns"] == UNKNOWN_NS, actions["planned_start_ns"], actions["begin_ns"]
    )
    shown = actions.rows(
        (first_ns < end_ns) & (last_ns > begin_ns) & actions.has("kind", INFER, LOAD)
    )
    rows = _lanes_of(shown)
    with drawing():
        figure, (axis,) = new_figure(1.7 + 0.36 * max(1, min(len(rows), MAX_LANES)))
        colours = _colours_of(shown)
        for place, (worker, kind) in enumerate(rows[:MAX_LANES]):
            mine = shown.rows(shown.has("worker", worker) & shown.has("kind", kind))
            _draw_lane(axis, mine, place, colours, (begin_ns, end_ns))
        drawn = rows[:MAX_LANES]
        axis.set_yticks(
            range(len(drawn)), [f"{w}  {'EXEC' if k == INFER else k.upper()}" for w, k in drawn]
        )
        axis.set_ylim(max(1, len(drawn)) - 0.5, -0.5)
        axis.set_xlim(begin_ns / 1e6, end_ns / 1e6)
        axis.grid(visible=False, axis="y")
        more = f", first {MAX_LANES} of {len(rows)} lanes" if len(rows) > MAX_LANES else ""
        axis.set(title=fitted(title + more), xlabel="time (ms)")
        handles = _legend(colours, shown)
        legend_below(figure, handles, [str(handle.get_label()) for handle in handles])
    return figure


def _lanes_of(actions: Table) -> list[tuple[str, str]]:
    """(worker, kind), by worker; no LOAD lanes where nothing was loaded."""
    workers = sorted(set(actions.texts("worker")), key=natural)
    has_loads = bool(actions.has("kind", LOAD).any())
    return [(w, kind) for w in workers for kind in ((INFER, LOAD) if has_loads else (INFER,))]


def _colours_of(actions: Table) -> dict[str, str]:
    """Model → colour, busiest first; models without one are drawn grey."""
    busy_ns: dict[str, int] = {}
    spans = (actions["end_ns"] - actions["begin_ns"]).tolist()
    for model, span in zip(actions.texts("model"), spans, strict=True):
        busy_ns[model] = busy_ns.get(model, 0) + span
    busiest = sorted(busy_ns, key=lambda model: (-busy_ns[model], natural(model)))
    chosen = sorted(busiest[: len(MODEL_COLOURS)], key=natural)
    return dict(zip(chosen, MODEL_COLOURS, strict=False))


def _draw_lane(
    axis: "Axes", mine: Table, place: int, colours: dict[str, str], window: tuple[int, int]
) -> None:
    ms_per_inch = (window[1] - window[0]) / 1e6 / (WIDTH_IN * 0.82)
    is_load = bool(mine.has("kind", LOAD).all())
    ok, late = mine.has("code", Code.OK.name), mine["num_good"] < mine["num_requests"]
    for index, model in enumerate(mine.texts("model")):
        if not ok[index]:
            planned_ms = mine["planned_start_ns"][index] / 1e6
            axis.plot([planned_ms], [place], "x", color=ALARM, markersize=8, markeredgewidth=2)
            continue
        begin_ms, end_ms = mine["begin_ns"][index] / 1e6, mine["end_ns"][index] / 1e6
        axis.barh(
            place, end_ms - begin_ms, left=begin_ms, height=_BAR,
            color=colours.get(model, GREY),
            alpha=0.55 if is_load else 1.0,
            hatch="////" if is_load else None,
            edgecolor=ALARM if late[index] else "white",
            linewidth=2.0 if late[index] else 0.5,
        )  # fmt: skip
        digits = str(int(mine["rows"][index]))
        left_ms, right_ms = max(begin_ms, window[0] / 1e6), min(end_ms, window[1] / 1e6)
        middle_ms = (left_ms + right_ms) / 2  # of what is seen of it
        fits = (right_ms - left_ms) / ms_per_inch > _INCH_PER_DIGIT * len(digits)
        if not is_load and fits:
            axis.text(
                middle_ms, place, digits, ha="center", va="center", fontsize=8, color="white",
                fontweight="bold", clip_on=True,
            )  # fmt: skip


def _legend(colours: dict[str, str], shown: Table) -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [Patch(color=c, label=model) for model, c in colours.items()]
    ok = shown.has("code", Code.OK.name)
    others = set(shown.texts("model")) - set(colours)
    if others:
        handles.append(Patch(color=GREY, label=f"{len(others)} other models"))
    if (ok & shown.has("kind", LOAD)).any():
        handles.append(Patch(facecolor="#cccccc", hatch="////", edgecolor="white", label="LOAD"))
    if (ok & (shown["num_good"] < shown["num_requests"])).any():
        handles.append(
            Patch(facecolor="white", edgecolor=ALARM, linewidth=2, label="with late answers")
        )
    if not ok.all():
        label = ", ".join(_words(sorted(set(shown.texts("code")) - {Code.OK.name})))
        handles.append(
            Line2D([], [], marker="x", color=ALARM, linestyle="", markeredgewidth=2, label=label)
        )
    return handles


def _words(codes: Sequence[str]) -> list[str]:
    return [code.lower().replace("_", " ") for code in codes]
