"""`0.9 x capacity`, `5 x execution`: numbers of a workload that are measured before they are known.

Owns the words. Capacity is the most rows per second that a bare ONNX Runtime loop does on the
target's core with executions within the SLO, one execution is that loop's median at the request's
batch size (reference.py): what a machine can do, whatever server is on it. Requests of several rows
count as many.
"""

import copy
import re
from typing import Any, Literal

import msgspec

_MULTIPLE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:x|\*)\s*(capacity|execution)\s*")

Unit = Literal["capacity", "execution"]


class MultipleError(ValueError):
    """A multiple of the wrong thing; `where` is its place."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


class Multiple(msgspec.Struct, frozen=True, kw_only=True):
    """`factor` times `unit`, for a field of the workload's entry `entry`; `share` is the index in a
    mix of SLOs, if it is of one.
    """

    entry: int
    field: Literal["rate_per_s", "slo_ms"]
    factor: float
    unit: Unit
    share: int | None = None


def without_multiples(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[Multiple, ...]]:
    """The same with 1 where a multiple was, and the multiples. Raises MultipleError."""
    entries = body.get("workload")
    if not isinstance(entries, list):
        return body, ()
    body = {**body, "workload": copy.deepcopy(entries)}
    found: list[Multiple] = []
    for index, entry in enumerate(body["workload"]):
        if not isinstance(entry, dict):
            continue
        where = f"workload[{index}]"
        for field in ("rate_per_s", "slo_ms"):
            if multiple := _read(entry.get(field), f"{where}.{field}"):
                found.append(_checked(index, field, multiple, f"{where}.{field}", None))
                entry[field] = 1.0
        shares = entry.get("slo_ms")
        for number, share in enumerate(shares if isinstance(shares, list) else ()):
            place = f"{where}.slo_ms[{number}].slo_ms"
            if isinstance(share, dict) and (multiple := _read(share.get("slo_ms"), place)):
                found.append(_checked(index, "slo_ms", multiple, place, number))
                share["slo_ms"] = 1.0
    return body, tuple(found)


def _read(value: object, where: str) -> tuple[float, str] | None:
    if not isinstance(value, str):
        return None
    match = _MULTIPLE.fullmatch(value)
    if match is None:
        raise MultipleError(
            where, f"{value!r} is no number, and not as in '0.9 x capacity' or '5 x execution'"
        )
    return float(match[1]), match[2]


def _checked(
    entry: int, field: str, multiple: tuple[float, str], where: str, share: int | None
) -> Multiple:
    factor, unit = multiple
    fitting = {"rate_per_s": "capacity", "slo_ms": "execution"}[field]
    if unit != fitting:
        raise MultipleError(where, f"{field} is a multiple of {fitting}, not of {unit}")
    if factor <= 0:
        raise MultipleError(where, f"{factor:g} x {unit} is not positive")
    fields = {"entry": entry, "field": field, "factor": factor, "unit": unit, "share": share}
    return msgspec.convert(fields, Multiple)
