"""How busy a device's lanes were between samples, exactly, from the spans of what ran on them."""

from collections.abc import Mapping

import numpy as np

from loadtest.results.tables import INFER, KINDS, LOAD, UNKNOWN_NS, Array


def fill_busy_shares(
    devices: dict[str, Array], actions: dict[str, Array], joined_ns: Mapping[int, int]
) -> None:
    """Exact, from the spans of the actions: busy time between one sample and the next.

    `joined_ns`: when a worker's first span of time began, by its code; 0 for who is not in it.
    """
    for kind, column in ((INFER, "exec_busy_share"), (LOAD, "load_busy_share")):
        of_kind = (actions["kind"] == KINDS.index(kind)) & (actions["end_ns"] != UNKNOWN_NS)
        shares = devices[column]
        for worker in np.unique(devices["worker"]):
            mine = devices["worker"] == worker
            at_ns = np.concatenate(([joined_ns.get(int(worker), 0)], devices["at_ns"][mine]))
            spans = of_kind & (actions["worker"] == worker)
            busy_ns = _busy_until(actions["begin_ns"][spans], actions["end_ns"][spans], at_ns)
            shares[mine] = np.diff(busy_ns) / np.maximum(1, np.diff(at_ns))


def _busy_until(begin_ns: Array, end_ns: Array, at_ns: Array) -> Array:
    """Busy time of a serial lane before each instant."""
    order = np.argsort(begin_ns, kind="stable")
    begins, ends = begin_ns[order].astype(np.int64), end_ns[order].astype(np.int64)
    done_ns = np.concatenate(([0], np.cumsum(ends - begins)))
    started = np.searchsorted(begins, at_ns, side="right")
    last_end = np.concatenate(([0], ends))[started]
    # what of the last one started is still to come is not busy time yet
    busy: Array = done_ns[started] - np.maximum(0, last_end - at_ns)
    return busy
