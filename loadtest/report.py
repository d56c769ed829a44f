"""What a benchmark says: tables for people, JSON for later.

Owns the look of tables and the files under the output directory. It never computes a figure.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.machine import QUIET_LOAD, Machine, load_average


class Report:
    """One run of the benchmark."""

    def __init__(self, machine: Machine, *, out_dir: Path, command: str) -> None:
        self._machine = machine
        self._out_dir = out_dir
        self._command = command
        self._console = Console(highlight=False, width=None)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=190)

    def say(self, text: str, *, style: str = "dim") -> None:
        self._console.print(text, style=style, markup=False)

    def start(self, title: str) -> None:
        """Heading of a part, with what its figures depend on."""
        load = load_average()
        self._console.print()
        self._console.rule(title, style="bold", align="left")
        self.say(f"$ {self._command}")
        self.say(self._machine.line())
        self.say(f"load average at the start: {load:.2f}")
        if load > QUIET_LOAD:
            self.say("The machine is not quiet: others' work is in these figures.", style="yellow")

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
    ) -> None:
        table = Table(
            title=escape(title),
            title_justify="left",
            title_style="bold",
            caption=escape(note) or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for index, column in enumerate(columns):
            table.add_column(escape(column), justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(escape(shown(cell)) for cell in row))
        self._console.print(table)

    def verdict(self, what: str, *, is_met: bool) -> None:
        """A figure that was promised, and whether it came."""
        mark, style = ("met   ", "green") if is_met else ("MISSED", "bold red")
        self._console.print(f"  {mark} {what}", style=style, markup=False)

    def save(self, name: str, result: object) -> Path:
        """`result` under the output directory, with the machine beside it."""
        self._out_dir.mkdir(parents=True, exist_ok=True)
        path = self._out_dir / f"{name}.json"
        document: dict[str, Any] = {
            "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": self._command,
            "machine": self._machine,
            "load_average": load_average(),
            "result": result,
        }
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        self.say(f"figures: {path}")
        return path


def shown(value: object) -> str:
    """A cell: three digits that matter, and a dash where there is nothing."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if value == 0 or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def percent(share: float) -> str:
    """Never rounds up to 100 %: that is a claim."""
    if share < 1.0 and round(share * 100, 1) >= 100.0:
        return "99.9+ %"
    return f"{share * 100:.1f} %"
