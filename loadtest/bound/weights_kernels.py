"""The inner loops of the bound where weights have to be loaded, compiled.

As kernels.py, with two more prices per bucket: of a page, and of the copy lane. Owns nothing;
shortest_path.py says what is computed here, and why it bounds.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.bound.compiled import compiled
from loadtest.bound.kernels import CLASS, EXECUTED, FIRST, ROWS, START, add_use, part_window

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A batch's place in the time its model spends on the devices, as bits.
ENTERS, LEAVES = 1, 2
NEVER = -1.0e18


@compiled
def integral(prices: Floats, cumulative: Floats, width: int, at: int) -> float:
    """The price of all time before `at`."""
    bucket = at // width
    return float(cumulative[bucket] - prices[bucket] * ((bucket + 1) * width - at))


@compiled
def cheapest_loads(
    page: Floats, pages_until: Floats, copy: Floats, copy_until: Floats, width: int,
    load: int, pages: int, least: Floats, least_end: Ints,
) -> None:  # fmt: skip
    """least[2 k], least[2 k + 1]: the cheapest LOAD that ends by k * width, by that plus load mod
    width; `least_end` when it ends. A LOAD costs its copying, less the pages' price before it
    begins: who leaves pays that from the very beginning.
    """
    best, best_end = -NEVER, 0
    for index in range(len(least)):
        end = index // 2 * width + (index % 2) * (load % width)
        if end >= load:
            cost = load_cost(page, pages_until, copy, copy_until, width, load, pages, end)
            if cost <= best:  # of equals the latest: copying just in time keeps lanes even
                best, best_end = cost, end
        least[index], least_end[index] = best, best_end


@compiled
def load_cost(
    page: Floats, pages_until: Floats, copy: Floats, copy_until: Floats, width: int,
    load: int, pages: int, end: int,
) -> float:  # fmt: skip
    """The cost, as above, of the LOAD that ends at `end` >= load."""
    begin = end - load
    return float(
        integral(copy, copy_until, width, end)
        - integral(copy, copy_until, width, begin)
        - pages * integral(page, pages_until, width, begin)
    )


@compiled
def cheapest_places(
    exec_: Floats, exec_until: Floats, page: Floats, pages_until: Floats,
    copy: Floats, copy_until: Floats, width: int,
    load: int, pages: int, least: Floats, least_end: Ints,
    first: int, last: int, length: int, exec_share: float, weights_share: float,
    costs: Floats, starts: Ints, load_ends: Ints,
) -> None:  # fmt: skip
    """For each of the four places: the least cost of a batch that starts in [first, last], where
    it then starts, and when its LOAD, if it has one, ends.

    Between the edges of buckets met by start, end and start - load every part of the cost is linear
    in the start, but for the cheapest LOAD until then, which is the lower of a constant and a line:
    concave, so that the sum is least at an edge.
    """
    for place in range(4):
        costs[place] = -NEVER
    start = first
    while True:
        end = start + length
        exec_cost = exec_share * (
            integral(exec_, exec_until, width, end) - integral(exec_, exec_until, width, start)
        )
        leave_cost = weights_share * pages * integral(page, pages_until, width, end)
        index = 2 * (start // width) + (1 if start % width >= load % width else 0)
        enter_cost, load_end = least[index], least_end[index]
        if start >= load:
            cost = load_cost(page, pages_until, copy, copy_until, width, load, pages, start)
            if cost <= enter_cost:
                enter_cost, load_end = cost, start
        enter_cost *= weights_share
        for place in range(4):
            cost = exec_cost
            if place & ENTERS:
                cost += enter_cost
            if place & LEAVES:
                cost += leave_cost
            if cost < costs[place]:
                costs[place], starts[place], load_ends[place] = cost, start, load_end
        if start == last:
            return
        step = min(width - start % width, width - end % width, last - start)
        if start >= load:
            step = min(step, width - (start - load) % width)
        else:
            step = min(step, load - start)
        start += step


@compiled
def best_residencies(
    exec_: Floats, page: Floats, copy: Floats, width: int,
    release: Ints, deadline: Ints, class_begin: Ints, family_begin: Ints, family_end: Ints,
    table_of: Ints, max_rows_of: Ints, tables: Ints, may_overlap: bool,
    weights_of: Ints, loads: Ints, pages_of: Ints, weights_shares: Floats,
    used_exec: Floats, used_pages: Floats, used_copy: Floats, columns: Ints,
) -> tuple[float, int]:  # fmt: skip
    """(sum of the classes' best values, number of batches) under these prices; `used_` and
    `columns` as best_batches fills them.
    """
    exec_until, pages_until = np.cumsum(exec_ * width), np.cumsum(page * width)
    copy_until = np.cumsum(copy * width)
    num_edges = 2 * len(exec_)
    least = np.empty((len(loads), num_edges))
    least_end = np.empty((len(loads), num_edges), dtype=np.int64)
    for kind in range(len(loads)):
        cheapest_loads(
            page, pages_until, copy, copy_until, width, loads[kind], pages_of[kind],
            least[kind], least_end[kind],
        )  # fmt: skip
    most = 0
    for c in range(len(table_of)):
        most = max(most, class_begin[c + 1] - class_begin[c])
    # Value of what follows from request i on: [0] without the weights, [1] with them.
    value = np.empty((2, most + 1))
    choice = np.zeros((2, most, 5), dtype=np.int64)  # rows, start, executed, place, end of LOAD
    costs = np.empty(4)
    starts = np.zeros(4, dtype=np.int64)
    load_ends = np.zeros(4, dtype=np.int64)
    total, num_columns = 0.0, 0
    for c in range(len(table_of)):
        offset = class_begin[c]
        n = class_begin[c + 1] - offset
        table, max_rows, kind = tables[table_of[c]], max_rows_of[table_of[c]], weights_of[c]
        is_split = may_overlap or family_end[c] - family_begin[c] > 1
        share = weights_shares[c]
        value[0, n], value[1, n] = 0.0, NEVER
        for i in range(n - 1, -1, -1):
            value[0, i], value[1, i] = value[0, i + 1], value[1, i + 1]
            choice[0, i, 0] = choice[1, i, 0] = 0
            for executed in range(1, max_rows + 1):
                length = table[executed]
                if release[offset + i] + length > deadline[offset + i]:
                    break
                least_rows = 1 if is_split else executed
                for rows in range(least_rows, min(executed, n - i) + 1):
                    for begins in (True, False):
                        if rows < executed:
                            first, last = part_window(
                                release, deadline, class_begin, family_begin, family_end,
                                c, i, rows, executed, length, begins, may_overlap,
                            )  # fmt: skip
                        elif begins:
                            first = release[offset + i + rows - 1]
                            last = deadline[offset + i] - length
                        else:
                            continue
                        if first > last:
                            continue
                        cheapest_places(
                            exec_, exec_until, page, pages_until, copy, copy_until, width,
                            loads[kind], pages_of[kind], least[kind], least_end[kind],
                            first, last, length, rows / executed, share,
                            costs, starts, load_ends,
                        )  # fmt: skip
                        for place in range(4):
                            before = 0 if place & ENTERS else 1
                            after = 0 if place & LEAVES else 1
                            worth = rows - costs[place] + value[after, i + rows]
                            if worth > value[before, i]:
                                value[before, i] = worth
                                chosen = choice[before, i]
                                chosen[0], chosen[1], chosen[2] = rows, starts[place], executed
                                chosen[3], chosen[4] = place, load_ends[place]
        state = 1 if value[1, 0] > value[0, 0] else 0
        total += value[state, 0]
        since = 0  # the weights' pages are taken from here on, while state is 1
        i = 0
        while i < n:
            rows, start, executed, place, load_end = choice[state, i]
            if rows == 0:
                i += 1
                continue
            columns[num_columns, CLASS] = c
            columns[num_columns, FIRST] = offset + i
            columns[num_columns, ROWS] = rows
            columns[num_columns, START] = start
            columns[num_columns, EXECUTED] = executed
            num_columns += 1
            end = start + table[executed]
            add_use(used_exec, width, start, end, rows / executed)
            if place & ENTERS:
                since = load_end - loads[kind]
                add_use(used_copy, width, since, load_end, share)
            if place & LEAVES:
                add_use(used_pages, width, since, end, share * pages_of[kind])
            state = 0 if place & LEAVES else 1
            i += rows
    return total, num_columns
