"""A server's own account: sums and counts out of its /metrics.

Owns the reading of the Prometheus text format, as little of it as is needed here.
"""

import math
import re

from loadtest.servers import Server

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Labels = frozenset[tuple[str, str]]


class Scrape:
    """All samples of one moment."""

    def __init__(self, text: str) -> None:
        self._samples: list[tuple[str, Labels, float]] = [
            (name, frozenset(_LABEL.findall(labels or "")), float(value))
            for name, labels, value in _SAMPLE.findall(text)
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Over all samples of this name that have these labels; 0 where there is none."""
        wanted = labels.items()
        return sum(
            value for found, has, value in self._samples if found == name and has >= set(wanted)
        )

    def quantile(self, histogram: str, rank: float, *, since: "Scrape") -> float:
        """Of what was observed since, all labels together; linear inside a bucket. 0 if nothing."""
        counts: dict[float, float] = {}
        for sign, samples in ((1, self._samples), (-1, since._samples)):
            for name, labels, value in samples:
                if name == f"{histogram}_bucket":
                    bound = float(dict(labels)["le"])
                    counts[bound] = counts.get(bound, 0.0) + sign * value
        below_bound, below_count = 0.0, 0.0
        wanted = rank * counts.get(math.inf, 0.0)
        for bound, count in sorted(counts.items()):
            if count >= wanted and count > below_count and bound < math.inf:
                share = (wanted - below_count) / (count - below_count)
                return below_bound + share * (bound - below_bound)
            below_bound, below_count = bound, count
        return 0.0


def scrape(server: Server) -> Scrape:
    """Raises OSError where nobody answers."""
    return Scrape(server.get("/metrics")[1].decode())
