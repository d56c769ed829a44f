"""Requests one by one out of a file: a CSV of a user's own, or a recording of a gateway.

Owns the CSV's form and what of a recording is an arrival. A file is read whole before a run begins,
so that what is wrong with it shows at once: 16 bytes a request.
"""

import csv
import gzip
import math
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from loadtest.workloads.ask import Ask
from loadtest.workloads.choice import slo_chooser
from loadtest.workloads.entries import Requests
from loadtest.workloads.processes import Chances
from loadtest.workloads.trace_files import NUM_CACHED, TraceError
from scheduler.event_log import Foreseen, Handled
from scheduler.events import RequestArrived, RequestsArrived
from scheduler.recording import Recording, RecordingError
from scheduler.spec import MILLISECOND_NS, SECOND_NS

ANY_MODEL = -1
NO_SLO = 0
PIECE_BYTES = 256 * 1024
GZIP_MAGIC = b"\x1f\x8b"


class RequestList(NamedTuple):
    """In order of time, from the first request on. `model` is an index of `models`, ANY_MODEL where
    the file names none; `slo_ns` is NO_SLO where the file has none.
    """

    models: tuple[str, ...]
    at_ns: Sequence[int]
    model: Sequence[int]
    slo_ns: Sequence[int]


def asks(
    entry: Requests, stream: int, models: Sequence[str], span_s: float, chances: Chances
) -> Iterator[Ask]:
    """Raises ValueError, before the first request, for a file that cannot be played."""
    try:
        listed = read_requests(entry.file)
    except TraceError as error:
        entry.refuse("file", str(error))
    known = set(models)
    if listed.models and not known.intersection(listed.models):
        entry.refuse(
            "file",
            f"{entry.file} asks {', '.join(listed.models[:5])}, none of which is among "
            f"{', '.join(models[:5])}",
        )
    return _asks(entry, stream, listed, models, span_s, chances)


def is_recording(path: Path) -> bool:
    """By its first bytes. Raises OSError."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC and not path.name.endswith(".csv.gz")


@lru_cache(NUM_CACHED)
def read_requests(file: str) -> RequestList:
    """Raises TraceError; its text begins with the file's name."""
    path = Path(file)
    try:
        return _of_recording(path) if is_recording(path) else _of_csv(path)
    except (OSError, EOFError) as error:
        raise TraceError(f"{file} cannot be read: {error}") from error
    except (RecordingError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: {error}") from error


def _asks(
    entry: Requests,
    stream: int,
    listed: RequestList,
    models: Sequence[str],
    span_s: float,
    chances: Chances,
) -> Iterator[Ask]:
    known = set(models)
    names = [name if name in known else None for name in listed.models]
    uniform = chances("models").random
    slo = slo_chooser(entry, chances("slo"))
    start_ns, end_ns = round(entry.start_s * SECOND_NS), round(span_s * SECOND_NS)
    for at_ns, index, own_slo_ns in zip(listed.at_ns, listed.model, listed.slo_ns, strict=True):
        since_ns = int(at_ns / entry.speed)
        if since_ns >= end_ns:
            return
        name = models[int(uniform() * len(models))] if index == ANY_MODEL else names[index]
        if name is None:
            continue
        slo_ns = own_slo_ns if own_slo_ns and entry.keeps_slos else slo if type(slo) is int else 0
        if not slo_ns:
            assert callable(slo)
            slo_ns = slo()
        yield Ask(
            start_ns + since_ns, name, slo_ns, stream, entry.tenant, priority=entry.priority_class
        )


class _Growing:
    """Rows as they come in, and the names that they have."""

    def __init__(self) -> None:
        self.index_of: dict[str, int] = {}
        self.at_ns, self.model, self.slo_ns = array("q"), array("q"), array("q")

    def add(self, at_ns: int, model: str | None, slo_ns: int) -> None:
        self.at_ns.append(at_ns)
        known = self.index_of
        self.model.append(ANY_MODEL if model is None else known.setdefault(model, len(known)))
        self.slo_ns.append(slo_ns)

    def done(self) -> RequestList:
        if not self.at_ns:
            raise TraceError("no request in it")
        first = self.at_ns[0]
        shifted = array("q", (at_ns - first for at_ns in self.at_ns))
        return RequestList(tuple(self.index_of), shifted, self.model, self.slo_ns)


def _of_csv(path: Path) -> RequestList:
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == GZIP_MAGIC else content).decode("utf-8")
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    if "at_s" not in columns:
        raise TraceError(f"{path}: no column at_s; there are {', '.join(columns) or 'none'}")
    rows = _Growing()
    before_s = -math.inf
    for number, row in enumerate(reader, start=2):
        where = f"{path}, line {number}"
        at_s = _number(row["at_s"], f"{where}: at_s")
        if at_s < before_s:
            raise TraceError(f"{where}: at_s {at_s:g} is before the {before_s:g} of the line above")
        before_s = at_s
        slo = row.get("slo_ms") or ""
        slo_ms = _number(slo, f"{where}: slo_ms") if slo else 0.0
        if slo_ms < 0:
            raise TraceError(f"{where}: slo_ms {slo_ms:g} is negative")
        model = row.get("model")
        if "model" in columns and not model:
            raise TraceError(f"{where}: model is empty")
        rows.add(round(at_s * SECOND_NS), model or None, round(slo_ms * MILLISECOND_NS))
    try:
        return rows.done()
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _of_recording(path: Path) -> RequestList:
    """Arrivals, and what an early look turned away: those had come, too."""
    rows = _Growing()
    with path.open("rb") as file:
        for entry in Recording(iter(lambda: file.read(PIECE_BYTES), b"")):
            if isinstance(entry, Foreseen):
                if entry.refusal is not None:
                    _add(rows, entry.event)
            elif isinstance(entry, Handled):
                if isinstance(entry.event, RequestArrived):
                    _add(rows, entry.event)
                elif isinstance(entry.event, RequestsArrived):
                    for request in entry.event.requests:
                        _add(rows, request)
    order = sorted(range(len(rows.at_ns)), key=rows.at_ns.__getitem__)
    in_order = _Growing()
    in_order.index_of = rows.index_of
    names = tuple(rows.index_of)
    for index in order:
        in_order.add(rows.at_ns[index], names[rows.model[index]], rows.slo_ns[index])
    try:
        return in_order.done()
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _add(rows: _Growing, request: RequestArrived) -> None:
    rows.add(request.arrival_ns, request.model, request.deadline_ns - request.arrival_ns)


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise TraceError(f"{where} {text!r} is no number") from None
    if not math.isfinite(value):
        raise TraceError(f"{where} {text!r} is no finite number")
    return value
