"""The traces in loadtest/data, and a user's own of the same form, read into numbers.

Owns the files' forms (loadtest/data/SOURCES.md). It draws nothing. What it returns is shared by all
who read the same file, and must not be changed.
"""

import csv
import gzip
from array import array
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

WINDOW_S = 600  # of ServeGen's rows
# A few runs of one experiment read the same file; a file of 1,000 functions is 12 MB in memory.
NUM_CACHED = 4


class TraceError(ValueError):
    """A trace that is not there or not of its form; the text begins with the file's name."""


class Window(NamedTuple):
    """How one ServeGen client asked in ten minutes; `shape` is 1 for exponential gaps."""

    rate_per_s: float
    family: str  # gamma, weibull or exponential
    shape: float


@lru_cache(NUM_CACHED)
def minute_counts(file: str) -> tuple[Sequence[int], ...]:
    """Invocations per minute, function by function, those with the most invocations first."""
    counts = []
    for number, row in enumerate(_rows(file), start=2):
        try:
            counts.append(array("l", [int(value) for key, value in row.items() if key.isdigit()]))
        except (TypeError, ValueError) as error:
            raise TraceError(f"{file}, line {number}: {error}") from error
    if not counts or not counts[0]:
        raise TraceError(f"{file} has no function with minutes")
    return tuple(sorted(counts, key=sum, reverse=True))


@lru_cache(NUM_CACHED)
def gaps_s(file: str) -> Sequence[float]:
    """Seconds between the rows' TIMESTAMPs; the last is their mean, from the last row to the first.

    Raises TraceError for less than two rows, or rows out of order.
    """
    gaps = array("d")
    first = before = 0
    for number, row in enumerate(_rows(file), start=2):
        try:
            at = _hundred_ns(row["TIMESTAMP"])
        except (KeyError, ValueError) as error:
            raise TraceError(f"{file}, line {number}: no TIMESTAMP in {row}") from error
        if not before:
            first = at
        elif at < before:
            raise TraceError(f"{file}, line {number}: {row['TIMESTAMP']} is before the line above")
        else:
            gaps.append((at - before) / 1e7)
        before = at
    if before == first:
        raise TraceError(f"{file} has no two rows of different times")
    gaps.append((before - first) / 1e7 / len(gaps))
    return gaps


@lru_cache(NUM_CACHED)
def client_windows(file: str) -> tuple[dict[int, Window], ...]:
    """Windows by number, client by client, those with the most requests first.

    Of the fitted distribution only the shape (param1) is used, and the rate gives its mean: the
    fitted scale (param2) is the same within a few per cent, but far off in windows of few requests.
    """
    clients: dict[str, dict[int, Window]] = {}
    for number, row in enumerate(_rows(file), start=2):
        try:
            window = _window(row)
            index = int(row["window_start_s"]) // WINDOW_S
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{file}, line {number}: {error!r} in {row}") from error
        clients.setdefault(row["client"], {})[index] = window
    if not clients:
        raise TraceError(f"{file} has no client")
    return tuple(
        sorted(
            clients.values(),
            key=lambda windows: sum(window.rate_per_s for window in windows.values()),
            reverse=True,
        )
    )


def _window(row: dict[str, str]) -> Window:
    family = row["iat_family"].lower()
    if family not in ("gamma", "weibull", "exponential"):
        raise ValueError(f"iat_family {row['iat_family']} is not Gamma, Weibull or Exponential")
    rate_per_s = float(row["rate_rps"])
    shape = 1.0 if family == "exponential" else float(row["param1"])
    if not (rate_per_s > 0 and shape > 0):
        raise ValueError(f"rate_rps {rate_per_s} and param1 {shape} are not both positive")
    return Window(rate_per_s, family, shape)


def _rows(file: str) -> Iterator[dict[str, str]]:
    data = resources.files("loadtest").joinpath("data")
    path = Path(file) if "/" in file else data.joinpath(file)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if file.endswith(".gz") else content).decode("utf-8")
    except FileNotFoundError as error:
        there = sorted(entry.name for entry in data.iterdir() if ".csv" in entry.name)
        raise TraceError(f"{file} is not there; loadtest/data has {', '.join(there)}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(f"{file} cannot be read: {error}") from error
    return csv.DictReader(text.splitlines())


def _hundred_ns(text: str) -> int:
    """Time in units of 100 ns: the traces have seven digits, datetime has six."""
    whole, _, fraction = text.partition(".")
    seconds = (datetime.fromisoformat(whole) - datetime(2000, 1, 1)).total_seconds()
    return int(seconds) * 10_000_000 + int(fraction[:7].ljust(7, "0"))
