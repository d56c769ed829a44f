"""The three tables of a run, as columns: requests, actions, devices.

Owns their columns, units and codes. All instants are nanoseconds from the start of the run, all
durations nanoseconds. Never computes a figure of merit: that is `summary`.
"""

import struct
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

SERVED, REJECTED, EXPIRED, FAILED, CANCELLED, OPEN = (
    "served", "rejected", "expired", "failed", "cancelled", "open",
)  # fmt: skip
# The code of an outcome is its place here. "open": the run was stopped before the answer.
OUTCOMES = (SERVED, REJECTED, EXPIRED, FAILED, CANCELLED, OPEN)
INFER, LOAD, EVICT, RELEASE = "infer", "load", "evict", "release"
KINDS = (INFER, LOAD, EVICT, RELEASE)
UNKNOWN_NS = -1  # a duration or an instant that was never known

# Column → struct format of one value, in the order written.
REQUEST_COLUMNS = {
    "request_id": "q",
    "stream": "i",
    "model": "i",
    "tenant": "h",
    "arrival_ns": "q",
    "slo_ns": "q",
    "answered_ns": "q",  # when the answer is at the client; UNKNOWN_NS while open
    "outcome": "b",
    "reason": "h",  # "" if served
    "is_good": "?",  # served, and answered_ns <= arrival_ns + slo_ns
    "worker": "h",  # "" unless served
    "batch_rows": "i",
    "is_cold": "?",
    "predicted_ns": "q",  # the latency said at admission; UNKNOWN_NS where none was
    "queue_ns": "q",
    "load_ns": "q",
    "exec_ns": "q",
}
ACTION_COLUMNS = {
    "action_id": "q",
    "worker": "h",
    "kind": "b",
    "model": "i",
    "rows": "i",
    "executed_rows": "i",
    "num_requests": "i",
    "sent_ns": "q",
    "planned_start_ns": "q",
    "expected_ns": "q",
    "begin_ns": "q",  # UNKNOWN_NS, as end_ns, for what never began
    "end_ns": "q",
    "heard_ns": "q",  # when the scheduler was told; UNKNOWN_NS while open
    "code": "h",  # of the result; LOST with its worker, OPEN when the run was stopped first
    "num_good": "i",
}
DEVICE_COLUMNS = {
    "at_ns": "q",
    "worker": "h",
    "pages_free": "i",
    "pages_loading": "i",
    "pages_resident": "i",
    "schedule_ahead_ns": "q",
    "gap_rate": "d",
    "exec_busy_share": "d",  # of the time since the device's sample before, or since it joined
    "load_busy_share": "d",
}
# Columns that hold codes, each with a list of names beside it.
CODED = {
    "requests": ("model", "tenant", "outcome", "reason", "worker"),
    "actions": ("worker", "kind", "model", "code"),
    "devices": ("worker",),
}


class RunMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Which run this is; written into every file. The window is what `summarise` measures."""

    scenario: str
    policy: str
    seed: int
    case: dict[str, str | int | float | bool | None] = {}
    window_begin_ns: int = 0
    window_end_ns: int = 0
    versions: dict[str, str] = {}


class Table:
    """Columns of equal length. A coded column holds places in its list of `names`."""

    def __init__(
        self, columns: Mapping[str, Array], names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.columns = dict(columns)
        self.names = {column: tuple(texts) for column, texts in (names or {}).items()}
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a table differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> npt.NDArray[np.int64]:
        """The column's numbers; codes, where it is coded."""
        return self.columns[column]  # type: ignore[return-value]  # of any number type

    def texts(self, column: str) -> npt.NDArray[np.object_]:
        """A coded column as words."""
        words = np.array([*self.names[column], None], dtype=object)[:-1]
        return words[self.columns[column]]  # type: ignore[no-any-return]

    def code(self, column: str, text: str) -> int:
        """The code of a word; -1 for one that does not occur."""
        names = self.names[column]
        return names.index(text) if text in names else -1

    def has(self, column: str, *texts: str) -> Mask:
        """Where a coded column is one of these words."""
        codes = self.columns[column]
        found = np.zeros(len(codes), dtype=bool)
        for text in texts:
            found |= codes == self.code(column, text)
        return found

    def only(self, *columns: str) -> "Table":
        """The table without its other columns."""
        names = {name: texts for name, texts in self.names.items() if name in columns}
        return Table({name: self.columns[name] for name in columns}, names)

    def rows(self, mask: Array) -> "Table":
        """Only the rows that a mask or an index names."""
        return Table({name: column[mask] for name, column in self.columns.items()}, self.names)


class Tables(msgspec.Struct, frozen=True):
    """Everything one run did. Column meanings: REQUEST_COLUMNS, ACTION_COLUMNS, DEVICE_COLUMNS."""

    requests: Table
    actions: Table
    devices: Table

    def named(self) -> dict[str, Table]:
        return {"requests": self.requests, "actions": self.actions, "devices": self.devices}


class Rows:
    """A growing table: packed rows in one buffer, 25 to 100 bytes each, turned into columns once.

    `columns` as above. A writer does `rows.buffer += rows.pack(...)`: no layer in between.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._dtype = np.dtype([(name, "<" + code) for name, code in columns.items()])
        self.pack = struct.Struct("<" + "".join(columns.values())).pack
        self.buffer = bytearray()

    def columns(self, *, by: str, more: bytes = b"") -> dict[str, Array]:
        """Contiguous copies, ordered by a column; with more packed rows. The buffer stays."""
        packed = self.buffer + more if more else self.buffer
        rows = np.frombuffer(packed, dtype=self._dtype)
        order = np.argsort(rows[by], kind="stable")
        return {name: rows[name][order] for name in self._dtype.names or ()}
