"""The SLO counts of a Locust process: from its requests, from its workers, to the web, to files.

Owns which of Locust's events mean what: a worker reports and a master adds up; both begin anew with
a test. The numbers are slo_counts.py's.
"""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import gevent
from locust.runners import WorkerRunner

from loadtest.locust_load.slo_counts import Outcome, Row, SloCounts, csv_header, csv_rows
from loadtest.locust_load.web_tab import add_tab

REPORT_KEY = "remontoir_slo"  # in Locust's report of a worker
HISTORY_INTERVAL_S = 1.0
NO_ATTAINMENT_EXIT = 1

logger = logging.getLogger(__name__)


class Tally:
    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._counts = SloCounts()
        self._is_worker = isinstance(environment.runner, WorkerRunner)
        self._history: gevent.Greenlet | None = None
        events = environment.events
        events.test_start.add_listener(self._on_test_start)
        events.reset_stats.add_listener(self._on_reset)
        events.spawning_complete.add_listener(self._on_spawning_complete)
        if self._is_worker:
            events.report_to_master.add_listener(self._on_report_to_master)
            return
        events.worker_report.add_listener(self._on_worker_report)
        events.quitting.add_listener(self._on_quitting)
        self._history = gevent.spawn(self._write_history)
        if environment.web_ui is not None:
            add_tab(environment.web_ui, self.rows)

    def count(self, name: str, outcome: Outcome, latency_ms: float) -> None:
        self._counts.count(name, outcome, latency_ms=latency_ms, now_s=time.monotonic())

    def rows(self) -> list[Row]:
        return self._counts.rows(time.monotonic())

    def _on_test_start(self, environment: Any, **_: Any) -> None:
        self._counts.clear()

    def _on_reset(self, **_: Any) -> None:
        self._counts.clear()

    def _on_spawning_complete(self, user_count: int, **_: Any) -> None:
        if self._environment.reset_stats:  # --reset-stats: Locust forgets the ramp, and so do we
            self._counts.clear()

    def _on_report_to_master(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        data[REPORT_KEY] = self._counts.take()

    def _on_worker_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        self._counts.add(data.get(REPORT_KEY, {}), now_s=time.monotonic())

    def _on_quitting(self, environment: Any, **_: Any) -> None:
        if self._history is not None:
            self._history.kill()
        rows = self.rows()
        for line in _table(rows):
            logger.info(line)
        prefix = environment.parsed_options.csv_prefix
        if prefix:
            with Path(f"{prefix}_slo.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(csv_header())
                writer.writerows(csv_rows(rows))
        least = environment.parsed_options.min_attainment
        attainment = self._counts.attainment
        if least and (attainment is None or attainment < least):
            got = "no request was due" if attainment is None else f"{attainment:.2%} were in time"
            logger.error(f"--min-attainment {least}: {got}")
            environment.process_exit_code = environment.process_exit_code or NO_ATTAINMENT_EXIT

    def _write_history(self) -> None:
        """A line per name and second while there is something to tell."""
        prefix = self._environment.parsed_options.csv_prefix
        if not prefix:
            while True:
                gevent.sleep(HISTORY_INTERVAL_S)
                self._counts.tick(time.monotonic())
        with Path(f"{prefix}_slo_history.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["unix_s", "users", *csv_header()])
            while True:
                gevent.sleep(HISTORY_INTERVAL_S)
                self._counts.tick(time.monotonic())
                runner = self._environment.runner
                for row in csv_rows(self.rows()):
                    writer.writerow([round(time.time(), 3), runner.user_count, *row])
                file.flush()


def _table(rows: list[Row]) -> list[str]:
    """The end's summary, as wide as the longest name."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [
        f"{'SLO':<{width}} {'due':>8} {'in time':>8} {'late':>7} {'refused':>8} {'expired':>8} "
        f"{'failed':>7} {'unsent':>7} {'attained':>9} {'goodput/s':>10}"
    ]
    for row in rows:
        attained = "-" if row.attainment is None else f"{row.attainment:.2%}"
        lines.append(
            f"{row.name:<{width}} {row.due:>8} {row.in_time:>8} {row.late:>7} {row.refused:>8} "
            f"{row.expired:>8} {row.failed:>7} {row.unsent:>7} {attained:>9} "
            f"{row.goodput_per_s:>10.1f}"
        )
    return lines
