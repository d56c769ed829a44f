"""An instance as flat arrays, and its bound under given prices.

Owns the step from requests to what the compiled loops take, and the buckets of time. Must never
choose prices: shortest_path.py does, and says why any will do.
"""

import numpy as np
from numpy.typing import NDArray

from loadtest.bound import greedy, kernels, weights_kernels
from loadtest.bound.instance import Instance, RequestClass

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Wider buckets rather than more: the arrays stay at some megabytes.
MAX_BUCKETS = 200_000


class Priced:
    """The capacities to put prices on: per bucket the devices' nanoseconds; with weights then the
    page nanoseconds of their caches, then the nanoseconds of their copy lanes.

    A price is in requests for all that the devices have of something in one bucket, so that the
    size of a step does not depend on the buckets' width or the pages' size.
    """

    def __init__(self, instance: Instance, bucket_ns: int | None) -> None:
        classes = [one for one in instance.classes if one.release_ns]
        self._num_requests = sum(len(one.release_ns) for one in classes)
        self._origin_ns = min(one.release_ns[0] for one in classes)
        span_ns = max(1, max(one.deadline_ns[-1] for one in classes) - self._origin_ns)
        self._enter_tables(instance, classes)
        sizes = np.array([len(one.release_ns) for one in classes], dtype=np.int64)
        self._class_begin = np.concatenate([[0], np.cumsum(sizes)])
        self._release = _joined([one.release_ns for one in classes]) - self._origin_ns
        self._deadline = _joined([one.deadline_ns for one in classes]) - self._origin_ns
        if bucket_ns is None:
            shortest_window_ns = int((self._deadline - self._release).min())
            bucket_ns = max(int(self._tables[:, 1].min()), shortest_window_ns // 16)
        self._width = max(bucket_ns, -(-span_ns // MAX_BUCKETS))
        self.num_buckets = span_ns // self._width + 2
        self._num_devices = instance.num_devices
        self._columns = np.zeros((self._num_requests, 5), dtype=np.int64)
        full = np.full(self.num_buckets, float(self._width * instance.num_devices))
        lanes = self._within(full, span_ns, instance)
        self._has_outages = bool(instance.outages)
        self._scale, self._capacity = full, lanes
        self._has_weights = instance.weights is not None
        if instance.weights is not None:
            self._enter_weights(instance, classes, sizes)
            pages = float(instance.pages_per_device)
            self._scale = np.concatenate([full, full * pages, full])
            self._capacity = np.concatenate([lanes, lanes * pages, lanes])

    def uniform(self, share: float) -> Floats:
        """Prices at which a nanosecond of a device costs this share of its best use."""
        prices = np.zeros(len(self._scale))
        prices[: self.num_buckets] = share * self._most_per_ns * self._scale[: self.num_buckets]
        return prices

    def value_at(self, prices: Floats, *, is_draft: bool = False) -> tuple[float, Floats, int]:
        """(bound under these prices, what its batches use in excess of the capacities, as shares;
        requests they would really serve, 0 where no schedule is looked for).

        A draft leaves out batches that are split around others, which only several devices can
        have: it is no bound, nearly one, and several times faster.
        """
        used = np.zeros(len(self._scale))
        per_unit = prices / self._scale
        problem = (
            self._width,
            self._release,
            self._deadline,
            self._class_begin,
            self._family_begin,
            self._family_end,
            self._table_of,
            self._max_rows_of,
            self._tables,
            self._num_devices > 1 and not is_draft,
        )
        found = 0
        if self._has_weights:
            pages, copy = self.num_buckets, 2 * self.num_buckets
            total, _ = weights_kernels.best_residencies(
                per_unit[:pages],
                per_unit[pages:copy],
                per_unit[copy:],
                *problem,
                self._weights_of,
                self._loads,
                self._pages_of,
                self._weights_shares,
                used[:pages],
                used[pages:copy],
                used[copy:],
                self._columns,
            )
        else:
            total, num_batches = kernels.best_batches(per_unit, *problem, used, self._columns)
            found = self._play(num_batches)
        excess = (used - self._capacity) / self._scale
        return total + float(per_unit @ self._capacity), excess, found

    def evened(self, shares: Floats, block: int) -> Floats:
        """The same with every `block` buckets' shares replaced by their mean."""
        if block == 1:
            return shares
        of_bucket = np.arange(self.num_buckets) // block
        sizes = np.bincount(of_bucket)
        parts = shares.reshape(-1, self.num_buckets)
        means = [np.bincount(of_bucket, weights=part) / sizes for part in parts]
        return np.concatenate([mean[of_bucket] for mean in means])

    def found_greedily(self) -> int:
        """Requests that one of two simple rules serves, as far as schedules are looked for."""
        if self._has_weights or self._has_outages:
            return 0
        return max(
            greedy.served_greedily(
                self._release,
                self._deadline,
                self._class_begin,
                self._table_of,
                self._max_rows_of,
                self._tables,
                self._num_devices,
                prefers_dense,
            )
            for prefers_dense in (False, True)
        )

    def _play(self, num_batches: int) -> int:
        if self._has_outages:
            return 0
        batches = self._columns[:num_batches]
        order = np.argsort(batches[:, kernels.START], kind="stable")
        return kernels.play(
            batches,
            order,
            self._release,
            self._deadline,
            self._table_of,
            self._tables,
            self._num_devices,
        )

    def _enter_tables(self, instance: Instance, classes: list[RequestClass]) -> None:
        names = sorted({one.model for one in classes})
        number_of = {name: number for number, name in enumerate(names)}
        self._table_of = np.array([number_of[one.model] for one in classes], dtype=np.int64)
        self._family_begin = np.searchsorted(self._table_of, self._table_of, side="left")
        self._family_end = np.searchsorted(self._table_of, self._table_of, side="right")
        tables = [instance.tables[name] for name in names]
        self._max_rows_of = np.array([len(table) - 1 for table in tables], dtype=np.int64)
        self._tables = np.zeros((len(names), max(map(len, tables))), dtype=np.int64)
        for number, table in enumerate(tables):
            self._tables[number, : len(table)] = table
        self._most_per_ns = max(n / table[n] for table in tables for n in range(1, len(table)))

    def _enter_weights(self, instance: Instance, classes: list[RequestClass], sizes: Ints) -> None:
        """Equal weights are one kind; a class bears its model's in proportion to its requests."""
        assert instance.weights is not None
        of_classes = [instance.weights[one.model] for one in classes]
        kinds = sorted(set(of_classes))
        self._weights_of = np.array([kinds.index(one) for one in of_classes], dtype=np.int64)
        self._loads = np.array([kind.load_ns for kind in kinds], dtype=np.int64)
        self._pages_of = np.array([kind.pages for kind in kinds], dtype=np.int64)
        of_model = np.bincount(self._table_of, weights=sizes)
        self._weights_shares = sizes / of_model[self._table_of]

    def _within(self, full: Floats, span_ns: int, instance: Instance) -> Floats:
        """What there is of the devices until the last deadline, less outages."""
        lanes = full.copy()
        end_ns = len(full) * self._width
        kernels.add_use(lanes, self._width, span_ns, end_ns, -float(instance.num_devices))
        for outage in instance.outages:
            begins = min(max(outage.from_ns - self._origin_ns, 0), span_ns)
            ends = min(max(outage.until_ns - self._origin_ns, 0), span_ns)
            if begins < ends:
                kernels.add_use(lanes, self._width, begins, ends, -1.0)
        return np.maximum(lanes, 0.0)


def _joined(parts: list[tuple[int, ...]]) -> Ints:
    return np.concatenate([np.array(part, dtype=np.int64) for part in parts])
