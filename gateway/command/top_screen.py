"""The screen of `remontoir top`: figures in, something that rich can print out.

Owns layout and rounding. It must never compute what it shows, and fits what it is given into the
height that there is: the worst first.
"""

from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway.command.top_figures import DeviceLine, ModelLine, TopFigures, WorstLine

BLOCKS = " ▁▂▃▄▅▆▇█"
NOTHING = "-"
ORDERS = ("goodput", "misses", "name")
WHAT_HELPS, WHY = "what helps", "why"
TEXTS = ("state", "model", WHAT_HELPS, WHY)
# Lines that are no rows: titles and headers.
_FURNITURE = 9
# From this height on there is room for requests too, from this width on for what helps.
TALL, WIDE = 36, 110


def screen(
    figures: TopFigures, *, url: str, width: int, height: int, order: str, note: str = ""
) -> RenderableType:
    """`note` is about the connection, where there is something to say."""
    devices = list(figures.devices(max(10, width - 58)))
    models = _ordered(list(figures.models()), order)
    reasons = figures.reasons()
    worst = figures.worst() if height >= TALL else []
    num_worst = min(len(worst), max(0, height // 8))
    furniture = _FURNITURE + bool(figures.lost) + (num_worst + 2 if num_worst else 0)
    room = max(6, height - furniture)
    num_reasons = max(1, min(len(reasons), max(2, room // 5)))
    num_devices = min(len(devices), max(2, (room - num_reasons) // 4))  # two lines each
    num_models = min(len(models), max(2, room - num_reasons - 2 * num_devices))
    return Group(
        *_headlines(figures, models, url, note),
        _lanes(devices[:num_devices], len(devices), figures.lost),
        _models(models[:num_models], len(models), order, figures.window_s),
        _reasons(reasons[:num_reasons], figures, width),
        *([_worst(worst[:num_worst])] if num_worst else []),
        Text("q quit   s order of models   p pause", style="dim"),
    )


def _headlines(
    figures: TopFigures, models: list[ModelLine], url: str, note: str
) -> tuple[Text, Text]:
    goodput = sum(model.goodput for model in models)
    missed = sum(model.missed for model in models)
    served = goodput * figures.window_s
    share = f"{100 * served / (served + missed):.1f} %" if served + missed else NOTHING
    queued = sum(model.queued for model in models)
    who = Text.assemble(
        ("Remontoir ", "bold"), f"{figures.version} at {url}, {figures.phase}", no_wrap=True
    )
    if note:
        who.append(f"   {note}", "red")
    how = Text.assemble(
        "in time ",
        (share, "bold"),
        f"  goodput {goodput:.1f}/s  missed {missed / figures.window_s:.1f}/s  waiting {queued}",
        no_wrap=True,
    )
    if figures.advice is not None:
        advised, here = figures.advice
        how.append(f"  devices {here}, advised {advised}", "red" if advised > here else "")
    return who, how


def _lanes(devices: list[DeviceLine], num_all: int, lost: list[str]) -> Table:
    table = _table("device", "EXEC", "LOAD", "pages free", "10 s of EXEC, LOADs below")
    for line in devices:
        loads = any(line.load_slices)
        lane = Text(_blocks(line.exec_slices), "green")
        if loads:
            lane = lane + Text("\n") + Text(_marks(line.load_slices), "yellow")
        table.add_row(
            _cut(line.worker),
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
            _cut(line.name),
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


def _reasons(reasons: list[tuple[str, int, int]], figures: TopFigures, width: int) -> Table:
    columns = ["why not", f"{figures.window_s:.0f} s", "since start", WHAT_HELPS]
    table = _table(*(columns if width >= WIDE else columns[:-1]))
    for reason, lately, total in reasons:
        outcome, _, why = reason.partition(":")
        cells = [f"{why.replace('_', ' ')}, {outcome}", str(lately), str(total)]
        if width >= WIDE:
            table.add_row(*cells, _cut(figures.remedies.get(why, "")))
        else:
            table.add_row(_cut(cells[0]), *cells[1:])
    if not reasons:
        table.add_row(Text("nothing yet", "dim"))
    return table


def _worst(worst: list[WorstLine]) -> Table:
    table = _table("id", "model", "slack ms", "SLO ms", WHY)
    for line in worst:
        slack = NOTHING if line.slack_ms is None else f"{line.slack_ms:.1f}"
        named = map(escape, (line.request_id, line.model))
        table.add_row(*named, slack, f"{line.slo_ms:.1f}", _cut(line.why))
    table.title = "Worst requests; `remontoir requests ID` tells why"
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
        is_text = place == 0 or column in TEXTS or column.startswith("10 s of")
        # Where all is too wide, rich takes it from a column that may wrap: of each table one, whose
        # cells are `_cut`.
        gives_way = column in (WHAT_HELPS, WHY) or (
            place == 0 and not {WHAT_HELPS, WHY} & {*columns}
        )
        justify: Literal["left", "right"] = "left" if is_text else "right"
        least = 12 if gives_way and place == 0 else None
        table.add_column(column, justify=justify, no_wrap=not gives_way, min_width=least)
    return table


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _more(title: str, num_shown: int, num_all: int) -> str:
    return title if num_shown == num_all else f"{title} ({num_shown} of {num_all})"


def _blocks(shares: list[float]) -> str:
    """One character for each share; what is not nothing shows."""
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[0 if s <= 0 else max(1, round(s * top))] for s in shares)


def _marks(shares: list[float]) -> str:
    return "".join("▪" if share > 0 else " " for share in shares)
