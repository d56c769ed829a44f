"""The inner loops of the bound, compiled: prices in, the best set of batches per class out.

Times are int64 nanoseconds from the start of the first bucket; prices are requests per nanosecond
of one device, constant within a bucket of `width` ns, and `cumulative` is their integral up to the
end of each bucket. Owns nothing; shortest_path.py says what is computed here, and why it bounds.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.bound.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Fields of a row of `columns`, one chosen batch (or a class's part of one).
CLASS, FIRST, ROWS, START, EXECUTED = range(5)


@compiled
def best_batches(
    prices: Floats,
    width: int,
    release: Ints,
    deadline: Ints,
    class_begin: Ints,
    family_begin: Ints,
    family_end: Ints,
    table_of: Ints,
    max_rows_of: Ints,
    tables: Ints,
    may_overlap: bool,
    used: Floats,
    columns: Ints,
) -> tuple[float, int]:
    """(sum of the classes' best values, number of batches) under these prices.

    Adds to `used` the nanoseconds the chosen batches take of each bucket, and writes a row of
    `columns` for each. `may_overlap`: two batches of one class can run at the same time.
    """
    cumulative = np.cumsum(prices * width)
    most = 0
    for c in range(len(table_of)):
        most = max(most, class_begin[c + 1] - class_begin[c])
    value = np.zeros(most + 1)
    choice = np.zeros((most, 3), dtype=np.int64)  # rows, start, executed rows
    total, num_columns = 0.0, 0
    for c in range(len(table_of)):
        offset = class_begin[c]
        n = class_begin[c + 1] - offset
        table = tables[table_of[c]]
        is_mixed = family_end[c] - family_begin[c] > 1
        value[n] = 0.0
        for i in range(n - 1, -1, -1):
            best, best_rows, best_start, best_executed = value[i + 1], 0, 0, 0
            for executed in range(1, max_rows_of[table_of[c]] + 1):
                length = table[executed]
                last = deadline[offset + i] - length
                if release[offset + i] > last:
                    break  # tables never fall: no larger batch fits either
                if i + executed <= n and executed + value[i + executed] > best:
                    first = release[offset + i + executed - 1]
                    if first <= last:
                        price, start = cheapest_start(
                            prices, cumulative, width, first, last, length
                        )
                        worth = executed - price + value[i + executed]
                        if worth > best:
                            best, best_rows, best_start = worth, executed, start
                            best_executed = executed
                if executed == 1 or not (is_mixed or may_overlap):
                    continue
                floor = -1.0  # the least price of this batch wherever request i may be in it
                for begins in (True, False):
                    if is_mixed and not begins:
                        break  # where the rest of the batch is makes no difference there
                    for rows in range(1, min(executed - 1, n - i) + 1):
                        if rows + value[i + rows] <= best:
                            continue
                        if not is_mixed:  # a look at two neighbours, cheaper than a price
                            first, part_last = part_window(
                                release, deadline, class_begin, family_begin, family_end,
                                c, i, rows, executed, length, begins, may_overlap,
                            )  # fmt: skip
                            if first > part_last:
                                break  # a longer part has a narrower window
                        if floor < 0.0:
                            floor, start = cheapest_start(
                                prices, cumulative, width, release[offset + i], last, length
                            )
                        if rows * (1.0 - floor / executed) + value[i + rows] <= best:
                            continue
                        if is_mixed:  # looking for partners is dearer than a price
                            first, part_last = part_window(
                                release, deadline, class_begin, family_begin, family_end,
                                c, i, rows, executed, length, begins, may_overlap,
                            )  # fmt: skip
                            if first > part_last:
                                continue
                        price, start = cheapest_start(
                            prices, cumulative, width, first, part_last, length
                        )
                        worth = rows * (1.0 - price / executed) + value[i + rows]
                        if worth > best:
                            best, best_rows, best_start = worth, rows, start
                            best_executed = executed
            value[i] = best
            choice[i, 0], choice[i, 1], choice[i, 2] = best_rows, best_start, best_executed
        total += value[0]
        i = 0
        while i < n:
            rows, start, executed = choice[i]
            if rows == 0:
                i += 1
                continue
            columns[num_columns, CLASS] = c
            columns[num_columns, FIRST] = offset + i
            columns[num_columns, ROWS] = rows
            columns[num_columns, START] = start
            columns[num_columns, EXECUTED] = executed
            num_columns += 1
            add_use(used, width, start, start + table[executed], rows / executed)
            i += rows
    return total, num_columns


@compiled
def cheapest_start(
    prices: Floats, cumulative: Floats, width: int, first: int, last: int, length: int
) -> tuple[float, int]:
    """(price, start) of the cheapest `length` ns that begin in [first, last].

    The price is piecewise linear in the start; it can only turn where the start or the end crosses
    a bucket's edge, so that walking from edge to edge finds the minimum exactly.
    """
    head, tail = first // width, (first + length) // width
    to_head_edge = (head + 1) * width - first
    to_tail_edge = (tail + 1) * width - first - length
    price = (cumulative[tail] - prices[tail] * to_tail_edge) - (
        cumulative[head] - prices[head] * to_head_edge
    )
    best, best_start, start = price, first, first
    while start < last and best > 0.0:
        step = min(to_head_edge, to_tail_edge, last - start)
        price += step * (prices[tail] - prices[head])
        start += step
        to_head_edge -= step
        to_tail_edge -= step
        if to_head_edge == 0:
            head += 1
            to_head_edge = width
        if to_tail_edge == 0:
            tail += 1
            to_tail_edge = width
        if price < best:
            best, best_start = price, start
    return max(best, 0.0), best_start


@compiled
def part_window(
    release: Ints,
    deadline: Ints,
    class_begin: Ints,
    family_begin: Ints,
    family_end: Ints,
    c: int,
    i: int,
    rows: int,
    executed: int,
    length: int,
    begins: bool,
    may_overlap: bool,
) -> tuple[int, int]:
    """(first, last) start of a batch of `executed` rows of which i … i + rows - 1 are one part.

    Empty (first > last) where no such batch can be. In a class that shares with no other, the rest
    lies behind a longer batch: after it if this part `begins` the batch, else before it. In a model
    of several classes the rest may come from anywhere; it is answered once, for `begins`.
    """
    offset, end = class_begin[c], class_begin[c + 1]
    first, last = release[offset + i + rows - 1], deadline[offset + i] - length
    if family_end[c] - family_begin[c] == 1:
        if begins:
            other = offset + i + rows + executed + 1
            return (release[other], last) if other < end else (1, 0)
        other = offset + i - executed - 2
        return (first, min(last, deadline[other] - length)) if other >= offset else (1, 0)
    if not begins or first > last:
        return 1, 0
    partners = 0
    for other in range(family_begin[c], family_end[c]):
        if other != c or may_overlap:
            low, high = class_begin[other], class_begin[other + 1]
            released = np.searchsorted(release[low:high], last, side="right")
            overdue = np.searchsorted(deadline[low:high], first + length, side="left")
            partners += max(0, released - overdue)
    if may_overlap:
        partners -= rows  # these were counted among their own class
    return (first, last) if rows + partners >= executed else (1, 0)


@compiled
def add_use(used: Floats, width: int, start: int, end: int, amount: float) -> None:
    """Count `amount` for every nanosecond of [start, end) in its bucket."""
    bucket = start // width
    while start < end:
        edge = min(end, (bucket + 1) * width)
        used[bucket] += (edge - start) * amount
        start = edge
        bucket += 1


@compiled
def play(
    columns: Ints,
    order: Ints,
    release: Ints,
    deadline: Ints,
    table_of: Ints,
    tables: Ints,
    num_devices: int,
) -> int:
    """Requests served when batches really run in this order, each on the first free device.

    A batch that comes too late loses rows from its front until it fits, or is dropped.
    """
    free = np.zeros(num_devices, dtype=np.int64)
    served = 0
    for at in order:
        table = tables[table_of[columns[at, CLASS]]]
        first, rows = columns[at, FIRST], columns[at, ROWS]
        device = np.argmin(free)
        start = max(free[device], release[first + rows - 1])
        while rows > 0 and start + table[rows] > deadline[first]:
            first += 1
            rows -= 1
        if rows > 0:
            free[device] = start + table[rows]
            served += rows
    return served
