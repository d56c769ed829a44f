"""The report's section on money, energy and carbon dioxide. Owns its words and tables."""

from collections.abc import Sequence
from html import escape
from statistics import fmean

from loadtest.analysis import pictures
from loadtest.analysis.cell import Line
from loadtest.analysis.guidance import ENOUGH
from loadtest.analysis.html_parts import figure, section, table
from loadtest.analysis.prices import Cost, Prices


def cost_section(lines: Sequence[Line], prices: Prices) -> list[tuple[str, str]]:
    """Nothing where nothing was measured."""
    devices = sorted({line.first.device for line in lines})
    known = [(device, price) for device in devices if (price := prices.of(device)) is not None]
    unknown = [device for device in devices if prices.of(device) is None]
    body = ""
    if known:
        drawn = pictures.costs(lines, prices, "cost")
        body = (
            "<p>Of requests served in time only: what is refused or late costs, too. Prices and "
            f"watts are those of {escape(prices.origin)}: for a decision, put your own into a copy "
            f"and give it as --prices. A data centre draws {prices.grid.pue:g} times "
            f"that, the grid emits {prices.grid.grams_co2_per_kwh:g} g CO₂ per kWh. Where energy "
            "was not measured, watts go from idle to busy with how much a device worked.</p>"
            + ("" if drawn is None else figure(drawn))
            + _cheapest(lines, prices)
            + table(
                ("device", "US$ per hour", "idle (W)", "busy (W)"),
                [
                    (
                        device,
                        f"{price.usd_per_hour:g}",
                        f"{price.idle_watts:g}",
                        f"{price.busy_watts:g}",
                    )
                    for device, price in known
                ],
            )
        )
    if unknown:
        body += f"<p>The table of prices does not know {escape(', '.join(unknown))}.</p>"
    return [section("cost", "Cost", body)] if body else []


def _cheapest(lines: Sequence[Line], prices: Prices) -> str:
    """Per model and configuration, where a request in time costs least: means of the repeats."""
    best: dict[tuple[str, str], tuple[Cost, Line]] = {}
    for line in lines:
        cost = _mean_cost(line, prices)
        if cost is None:
            continue
        key = (line.first.model, line.first.config_name)
        if key not in best or _worse(*best[key]) > _worse(cost, line):
            best[key] = (cost, line)
    rows = [
        (
            model,
            config or "-",
            f"{line.first.rate_per_s:g}" if line.first.rate_per_s else "-",
            f"{line.first.slo_ms:g}",
            f"{line.attainment * 100:.1f}",
            f"{cost.usd:.5f}",
            f"{cost.energy_wh:.4f}" + " (measured)" * cost.is_measured,
            f"{cost.grams_co2:.4f}",
        )
        for (model, config), (cost, line) in sorted(best.items(), key=lambda item: item[0])
    ]
    columns = ("model", "configuration", "offered (1/s)", "SLO (ms)", "in time (%)")
    return (
        "<p>Where each costs least, of 1,000 requests in time: among the lines that kept "
        f"{ENOUGH * 100:g} %, if there is one.</p>" + table((*columns, "US$", "Wh", "g CO₂"), rows)
    )


def _mean_cost(line: Line, prices: Prices) -> Cost | None:
    found = [cost for cell in line.cells if (cost := cell.cost(prices)) is not None]
    if not found:
        return None
    return Cost(
        usd=fmean(cost.usd for cost in found),
        energy_wh=fmean(cost.energy_wh for cost in found),
        grams_co2=fmean(cost.grams_co2 for cost in found),
        is_measured=all(cost.is_measured for cost in found),
    )


def _worse(cost: Cost, line: Line) -> tuple[bool, float]:
    """What loses requests is cheap for those that are left."""
    return line.attainment < ENOUGH, cost.usd
