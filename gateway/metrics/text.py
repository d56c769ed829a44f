"""The Prometheus text format 0.0.4: families, histograms and labels as lines.

It owns the format and the prefix of all names. It must never know what is counted.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from gateway.metrics.tallies import ModelTallies, Tally

PREFIX = "remontoir_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Models per part: under half a millisecond.
MODELS_PER_PART = 32
ROWS_PER_PART = 512

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
Models = list[tuple[str, ModelTallies]]  # label value, tallies
Rows = Iterable[tuple[str, float]]  # labels as they stand in the braces, value
T = TypeVar("T")
# Of the same things: name, kind, text, and the value of a thing, None where it tells none.
Families = Sequence[tuple[str, str, str, Callable[[T], float | None]]]


def family(name: str, kind: str, text: str, rows: Rows, *, prefix: str = PREFIX) -> str:
    lines = [
        f"{prefix}{name}{{{labels}}} {value}\n" if labels else f"{prefix}{name} {value}\n"
        for labels, value in rows
    ]
    return header(name, kind, text, prefix=prefix) + "".join(lines)


def families(
    wanted: Families[T], told: Sequence[tuple[str, T]], *, prefix: str = PREFIX
) -> Iterator[str]:
    """`told` are labels and thing. Nothing at all for a family of which no thing tells a value."""
    for name, kind, text, value_of in wanted:
        values = [(labels, value_of(thing)) for labels, thing in told]
        known = [(labels, value) for labels, value in values if value is not None]
        if known:
            yield family(name, kind, text, known, prefix=prefix)


def family_parts(
    name: str, kind: str, text: str, rows: Rows, *, prefix: str = PREFIX
) -> Iterator[str]:
    """The same for rows that are as many as there are models. Between two parts others run, so
    rows that are made one by one must not come out of a dictionary that may change.
    """
    yield header(name, kind, text, prefix=prefix)
    rest = iter(rows)
    while part := list(itertools.islice(rest, ROWS_PER_PART)):
        yield "".join([f"{prefix}{name}{{{labels}}} {value}\n" for labels, value in part])


def header(name: str, kind: str, text: str, *, prefix: str = PREFIX) -> str:
    return f"# HELP {prefix}{name} {text}\n# TYPE {prefix}{name} {kind}\n"


def histograms(
    name: str, text: str, models: Models, tally_of: Callable[[ModelTallies], Tally]
) -> Iterator[str]:
    yield header(name, "histogram", text)
    rest = iter(models)
    while part := list(itertools.islice(rest, MODELS_PER_PART)):
        yield "".join(
            histogram(name, f'model="{model}"', tally_of(tallies)) for model, tallies in part
        )


def histogram(name: str, labels: str, tally: Tally) -> str:
    """Nothing for a tally without observations: most models have neither loads nor requests."""
    count = sum(tally.counts)
    if count == 0:
        return ""
    prefix = f'{PREFIX}{name}_bucket{{{labels}{"," if labels else ""}le="'
    cumulative = itertools.accumulate(tally.counts)
    lines = [
        f'{prefix}{label}"}} {number}\n'
        for label, number in zip([*tally.buckets.labels, "+Inf"], cumulative, strict=True)
    ]
    braced = f"{{{labels}}}" if labels else ""
    lines.append(f"{PREFIX}{name}_count{braced} {count}\n")
    if not tally.buckets.is_signed:  # a sum that may fall reads as a restart
        total = tally.total / tally.buckets.scale
        lines.append(f"{PREFIX}{name}_sum{braced} {total!r}\n")
    return "".join(lines)


def escaped(value: str) -> str:
    return value.translate(_ESCAPES)
