"""A schedule to hold against the bound: what serving whoever is here now would reach, compiled.

Owns one loop over devices as they become free. It gives a number that can be reached, not a good
policy: it knows the requests' windows, and no more of the future than anybody.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.bound.compiled import compiled

Ints = NDArray[np.int64]

NEVER = 1 << 62


@compiled
def served_greedily(
    release: Ints,
    deadline: Ints,
    class_begin: Ints,
    table_of: Ints,
    max_rows_of: Ints,
    tables: Ints,
    num_devices: int,
    prefers_dense: bool,
) -> int:
    """Requests served in time when a free device at once takes a batch of what is there.

    With `prefers_dense` the batch with most rows per nanosecond, dropping requests that it would
    come too late for; else the one that must start first, without dropping any. Classes of a model
    share batches, the requests due first before others.
    """
    num_classes = len(table_of)
    head = class_begin[:-1].copy()  # per class: all before it are served or too late
    tail = class_begin[:-1].copy()  # all before it have been released
    free = np.zeros(num_devices, dtype=np.int64)
    served = 0
    while True:
        device = np.argmin(free)
        now = free[device]
        best_key, best_class, best_rows, next_release = -np.inf, -1, 0, NEVER
        begin = 0
        while begin < num_classes:  # the classes begin ... end - 1 are a model's
            end = begin + 1
            while end < num_classes and table_of[end] == table_of[begin]:
                end += 1
            table = tables[table_of[begin]]
            waiting, first_due = 0, NEVER
            for c in range(begin, end):
                while tail[c] < class_begin[c + 1] and release[tail[c]] <= now:
                    tail[c] += 1
                while head[c] < tail[c] and deadline[head[c]] < now + table[1]:
                    head[c] += 1
                if head[c] < tail[c]:
                    waiting += tail[c] - head[c]
                    first_due = min(first_due, deadline[head[c]])
                if tail[c] < class_begin[c + 1]:
                    next_release = min(next_release, release[tail[c]])
            for rows in range(1, min(waiting, max_rows_of[table_of[begin]]) + 1):
                if prefers_dense:
                    in_time = 0
                    for c in range(begin, end):
                        in_time += tail[c] - _first_due_from(
                            deadline, head[c], tail[c], now, table[rows]
                        )
                    if in_time < rows:
                        break
                    key = rows / table[rows]
                else:
                    if now + table[rows] > first_due:
                        break
                    key = float(table[rows] - first_due)
                if key > best_key or (best_class == begin and not prefers_dense):
                    best_key, best_class, best_rows = key, begin, rows
            begin = end
        if best_class >= 0:
            length = tables[table_of[best_class], best_rows]
            end = best_class
            while end < num_classes and table_of[end] == table_of[best_class]:
                head[end] = _first_due_from(deadline, head[end], tail[end], now, length)
                end += 1
            for _ in range(best_rows):
                chosen = -1
                for c in range(best_class, end):
                    if head[c] < tail[c] and (
                        chosen < 0 or deadline[head[c]] < deadline[head[chosen]]
                    ):
                        chosen = c
                head[chosen] += 1
            free[device] = now + length
            served += best_rows
        elif next_release < NEVER:
            free[device] = next_release
        else:
            return served


@compiled
def _first_due_from(deadline: Ints, head: int, tail: int, now: int, length: int) -> int:
    """The first of head ... tail - 1 that a batch of this length is in time for, else tail."""
    return int(head + np.searchsorted(deadline[head:tail], now + length))
