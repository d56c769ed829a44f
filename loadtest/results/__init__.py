"""What a run in virtual time leaves behind: tables, figures of merit, files.

Owns the columns' names and meanings. Knows nothing of how a run is played or drawn.
"""

from loadtest.results.collector import Collector
from loadtest.results.intervals import Interval, interval
from loadtest.results.store import read, versions, write
from loadtest.results.summary import Group, OfBound, Summary, summarise
from loadtest.results.tables import RunMeta, Table, Tables

__all__ = [
    "Collector",
    "Group",
    "Interval",
    "OfBound",
    "RunMeta",
    "Summary",
    "Table",
    "Tables",
    "interval",
    "read",
    "summarise",
    "versions",
    "write",
]
