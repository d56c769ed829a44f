"""Pictures that loadtest.plots does not have: curves over time, one per policy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loadtest.plots.style import colour, dash, drawing, fitted, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]


def lines(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Mapping[str, float] | None = None,
) -> "Figure":
    """label → (xs, ys), joined; `marks` are instants with a word to each."""
    with drawing():
        figure, (axis,) = new_figure(4.6)
        for index, (label, (xs, ys)) in enumerate(curves.items()):
            axis.plot(xs, ys, label=label, color=colour(index), linestyle=dash(index))
        for word, at in (marks or {}).items():
            axis.axvline(at, color="#9a9a9a", linestyle=":")
            axis.annotate(word, (at, 0.02), xycoords=("data", "axes fraction"), rotation=90)
        axis.set_ylim(bottom=0)
        axis.set(title=fitted(title), xlabel=x_label, ylabel=y_label)
        legend_below(figure, *axis.get_legend_handles_labels())
    return figure
