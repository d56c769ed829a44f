"""Pictures as SVG inside a page: matplotlib draws them, the page's style colours them.

Owns the colours' names. Each is drawn in a colour of its own that nothing else has, and becomes a
CSS variable, so that one picture is readable on light and on dark.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loadtest.plots.style import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010203", "#040506", "#fafbfc"
SERIES = tuple(f"#0101{16 + index:02x}" for index in range(len(COLOURS)))
WIDTH_IN = 7.6
PANEL_HEIGHT_IN = 3.4
LEGEND_LINE_IN = 0.2

_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
_SETTINGS: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "font.size": 9.0,
    "svg.fonttype": "none",  # words stay words: they can be searched, and take the page's font
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def drawing_svg() -> Iterator[None]:
    """Our settings; raises plots.MissingLibrary where matplotlib is not installed."""
    with drawing():
        import matplotlib

        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_panels(count: int, *, height_in: float = PANEL_HEIGHT_IN) -> "tuple[Figure, list[Axes]]":
    """A row of panels. Only inside `drawing_svg`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])


def series(index: int) -> str:
    return SERIES[index % len(SERIES)]


def legend(figure: "Figure", axis: "Axes") -> None:
    """Below everything; the picture grows by the lines it needs."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) < 2:
        return
    columns = max(1, min(4, 96 // (max(map(len, labels)) + 6)))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_IN * lines)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def svg_of(figure: "Figure", name: str, description: str) -> str:
    """The picture's element, the same text for the same figure. Ids begin with `name`, since
    matplotlib numbers them from one in every picture of a page.
    """
    import matplotlib

    written = io.StringIO()
    with drawing_svg():
        matplotlib.rcParams["svg.hashsalt"] = name
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    described = _escaped(description)
    return text.replace("<svg", f'<svg role="img" aria-label="{described}"', 1)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
