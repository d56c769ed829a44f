"""What the check says: lines of what was measured and wanted, and the document they stand in.

Owns the words and the bars' comparisons; it measures nothing. Lines are for people, `figures` for
programs; both go into the JSON.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

MEGABYTE = 1_000_000  # of weights, as everybody counts them; pages are in MiB


class Line(msgspec.Struct, frozen=True):
    """`is_met` None: shown, and nothing was promised."""

    what: str
    measured: str
    wanted: str = ""
    is_met: bool | None = None


class Document(msgspec.Struct, kw_only=True):
    """One step on one device: what `--out` gets."""

    step: str
    device: dict[str, str]
    is_quick: bool
    figures: dict[str, Any]
    lines: list[Line]


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of `num` durations, in milliseconds."""

    num: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def spread(durations_ms: Sequence[float]) -> Spread:
    p50, p99, p999, most = np.percentile(durations_ms, (50, 99, 99.9, 100))
    return Spread(len(durations_ms), float(p50), float(p99), float(p999), float(most))


def at_most(what: str, measured: float, limit: float, unit: str, why: str = "") -> Line:
    wanted = f"<= {digits(limit)} {unit}" + (f" ({why})" if why else "")
    return Line(what, f"{digits(measured)} {unit}", wanted, measured <= limit)


def digits(value: float) -> str:
    """Four that matter: bars here are of one per cent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
