"""Cells as a small day of benchmarking leaves them: two models, three configurations, two SLOs."""

import math
import random
from collections.abc import Sequence

from loadtest.analysis.cell import Cell

CONFIGS = (
    (("policy", "remontoir"), ("threads", "1")),
    (("policy", "clipper"), ("threads", "1")),
    (("policy", "remontoir"), ("threads", "2")),
)
CAPACITY = {"resnet18": 24.0, "magika": 900.0}
EXECUTION_MS = {"resnet18": 42.0, "magika": 1.1}


def a_cell(**changes) -> Cell:
    """One quiet cell."""
    facts = {
        "job": "day",
        "run_id": "r1",
        "repeat": 0,
        "seed": 1,
        "started_at": "2026-05-04T10:00:00+00:00",
        "model": "resnet18",
        "config": CONFIGS[0],
        "arrivals": "poisson",
        "rate_per_s": 10.0,
        "slo_ms": 100.0,
        "duration_s": 10.0,
        "sent": 100,
        "good": 98,
        "late": 1,
        "refused": 1,
        "failed": 0,
    }
    return Cell(**{**facts, **changes})


def a_day(*, repeats: int = 3, rates: Sequence[float] = (0.3, 0.6, 0.9, 1.5)) -> list[Cell]:
    """Goodput grows up to a configuration's capacity; the same cells for the same arguments."""
    cells = []
    for model, capacity in CAPACITY.items():
        for number, config in enumerate(CONFIGS):
            own = capacity * (1.0, 0.7, 1.6)[number]
            for factor in (2.5, 10.0):
                for load in rates:
                    for repeat in range(repeats):
                        cells.append(_cell(model, config, own, capacity * load, factor, repeat))
    return cells


def _cell(
    model: str,
    config: tuple[tuple[str, str], ...],
    own: float,
    rate: float,
    factor: float,
    repeat: int,
) -> Cell:
    chance = random.Random(f"{model} {config} {rate} {factor} {repeat}")
    execution_ms, duration_s = EXECUTION_MS[model], 20.0
    slo_ms = round(factor * execution_ms, 1)
    sent = int(rate * duration_s)
    share = min(1.0, own * (1 - 0.6 / factor) / rate) * chance.uniform(0.97, 1.0)
    good = int(sent * share)
    late = int(sent * 0.0005)
    steps, total = [], 0
    for step in range(1, 41):
        edge = execution_ms + (slo_ms - execution_ms) * step / 40
        total = int(good * (1 - math.exp(-step / 9)) / (1 - math.exp(-40 / 9)))
        steps.append((edge, total))
    return a_cell(
        run_id=f"run-{config[0][1]}-{config[1][1]}",
        repeat=repeat,
        seed=repeat + 1,
        model=model,
        config=config,
        rate_per_s=rate,
        slo_ms=slo_ms,
        duration_s=duration_s,
        sent=sent,
        good=good,
        late=late,
        refused=sent - good - late,
        latency=tuple(steps),
        p50_ms=execution_ms * 1.3,
        p99_ms=slo_ms * chance.uniform(0.85, 0.98),
        p999_ms=slo_ms,
        refusal_p99_ms=0.8,
        stages=(
            ("transmit", 0.4),
            ("queue", execution_ms * 0.4 * rate / own),
            ("execute", execution_ms),
            ("reply", 0.3),
        ),
        cold_start_ms=3.0 * (30 if model == "resnet18" else 1),
        server_cpu_s=min(1.0, rate / own) * duration_s,
        server_rss_bytes=300 << 20,
        driver_error_p99_ms=0.2,
        machine="a machine",
        commit="abc1234",
    )
