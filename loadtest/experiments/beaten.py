"""Where another policy had more than ours: the settings, so that no table has to be searched.

Owns what "more" means: mean goodput over the seeds, by more than both intervals together, among
runs of the same length whose goodput is what all of them are after. The two experiments that
protect one stream from another are judged by their own sections.
"""

from collections.abc import Sequence
from typing import NamedTuple

from loadtest.experiments.jobs import Record
from loadtest.experiments.page import table_text
from loadtest.experiments.records import Records, Spread, goodput
from loadtest.scenario import Value

OURS = "remontoir"
# Variables that are a policy's own and no setting of the run.
OF_POLICIES = ("schedule_ahead_ms", "margin_ms")
PROTECTING = ("62-thousands", "64-isolation")
MOST_ROWS = 30


class _Setting(NamedTuple):
    scenario: str
    duration_s: float
    values: tuple[tuple[str, Value], ...]


def beaten_text(records: Sequence[Record]) -> str:
    """The section, worst first; it says so where there is nothing."""
    rows, num_settings = _rows(records)
    if not num_settings:
        return ""
    head = "## Where another policy had more\n\n"
    if not rows:
        return head + f"In none of {num_settings} settings, beyond the intervals of both."
    text = (
        f"In {len({row[1] for row in rows})} of {num_settings} settings another policy had more "
        "goodput than ours, beyond the intervals of both; the largest differences first."
    )
    cells = [row[2] for row in sorted(rows, key=lambda row: -row[0])[:MOST_ROWS]]
    columns = ("scenario", "setting", "policy", "its goodput/s", "ours", "more")
    table = table_text(columns, cells, words=3)
    return f"{head}{text}\n\n{table}"


def _rows(records: Sequence[Record]) -> tuple[list[tuple[float, _Setting, tuple[str, ...]]], int]:
    by_setting: dict[_Setting, dict[str, list[Record]]] = {}
    for record in records:
        if record.kind != "run" or record.scenario in PROTECTING:
            continue
        values = tuple((k, v) for k, v in record.values.items() if k not in OF_POLICIES)
        policies = by_setting.setdefault(_Setting(record.scenario, record.duration_s, values), {})
        policies.setdefault(record.policy, []).append(record)
    rows = []
    num_settings = 0
    for setting, policies in by_setting.items():
        ours = _spread_of(policies.pop(OURS, []))
        if ours is None:
            continue
        num_settings += 1
        for policy, found in policies.items():
            theirs = _spread_of(found)
            if policy.startswith(f"{OURS}:") or theirs is None:
                continue
            more = theirs.mean - ours.mean
            if more > (theirs.half or 0.0) + (ours.half or 0.0) and more > 0.0:
                cells = _cells(setting, policy, theirs, ours)
                rows.append((more / max(ours.mean, 1e-9), setting, cells))
    return rows, num_settings


def _spread_of(records: Sequence[Record]) -> Spread | None:
    return Records(records).spread(goodput)


def _cells(setting: _Setting, policy: str, theirs: Spread, ours: Spread) -> tuple[str, ...]:
    values = ", ".join(f"{name} {value}" for name, value in setting.values)
    share = f"{(theirs.mean / ours.mean - 1) * 100:+.1f} %" if ours.mean else "-"
    return (setting.scenario, values, f"`{policy}`", theirs.text(), ours.text(), share)
