"""How every picture looks: colours, sizes, fonts; and figures as bytes.

Owns the one import of matplotlib, made when the first picture is drawn. Never touches global state:
no pyplot, and settings hold only inside `drawing`.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
WIDTH_IN = 9.0
TITLE_CHARACTERS = 78  # of a title, in the width
LEGEND_CHARACTERS = 110  # of a legend's line
LEGEND_LINE_IN = 0.22
# Told apart with any colour vision (Okabe and Ito, 2008); without its yellow, too pale for lines.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
ALARM = "#D55E00"
GREY = "#9a9a9a"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)),
)  # fmt: skip

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 10.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class MissingLibrary(RuntimeError):
    """A picture was asked for where matplotlib is not installed; the message says what to do."""


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings over matplotlib's own defaults, whatever the user's are."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingLibrary(
            'pictures need matplotlib: pip install "remontoir[simulate]"'
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(height_in: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """An empty figure and its axes, row by row. Only inside `drawing`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [axis for line in axes for axis in line]


def png_of(figure: "Figure") -> bytes:
    """The picture as a PNG file, the same bytes for the same figure."""
    written = io.BytesIO()
    with drawing():
        figure.savefig(written, format="png", dpi=DPI, metadata={"Software": None})
    return written.getvalue()


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def dash(index: int) -> str | tuple[float, tuple[float, ...]]:
    """So that more lines than colours, and lines without colour, are told apart."""
    return DASHES[(index // len(COLOURS) + index) % len(DASHES)]


def natural(name: str) -> tuple[str, int, str]:
    """A key to sort names by: w2 before w10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name


def fitted(title: str) -> str:
    """A title broken into lines that fit the picture, and cut after the third."""
    return textwrap.fill(title, TITLE_CHARACTERS, max_lines=3, placeholder=" …")


def legend_below(figure: "Figure", handles: "Sequence[Artist]", labels: Sequence[str]) -> None:
    """Under the axes: it never covers what is drawn. As many columns as its words leave room for;
    the picture grows by the lines it needs.
    """
    if not labels:
        return
    columns = max(1, min(6, LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_IN * (lines - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
