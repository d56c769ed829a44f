"""Batches and their timeout in formulas: the latency that a batch size and a timeout give, without
playing a request.

The question and the second model are BATCH's (Ali et al., SC 2020): a latency distribution by
arithmetic, from the arrival rate and the time of a batch of each size. Arrivals are Poisson and
executions take exactly their time. Owns the arithmetic; how far it is from the simulator is
batch_model_check.py's.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.stats import erlang, poisson  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]

PARTS = 40  # into which a span of time is cut
MISSING = 1e-9  # of a distribution's tail that is left out
# A queue longer than so many full batches has nothing to do with an SLO.
MOST_BATCHES = 40


class Latencies:
    """A distribution of latencies, as weighted values in seconds."""

    def __init__(self, values_s: Floats, weights: Floats) -> None:
        order = np.argsort(values_s)
        self._values_s = values_s[order]
        weights = weights[order]
        self._shares = np.cumsum(weights) / weights.sum()
        self.mean_s = float((self._values_s * weights).sum() / weights.sum())

    def percentile_s(self, share: float) -> float:
        index = int(np.searchsorted(self._shares, share))
        return float(self._values_s[min(index, len(self._values_s) - 1)])

    def within(self, limit_s: float) -> float:
        """The share that takes no longer."""
        index = int(np.searchsorted(self._values_s, limit_s, side="right"))
        return float(self._shares[index - 1]) if index else 0.0


class OneDevice:
    """A device that takes whatever waits, up to `max_batch` rows, whenever it is free: no timeout.

    Exact: the queue that an execution leaves behind is a Markov chain (bulk service, Bailey 1954),
    and who comes at a given instant of an execution finds it (PASTA).
    """

    def __init__(self, rate_per_s: float, exec_s: Sequence[float], max_batch: int) -> None:
        """`exec_s[b - 1]` is that of b rows. Raises ValueError where the queue grows for ever."""
        if not 1 <= max_batch <= len(exec_s):
            raise ValueError(f"max_batch {max_batch} is not in 1 ... {len(exec_s)}")
        self._rate = rate_per_s
        self._exec_s = [0.0, *exec_s]
        self._max = max_batch
        self.utilisation = rate_per_s * exec_s[max_batch - 1] / max_batch
        if self.utilisation >= 1:
            raise ValueError(
                f"{rate_per_s:g} requests/s are {self.utilisation:.2f} of what batches of "
                f"{max_batch} do: the queue grows for ever"
            )

    @cached_property
    def left_behind(self) -> Floats:
        """Probability of n waiting at the end of an execution."""
        size = self._max * MOST_BATCHES
        moves = np.zeros((size, size))
        arrivals = {
            rows: poisson.pmf(np.arange(size), self._rate * self._exec_s[rows])
            for rows in range(1, self._max + 1)
        }
        for waiting in range(size):
            rows = min(max(1, waiting), self._max)
            stays = max(0, waiting - rows)
            moves[waiting, stays:] = arrivals[rows][: size - stays]
            moves[waiting, -1] += max(0.0, 1 - moves[waiting].sum())
        balance = np.vstack([moves.T - np.eye(size), np.ones(size)])
        wanted = np.zeros(size + 1)
        wanted[-1] = 1
        found: Floats = np.maximum(0.0, np.linalg.lstsq(balance, wanted, rcond=None)[0])
        shares: Floats = found / found.sum()
        return shares

    def latencies(self) -> Latencies:
        """Of all requests: those that meet an idle device, and those that come during an execution,
        at each instant of it, behind those that wait already.
        """
        left = self.left_behind
        values: list[float] = [self._exec_s[1]]
        weights: list[float] = [float(left[0])]  # one a cycle that begins idle
        for waiting, share in enumerate(left):
            if share < MISSING:
                continue
            rows = min(max(1, waiting), self._max)
            stays = max(0, waiting - rows)
            span_s = self._exec_s[rows]
            for part in range(PARTS):
                at_s = (part + 0.5) * span_s / PARTS
                weight = float(share) * self._rate * span_s / PARTS
                self._add(values, weights, weight, stays, at_s, span_s)
        return Latencies(np.array(values), np.array(weights))

    def _add(
        self,
        values: list[float],
        weights: list[float],
        weight: float,
        stays: int,
        at_s: float,
        span_s: float,
    ) -> None:
        """One that comes at an instant of an execution that leaves `stays` waiting beside it."""
        before = _pmf(self._rate * at_s)
        for number, probability in enumerate(before):
            place = stays + number
            full, place = divmod(place, self._max)
            wait_s = span_s - at_s + full * self._exec_s[self._max]
            later = _pmf(self._rate * wait_s, most=self._max - place)
            for more, chance in enumerate(later):
                rows = min(self._max, place + 1 + more)
                values.append(wait_s + self._exec_s[rows])
                weights.append(weight * probability * chance)


def many_devices(
    rate_per_s: float, exec_s: Sequence[float], *, max_batch: int, timeout_s: float
) -> Latencies:
    """There is always a device free: a batch is executed when it is full, or when its first has
    waited `timeout_s` (BATCH's model of serverless functions). Raises ValueError for no such batch.
    """
    if not 1 <= max_batch <= len(exec_s):
        raise ValueError(f"max_batch {max_batch} is not in 1 ... {len(exec_s)}")
    values: list[float] = []
    weights: list[float] = []

    def add(first_s: float, rows: int, weight: float, *, is_full: bool) -> None:
        """A batch whose first came so long before it closed; a full one closes with its last."""
        run_s = exec_s[rows - 1]
        values.append(first_s + run_s)
        weights.append(weight)
        between = rows - 1 - is_full
        if is_full and rows > 1:
            values.append(run_s)
            weights.append(weight)
        for part in range(PARTS) if between > 0 else ():
            values.append(first_s * (part + 0.5) / PARTS + run_s)
            weights.append(weight * between / PARTS)

    if max_batch == 1:
        add(0.0, 1, 1.0, is_full=False)
        return Latencies(np.array(values), np.array(weights))
    mean = rate_per_s * timeout_s
    for more in range(max_batch - 1):
        add(timeout_s, 1 + more, float(poisson.pmf(more, mean)), is_full=False)
    filling = erlang(max_batch - 1, scale=1 / rate_per_s)
    edges = np.linspace(0.0, timeout_s, PARTS + 1)
    for low_s, high_s in pairwise(edges):
        weight = float(filling.cdf(high_s) - filling.cdf(low_s))
        add(float(low_s + high_s) / 2, max_batch, weight, is_full=True)
    return Latencies(np.array(values), np.array(weights))


def _pmf(mean: float, most: int | None = None) -> list[float]:
    """Of Poisson's 0, 1, ...; with `most` the last is that many or more."""
    if most is None:
        number = int(poisson.ppf(1 - MISSING, mean)) + 1
        return [float(p) for p in poisson.pmf(np.arange(number), mean)]
    found = [float(p) for p in poisson.pmf(np.arange(most), mean)]
    return [*found, max(0.0, 1 - sum(found))]
