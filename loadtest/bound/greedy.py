"""A schedule to hold against the bound: what serving whoever is here now would reach, compiled.

Owns one loop over devices as they become free. It gives a number that can be reached, not a good
policy: it knows the requests' windows, and no more of the future than anybody.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.bound.compiled import compiled

Ints = NDArray[np.int64]


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

    With `prefers_dense` the batch with most rows per nanosecond, dropping requests at the front
    that it would come too late for; else the one that must start first, without dropping any.
    """
    num_classes = len(table_of)
    head = class_begin[:-1].copy()  # all before are served or too late
    free = np.zeros(num_devices, dtype=np.int64)
    served = 0
    while True:
        device = np.argmin(free)
        now = free[device]
        best_key, best_class, best_first, best_rows = -np.inf, -1, 0, 0
        next_release = np.int64(1 << 62)
        for c in range(num_classes):
            end = class_begin[c + 1]
            table = tables[table_of[c]]
            while head[c] < end and deadline[head[c]] < max(now, release[head[c]]) + table[1]:
                head[c] += 1
            if head[c] == end:
                continue
            if release[head[c]] > now:
                next_release = min(next_release, release[head[c]])
                continue
            first = last = head[c]
            most = 4 * max_rows_of[table_of[c]]  # enough to choose from
            while last < end and last - first < most and release[last] <= now:
                last += 1
            for rows in range(1, min(last - first, max_rows_of[table_of[c]]) + 1):
                while first < last and deadline[first] < now + table[rows]:
                    first += 1
                if last - first < rows or (first > head[c] and not prefers_dense):
                    break
                key = rows / table[rows] if prefers_dense else float(table[rows] - deadline[first])
                if key > best_key or (best_class == c and not prefers_dense):
                    best_key, best_class, best_first, best_rows = key, c, first, rows
        if best_class >= 0:
            free[device] = now + tables[table_of[best_class], best_rows]
            head[best_class] = best_first + best_rows
            served += best_rows
        elif next_release < np.int64(1 << 62):
            free[device] = next_release
        else:
            return served
