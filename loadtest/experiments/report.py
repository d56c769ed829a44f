"""docs/measurements/scheduler.md: what was measured, where and how, and a section per experiment.

Owns the page's frame: date, machine, commit, command, and the table of verdicts in front.
"""

import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from loadtest import machine
from loadtest.experiments.beaten import beaten_text
from loadtest.experiments.jobs import Experiment, Length, Record
from loadtest.experiments.page import Section, Verdict, table_text
from loadtest.experiments.records import Records

LENGTHS = {
    Length.QUICK: "quick: one seed, a fraction of the scenarios' lengths; it shows that all runs",
    Length.DEFAULT: "default: the lengths written in the scenarios",
    Length.FULL: "full: the papers' lengths",
}


def write_report(
    path: Path,
    chosen: Sequence[Experiment],
    records: Sequence[Record],
    *,
    pictures_dir: Path,
    length: Length,
    command: str,
    took_s: float,
) -> list[Verdict]:
    """Write the page and its pictures; all verdicts. Pictures go into a folder of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = []
    for experiment in chosen:
        section = Section(
            experiment.number,
            experiment.title,
            page_dir=path.parent,
            pictures=path.stem,
            runs_dir=pictures_dir,
        )
        own = Records(r for r in records if r.experiment == experiment.number)
        experiment.write(own, section)
        sections.append(section)
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    blocks = [
        "# The scheduler in virtual time: the papers' experiments",
        "Written by the command below; no figure here was typed by hand. Every run is the "
        "scheduler that serves, in the simulator; what a figure is, is said in "
        "loadtest/results/summary.py. ± is half of a 95 % interval (Student's t) over the "
        "seeds.",
        _facts(records, length, command, took_s),
        _verdicts_text(verdicts),
        *filter(None, [beaten_text(records)]),
        *(section.text for section in sections),
    ]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return verdicts


def _facts(records: Sequence[Record], length: Length, command: str, took_s: float) -> str:
    found = machine.describe()
    cores = sorted({record.core for record in records if record.kind == "run"})
    cpu_s = sum(record.cpu_s for record in records)
    commit = found.commit if found.commit != "unknown" else _commit_here()
    rows = [
        ("date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        ("commit", commit),
        ("command", f"`{command}`"),
        ("length", LENGTHS[length]),
        (
            "machine",
            f"{found.cpu}, {found.num_cpus} CPUs, {found.memory_gib:.0f} GiB, "
            f"Python {found.python}, numpy {found.versions['numpy']}",
        ),
        ("core", ", ".join(cores)),
        (
            "played",
            f"{sum(r.kind != 'bound' for r in records):,} runs, "
            f"{sum(r.num_requests for r in records):,} requests, "
            f"{sum(r.kind == 'bound' for r in records):,} bounds",
        ),
        (
            "time",
            f"{took_s / 60:.0f} minutes; {cpu_s / 60:.0f} minutes of CPU for all runs and bounds",
        ),
    ]
    return table_text(("", ""), rows, words=2)


def _verdicts_text(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    met = sum(verdict.is_met is True for verdict in verdicts)
    rows = [(v.experiment, v.what, f"**{v.word}**", v.detail) for v in verdicts]
    return f"## Verdicts\n\n{met} of {len(verdicts)} targets are met.\n\n" + table_text(
        ("experiment", "target", "", ""), rows, words=4
    )


def _commit_here() -> str:
    """Of the folder this is run in, where the code is an installed package that has none."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{done.stdout.strip()} (of the folder it was run in)"
