"""The page: sections of Markdown with tables, pictures and verdicts.

Owns how it looks and where its pictures lie. Never computes a figure.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loadtest.plots import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Verdict(NamedTuple):
    """A target, and whether it was reached; None where nothing was measured that could say."""

    experiment: str
    what: str
    is_met: bool | None
    detail: str

    @property
    def word(self) -> str:
        if self.is_met is None:
            return "not measured"
        return "met" if self.is_met else "not met"


class Section:
    """One experiment on the page. Its pictures go into the folder `pictures` beside the
    page, as they come; those that runs have left behind are in `runs_dir`.
    """

    def __init__(
        self, number: str, title: str, *, page_dir: Path, pictures: str, runs_dir: Path
    ) -> None:
        self.number = number
        self.title = title
        self.verdicts: list[Verdict] = []
        self._page_dir = page_dir
        self._pictures = pictures
        self._runs_dir = runs_dir
        self._blocks: list[str] = []

    def say(self, text: str) -> None:
        """A paragraph."""
        if text:
            self._blocks.append(text)

    def head(self, text: str) -> None:
        self._blocks.append(f"### {text}")

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1
    ) -> None:
        """A table whose first `words` columns are words; the others are figures."""
        self._blocks.append(table_text(columns, rows, words=words))

    def details(
        self,
        summary: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        words: int = 1,
    ) -> None:
        """A long table, folded."""
        if rows:
            self._blocks.append(
                f"<details><summary>{summary}</summary>\n\n"
                f"{table_text(columns, rows, words=words)}\n\n</details>"
            )

    def figure(self, name: str, figure: "Figure", caption: str) -> None:
        self.png(name, png_of(figure), caption)

    def picture_of_run(self, name: str, file_name: str, caption: str) -> None:
        """A picture that a run has left behind; nothing where it is gone."""
        path = self._runs_dir / file_name
        if path.exists():
            self.png(name, path.read_bytes(), caption)

    def png(self, name: str, content: bytes, caption: str) -> None:
        """The picture, as a file beside the page."""
        folder = self._page_dir / self._pictures
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(content)
        self._blocks.append(f"![{caption}]({self._pictures}/{name}.png)\n\n*{caption}*")

    def verdict(self, what: str, is_met: bool | None, detail: str) -> None:
        """What was promised, and what came of it."""
        self.verdicts.append(Verdict(self.number, what, is_met, detail))
        word = self.verdicts[-1].word
        line = f"- **{word}**: {what}" + (f" — {detail}" if detail else "")
        if self._blocks and self._blocks[-1].startswith("- **"):
            self._blocks[-1] += f"\n{line}"
        else:
            self._blocks.append(line)

    @property
    def text(self) -> str:
        return "\n\n".join([f"## {self.number} {self.title}", *self._blocks])


def table_text(columns: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1) -> str:
    """Raises ValueError for a row of another length."""
    marks = ["---"] * words + ["---:"] * (len(columns) - words)
    lines = [_line(columns), _line(marks)]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns: {row}")
        lines.append(_line([str(cell) for cell in row]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
