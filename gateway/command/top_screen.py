"""The screen of `remontoir top`: figures in, something that rich can print out.

Owns layout and rounding. It must never compute what it shows, and fits what it is given into the
height that there is: the worst first.
"""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway.command.top_figures import DeviceLine, ModelLine, TopFigures

BLOCKS = " ▁▂▃▄▅▆▇█"
NOTHING = "-"
ORDERS = ("goodput", "misses", "name")
# Lines that are no rows: titles, headers, spaces between.
_FURNITURE = 9


def screen(
    figures: TopFigures, *, url: str, width: int, height: int, order: str, note: str = ""
) -> RenderableType:
    """`note` is about the connection, where there is something to say."""
    devices = list(figures.devices(max(10, width - 58)))
    models = _ordered(list(figures.models()), order)
    reasons = figures.reasons()
    room = max(6, height - _FURNITURE)
    num_reasons = min(len(reasons), max(2, room // 5))
    num_devices = min(len(devices), max(2, (room - num_reasons) // 4))  # two lines each
    num_models = min(len(models), max(2, room - num_reasons - 2 * num_devices))
    return Group(
        _headline(figures, models, url, note),
        _lanes(devices[:num_devices], len(devices), figures.lost),
        _models(models[:num_models], len(models), order, figures.window_s),
        _reasons(reasons[:num_reasons], figures.window_s),
        Text("q quit   s order of models   p pause", style="dim"),
    )


def _headline(figures: TopFigures, models: list[ModelLine], url: str, note: str) -> Text:
    goodput = sum(model.goodput for model in models)
    missed = sum(model.missed for model in models)
    served = goodput * figures.window_s
    share = f"{100 * served / (served + missed):.1f} %" if served + missed else NOTHING
    queued = sum(model.queued for model in models)
    line = Text.assemble(
        ("Remontoir ", "bold"),
        f"{figures.version} at {url}, {figures.phase}   in time ",
        (share, "bold"),
        f"   goodput {goodput:.1f}/s   missed {missed / figures.window_s:.1f}/s   waiting {queued}",
    )
    return line.append(f"   {note}", "red") if note else line


def _lanes(devices: list[DeviceLine], num_all: int, lost: list[str]) -> Table:
    table = _table("device", "EXEC", "LOAD", "pages free", "10 s of EXEC, LOADs below")
    for line in devices:
        loads = any(line.load_slices)
        lane = Text(_blocks(line.exec_slices), "green")
        if loads:
            lane = lane + Text("\n") + Text(_marks(line.load_slices), "yellow")
        table.add_row(
            escape(line.worker),
            f"{100 * line.exec_share:.0f} %",
            f"{100 * line.load_share:.0f} %",
            f"{line.pages_free} of {line.total_pages}",
            lane,
        )
    table.title = _more("Lanes", len(devices), num_all)
    if lost:
        table.caption = Text(f"lost: {', '.join(lost)}", "red")
    return table


def _models(models: list[ModelLine], num_all: int, order: str, window_s: float) -> Table:
    table = _table("model", "state", "goodput/s", "in time", "missed", "ms", "waiting", "pages")
    for line in models:
        share = NOTHING if line.attainment is None else f"{100 * line.attainment:.1f} %"
        is_bad = line.attainment is not None and line.attainment < 0.9
        table.add_row(
            escape(line.name),
            Text(line.state, "red" if line.state == "unavailable" else ""),
            f"{line.goodput:.1f}",
            Text(share, "red" if is_bad else ""),
            str(line.missed),
            NOTHING if line.latency_ms is None else f"{line.latency_ms:.1f}",
            str(line.queued),
            str(line.pages),
        )
    title = f"Models by {order}, the last {window_s:.0f} s"
    table.title = _more(title, len(models), num_all)
    return table


def _reasons(reasons: list[tuple[str, int, int]], window_s: float) -> Table:
    table = _table("why not", f"{window_s:.0f} s", "since start")
    for reason, lately, total in reasons:
        outcome, _, why = reason.partition(":")
        table.add_row(f"{why.replace('_', ' ')}, {outcome}", str(lately), str(total))
    if not reasons:
        table.add_row(Text("nothing yet", "dim"), "", "")
    return table


def _ordered(models: list[ModelLine], order: str) -> list[ModelLine]:
    if order == "name":
        return sorted(models, key=lambda line: line.name)
    if order == "misses":
        return sorted(models, key=lambda line: (-line.missed, -line.goodput, line.name))
    return sorted(models, key=lambda line: (-line.goodput, -line.missed, line.name))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold", expand=False)
    for place, column in enumerate(columns):
        is_text = place == 0 or column in ("state",) or column.startswith("10 s")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    return table


def _more(title: str, num_shown: int, num_all: int) -> str:
    return title if num_shown == num_all else f"{title} ({num_shown} of {num_all})"


def _blocks(shares: list[float]) -> str:
    """One character for each share; what is not nothing shows."""
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[0 if s <= 0 else max(1, round(s * top))] for s in shares)


def _marks(shares: list[float]) -> str:
    return "".join("▪" if share > 0 else " " for share in shares)
