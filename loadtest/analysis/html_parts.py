"""Pieces of the report's page: sections, figures, tables. Owns how they are written as HTML."""

from collections.abc import Iterable, Sequence
from html import escape

from loadtest.analysis.pictures import Drawn


def section(name: str, title: str, body: str) -> tuple[str, str]:
    """The section, and its entry among the headings."""
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>',
        f'<a href="#{name}">{escape(title)}</a>',
    )


def figure(drawn: Drawn) -> str:
    caption = f"<figcaption>{escape(drawn.caption)}</figcaption>" if drawn.caption else ""
    return f"<figure>{drawn.svg}{caption}</figure>"


def figures(drawn: Sequence[Drawn], total: int) -> str:
    note = ""
    if total > len(drawn):
        note = f"<p>The first {len(drawn)} of {total} pictures; the leaderboard has every line.</p>"
    return f'{note}<div class="figures">{"".join(figure(one) for one in drawn)}</div>'


def bullets(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
