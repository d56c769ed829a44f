"""Cells out of wherever results lie: a database, JSON lines, a folder of both.

Owns the formats. A line that was not written to its end is left out, and said.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from loadtest.analysis.cell import Cell, row_of
from loadtest.driver.results_db import SUFFIXES, ResultsDatabase, ResultsError

Say = Callable[[str], None]


def read_cells(source: str, *, say: Say = lambda _: None) -> list[Cell]:
    """Every cell, of every run. `source` is a .jsonl file, a SQLite file, a folder with such files,
    or a database's URL. Raises ResultsError.
    """
    cells = list(_read(source, say))
    if not cells:
        raise ResultsError(f"{source} holds no results yet")
    return cells


def write_cells(path: Path, cells: Iterable[Cell]) -> None:
    """As JSON lines, each with the `key` that a later row of the same cell would have."""
    with path.open("ab") as file:
        for cell in cells:
            file.write(row_of(cell) + b"\n")


def _read(source: str, say: Say) -> Iterator[Cell]:
    if "://" in source:
        yield from _of_database(source, say)
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (*SUFFIXES, ".jsonl"))
        if not files:
            raise ResultsError(f"{path} holds no results: no .jsonl, no {' or '.join(SUFFIXES)}")
        for file in files:
            yield from _read(str(file), say)
    elif not path.exists():
        raise ResultsError(f"{path}: no such file or folder")
    elif path.suffix in SUFFIXES:
        yield from _of_database(source, say)
    else:
        yield from _of_lines(path.read_bytes().splitlines(), source, say)


def _of_lines(lines: Iterable[bytes | str], source: str, say: Say) -> Iterator[Cell]:
    for number, line in enumerate(lines, 1):
        try:
            yield msgspec.json.decode(line, type=Cell)
        except msgspec.ValidationError as error:
            raise ResultsError(f"{source}, line {number}: no result: {error}") from error
        except msgspec.DecodeError:
            say(f"{source}, line {number} is not whole, and left out")


def _of_database(place: str, say: Say) -> Iterator[Cell]:
    results = ResultsDatabase(place, must_exist=True)
    try:
        yield from _of_lines(results.lines(), results.name, say)
    finally:
        results.close()
