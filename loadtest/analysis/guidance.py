"""What results say to somebody who has to choose: sentences, each with the figures behind it.

Owns the thresholds. A sentence is there only if the figures say it, never written beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from loadtest.analysis.ceilings import Ceilings
from loadtest.analysis.cell import Line
from loadtest.analysis.prices import Prices
from loadtest.analysis.roofline import Point

# A service that loses more than one request of a hundred is over its limit.
ENOUGH = 0.99
# A driver that was this share of the SLO behind its own schedule measured itself.
DRIVER_SHARE = 0.1
LATE_SHARE = 0.001
# A quantile needs so many answers that one of them lies beyond it.
ANSWERS_FOR_P99, ANSWERS_FOR_P999 = 100, 1000
# Of a normal distribution: 95 % lie within; and how well a share should be known, in points.
Z_95, SURE_POINTS = 1.96, 0.5
# Below this, what another batch size or configuration gains is within what repeats differ by.
WORTH = 1.05


def sentences(
    lines: Sequence[Line],
    prices: Prices,
    *,
    points: Sequence[Point] = (),
    ceilings: Ceilings | None = None,
    batch_rates: Mapping[tuple[str, int], float] | None = None,
) -> list[str]:
    """What to know, the most useful first."""
    found = []
    for (model, slo_ms, arrivals), group in groupby(sorted(lines, key=_load), _load):
        others = {line.first.arrivals for line in lines if line.first.model == model}
        name = model if len(others) == 1 else f"{model} ({arrivals})"
        found += _of_model(name, slo_ms, list(group), prices)
    found += _of_batches(batch_rates or {})
    if ceilings is not None:
        found += _of_roofs(points, ceilings)
    return [*found, *_doubts(lines)]


def _load(line: Line) -> tuple[str, float, str]:
    return line.first.model, line.first.slo_ms, line.first.arrivals


def _of_model(model: str, slo_ms: float, lines: list[Line], prices: Prices) -> list[str]:
    said = []
    best = max(lines, key=lambda line: line.goodput_per_s)
    configs = {line.first.config for line in lines}
    name = best.first.config_name or "the one configuration measured"
    text = (
        f"{model} within {slo_ms:g} ms: at most {best.goodput_per_s:,.1f} requests/s in time, by "
        f"{name}"
    )
    if best.first.rate_per_s:
        text += f", at {best.first.rate_per_s:g}/s offered ({_percent(best.attainment)} in time)"
    said.append(text + ".")
    said += _capacity(model, slo_ms, lines)
    if len(configs) > 1:
        said += _cheapest(model, slo_ms, lines, prices)
    said += _longest_stage(model, best)
    return said


def _capacity(model: str, slo_ms: float, lines: list[Line]) -> list[str]:
    """Up to which rate a configuration keeps its promise."""
    open_loop = [line for line in lines if line.first.rate_per_s]
    if not open_loop:
        return []
    held = [line for line in open_loop if line.attainment >= ENOUGH]
    if not held:
        least = min(open_loop, key=lambda line: line.first.rate_per_s)
        return [
            f"{model} keeps {slo_ms:g} ms for {_percent(ENOUGH)} of the requests at no rate that "
            f"was measured: {_percent(least.attainment)} at {least.first.rate_per_s:g}/s. It needs "
            "a longer SLO, a smaller batch or a faster device."
        ]
    top = max(held, key=lambda line: line.first.rate_per_s)
    said = f"{model} keeps {slo_ms:g} ms for {_percent(ENOUGH)} up to {top.first.rate_per_s:g}/s"
    above = [
        line
        for line in open_loop
        if line.first.config == top.first.config and line.first.rate_per_s > top.first.rate_per_s
    ]
    if not above:
        return [said + ", the highest rate measured: its limit was not found."]
    after = min(above, key=lambda line: line.first.rate_per_s)
    return [
        f"{said}; at {after.first.rate_per_s:g}/s {_percent(after.attainment)} are in time "
        f"({after.goodput_per_s:,.1f}/s)."
    ]


def _cheapest(model: str, slo_ms: float, lines: list[Line], prices: Prices) -> list[str]:
    priced = []
    for line in lines:
        costs = [cell.cost(prices) for cell in line.cells]
        usd = line.mean([None if cost is None else cost.usd for cost in costs])
        if usd is not None and line.attainment >= ENOUGH:
            priced.append((usd, line))
    if not priced:
        return []
    usd, line = min(priced, key=lambda item: item[0])
    return [
        f"The cheapest that keeps {_percent(ENOUGH)} of {model} within {slo_ms:g} ms is "
        f"{line.first.config_name} at {line.first.rate_per_s:g}/s: {usd:.5f} US$ per 1,000."
    ]


def _longest_stage(model: str, line: Line) -> list[str]:
    stages = line.first.stages
    total = sum(ms for _, ms in stages)
    if not total or len(stages) < 2:
        return []
    stage, ms = max(stages, key=lambda item: item[1])
    if ms / total < 0.5:
        return []
    return [f"Of a request of {model}, {stage} takes {ms / total * 100:.0f} % ({ms:.2f} ms)."]


def _of_batches(rates: Mapping[tuple[str, int], float]) -> list[str]:
    said = []
    for model in sorted({model for model, _ in rates}):
        own = {batch: rate for (name, batch), rate in rates.items() if name == model}
        if len(own) < 2:
            continue
        least, best = min(own), max(own, key=lambda batch: own[batch])
        gain = own[best] / own[least] if own[least] else 0.0
        if best == least or gain < WORTH:
            said.append(
                f"Batching does not pay for {model}: no size from {least} to {max(own)} executes "
                f"{(WORTH - 1) * 100:.0f} % more rows per second than {least}."
            )
        else:
            said.append(
                f"{model} executes {gain:.2f} times as many rows per second in batches of {best} "
                f"as of {least}."
            )
    return said


def _of_roofs(points: Sequence[Point], ceilings: Ceilings) -> list[str]:
    said = []
    for model, group in groupby(
        sorted(points, key=lambda p: (p.model, p.batch)), lambda p: p.model
    ):
        first = next(iter(group))
        share = first.share_of_roof(ceilings)
        limit = first.limit(ceilings)
        what = {
            "memory": "memory limits it (a larger batch, or smaller weights, help)",
            "compute": "computing limits it (a larger batch saves little)",
            "either": "caches decide whether memory or computing limits it",
        }[limit]
        said.append(
            f"{model} at batch {first.batch}: {first.flops / 1e6:,.0f} MFLOP at "
            f"{first.best_intensity:.1f} FLOPs per byte; {what}. It reaches {share * 100:.0f} % of "
            "its roof."
        )
    return said


def _doubts(lines: Sequence[Line]) -> list[str]:
    """What makes figures doubtful."""
    said = []
    partial = [line for line in lines if line.is_partial]
    if partial:
        whys = sorted({cell.partial for line in partial for cell in line.cells if cell.partial})
        said.append(
            f"{len(partial)} of {len(lines)} lines are of runs that were cut short "
            f"({'; '.join(whys)}): what they lack is missing here."
        )
    behind = [
        line
        for line in lines
        if any((c.driver_error_p99_ms or 0) > DRIVER_SHARE * c.slo_ms for c in line.cells)
    ]
    if behind:
        worst = max(c.driver_error_p99_ms or 0 for line in behind for c in line.cells)
        said.append(
            f"In {len(behind)} lines the driver itself was late by more than a tenth of the SLO "
            f"(p99 up to {worst:.2f} ms): they measure the driver as well."
        )
    said += _few(lines)
    late = [
        line for line in lines
        if sum(c.late for c in line.cells) > LATE_SHARE * max(1, sum(c.sent for c in line.cells))
    ]  # fmt: skip
    if late:
        said.append(
            f"In {len(late)} of {len(lines)} lines more than {LATE_SHARE * 100:g} % of the "
            "requests were answered too late: somebody waited for an answer that was of no use."
        )
    kinds: dict[str, int] = {}
    for line in lines:
        for cell in line.cells:
            for kind, number in cell.errors:
                kinds[kind] = kinds.get(kind, 0) + number
    if kinds:
        listed = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(kinds.items()))
        said.append(f"There were errors: {listed}.")
    return said


def _few(lines: Sequence[Line]) -> list[str]:
    """Tails and shares of few requests are chance."""
    said = []
    answers = [min(cell.good + cell.late for cell in line.cells) for line in lines]
    few = [number for number in answers if 0 < number < ANSWERS_FOR_P999]
    if few:
        text = (
            f"In {len(few)} of {len(lines)} lines a run has fewer than {ANSWERS_FOR_P999:,} "
            f"answers ({min(few):,} at the least): its p99.9 is the slowest of them"
        )
        if min(few) < ANSWERS_FOR_P99:
            text += f", and with fewer than {ANSWERS_FOR_P99} its p99, too"
        said.append(text + ".")
    sent = [sum(cell.sent for cell in line.cells) for line in lines]
    least = min((number for number in sent if number), default=0)
    if least:
        points = 100 * Z_95 * math.sqrt(ENOUGH * (1 - ENOUGH) / least)
        if points > SURE_POINTS:
            said.append(
                f"The shortest line has {least:,} requests: {ENOUGH * 100:g} % in time of so many "
                f"is known to ± {points:.1f} points at best."
            )
    return said


def _percent(share: float) -> str:
    """Never rounds up to 100 %: that is a claim."""
    if share < 1.0 and round(share * 100, 1) >= 100.0:
        return "99.9+ %"
    return f"{share * 100:.1f} %"
