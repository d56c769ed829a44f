"""A server's own account: sums and counts out of its /metrics.

Owns the reading of the Prometheus text format, as little of it as is needed here.
"""

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


def scrape(server: Server) -> Scrape:
    """Raises OSError where nobody answers."""
    return Scrape(server.get("/metrics")[1].decode())
