"""`python -m loadtest.planning.batch_model_check`: the formulas for batches beside the simulator.

Repeatable by seed; writes docs/measurements. Owns the settings and the page.
"""

import argparse
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from loadtest.planning.batch_model import Latencies, OneDevice, many_devices
from loadtest.results.intervals import interval
from loadtest.scenario import Case
from loadtest.scenario_setup import Devices, Models, Profile, Setup
from loadtest.simulate import run
from loadtest.workloads import Poisson

PAGE = Path("docs/measurements/2026-11-28-batch-model.md")
PAGE_COLUMNS = 120
FIRST_MS, EACH_MS, LARGEST = 20.0, 5.0, 8
EXEC_S = [(FIRST_MS + EACH_MS * rows) / 1000 for rows in range(LARGEST)]
SLO_MS = 10_000.0  # nobody is refused: the formulas know no refusals
NUM_REQUESTS = 5_000
SEEDS = (1, 2, 3, 4)
SHARES = (0.5, 0.95, 0.99)


class Setting(NamedTuple):
    """`utilisation` is of batches of `max_batch` on one device."""

    devices: int
    max_batch: int
    utilisation: float
    timeout_ms: float = 0.0

    @property
    def rate_per_s(self) -> float:
        return self.devices * self.utilisation * self.max_batch / EXEC_S[self.max_batch - 1]


ONE = tuple(Setting(1, batch, load) for batch in (1, 4, 8) for load in (0.3, 0.6, 0.8, 0.9))
MANY = tuple(Setting(16, batch, 0.1, timeout) for batch in (4, 8) for timeout in (5.0, 20.0, 60.0))
SPLIT = tuple(Setting(4, batch, load) for batch in (1, 8) for load in (0.3, 0.6, 0.8))


class Compared(NamedTuple):
    """Mean and percentiles in ms: by formula, and as played."""

    setting: Setting
    formula_ms: tuple[float, ...]
    played_ms: tuple[float, ...]  # means over the seeds
    plus_minus: float  # half of a 95 % interval of the played mean, as a share of it

    @property
    def errors(self) -> list[float]:
        pairs = zip(self.formula_ms, self.played_ms, strict=True)
        return [formula / played - 1 for formula, played in pairs]


def formula(setting: Setting) -> Latencies:
    """Several devices without a timeout: as if each had its own share of the requests."""
    if setting.timeout_ms:
        return many_devices(
            setting.rate_per_s,
            EXEC_S,
            max_batch=setting.max_batch,
            timeout_s=setting.timeout_ms / 1000,
        )
    rate_per_s = setting.rate_per_s / setting.devices
    return OneDevice(rate_per_s, EXEC_S, setting.max_batch).latencies()


def played_ms(setting: Setting, *, num_requests: int = NUM_REQUESTS, seed: int = 1) -> list[float]:
    """Latencies of the simulator, with Triton's batcher: it is the one that has these two knobs."""
    duration_s = num_requests / setting.rate_per_s
    profile = Profile(first_ms=FIRST_MS, each_ms=EACH_MS, load_ms=1, weights_mb=1)
    setup = Setup(
        duration_s=duration_s,
        warmup_s=0.05 * duration_s,
        models=(Models(name="m", profile=profile, max_batch=LARGEST, runs_exact_batch=True),),
        devices=(Devices(count=setting.devices, resident="all", delay_ms=0.0),),
        workload=(Poisson(models="m", slo_ms=SLO_MS, rate_per_s=setting.rate_per_s),),
    )
    policy = (
        f"triton:max_batch_size={setting.max_batch},"
        f"max_queue_delay_us={round(1000 * setting.timeout_ms)},schedule_ahead_ms=0"
    )
    case = Case(scenario="b", setup=setup, policy=policy, seed=seed, duration_s=duration_s)
    tables = run(case).tables
    assert tables is not None
    requests = tables.requests
    counted = requests["arrival_ns"] >= setup.warmup_s * 1e9
    latency_ns = requests["answered_ns"][counted] - requests["arrival_ns"][counted]
    return sorted((latency_ns / 1e6).tolist())


def compare(
    setting: Setting, *, num_requests: int = NUM_REQUESTS, seeds: Sequence[int] = SEEDS
) -> Compared:
    by_formula = formula(setting)
    played = [_figures(played_ms(setting, num_requests=num_requests, seed=s)) for s in seeds]
    means = [figures[0] for figures in played]
    half = interval(means).half_width if len(means) > 2 else 0.0
    return Compared(
        setting,
        tuple(
            1000 * value
            for value in (by_formula.mean_s, *(by_formula.percentile_s(s) for s in SHARES))
        ),
        tuple(statistics.fmean(column) for column in zip(*played, strict=True)),
        half / statistics.fmean(means),
    )


def _figures(values: Sequence[float]) -> tuple[float, ...]:
    return statistics.fmean(values), *(values[int(s * (len(values) - 1))] for s in SHARES)


def page(groups: Sequence[tuple[str, Sequence[Compared]]], command: str) -> str:
    """The page for docs/measurements."""
    blocks = [
        "# Batch size and timeout in formulas, beside the simulator",
        f"`{command}`: {NUM_REQUESTS:,} requests with each of {len(SEEDS)} seeds in a row; no "
        f"figure is typed by hand. A batch of n takes {FIRST_MS:.0f} + {EACH_MS:.0f} (n - 1) ms; "
        "arrivals are Poisson; played with "
        "Triton's batcher (`triton`), which has these two knobs, and SLOs that refuse nobody. "
        "Errors are of the formula, in percent of what was played; ± is half of a 95 % interval of "
        "the played mean: an error within it says nothing, and the tails vary more than the mean.",
    ]
    for title, compared in groups:
        errors = [abs(error) for one in compared for error in one.errors]
        blocks += [
            f"## {title}",
            _table(compared),
            f"Mean absolute error {statistics.fmean(errors):.1%}, the largest {max(errors):.1%}.",
        ]
    wrapped = [b if b.startswith(("|", "#")) else textwrap.fill(b, PAGE_COLUMNS) for b in blocks]
    return "\n\n".join(wrapped) + "\n"


def _table(compared: Sequence[Compared]) -> str:
    lines = [
        "| devices | largest batch | timeout | load | mean | p50 | p95 | p99 | "
        "errors: mean | p50 | p95 | p99 |",
        "|---" * 12 + "|",
    ]
    for one in compared:
        setting = one.setting
        figures = " | ".join(f"{value:.1f} ms" for value in one.played_ms)
        figures = figures.replace(" ms", f" ms ± {one.plus_minus:.1%}", 1)
        errors = " | ".join(f"{100 * error:+.1f} %" for error in one.errors)
        lines.append(
            f"| {setting.devices} | {setting.max_batch} | {setting.timeout_ms:.0f} ms | "
            f"{setting.utilisation:.0%} | {figures} | {errors} |"
        )
    return "\n".join(lines)


GROUPS = (
    ("One device that takes what waits", ONE),
    ("Always a device free, batches with a timeout (BATCH's functions)", MANY),
    ("Four devices, by the formula for one with a quarter of the requests", SPLIT),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.planning.batch_model_check",
        description="The formulas for batches beside the simulator; writes a page.",
    )
    parser.add_argument("--report", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    groups = [
        (title, [compare(setting) for setting in track(settings, title, console=console)])
        for title, settings in GROUPS
    ]
    options.report.write_text(page(groups, "python -m loadtest.planning.batch_model_check"))
    print(f"wrote {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
