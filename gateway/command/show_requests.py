"""`remontoir requests`: recent requests as a table, or one's story, as a person reads them.

It owns columns and layout. What is told is the gateway's (GET /requests).
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gateway.command.client import Client, JsonObject

TIMELINE_WIDTH = 48  # characters for the latency of a request


def show_list(
    client: Client,
    console: Console,
    *,
    worst: int | None,
    model: str | None,
    outcome: str | None,
) -> None:
    """Raises ClientError."""
    asked = {"worst": worst, "model": model, "outcome": outcome}
    told = client.requests({name: value for name, value in asked.items() if value is not None})
    requests: Sequence[JsonObject] = told["requests"]
    if not requests:
        console.print(f"None of that kind among the last {told['kept']:,} answered.")
        return
    table = Table(box=None, pad_edge=False)
    for name, is_number in (
        ("id", False),
        ("arrived", False),
        ("model", False),
        ("SLO ms", True),
        ("took ms", True),
        ("slack ms", True),
        ("outcome", False),
    ):
        table.add_column(name, justify="right" if is_number else "left", no_wrap=not is_number)
    for request in requests:
        reason = request["reason"]
        table.add_row(
            request["request_id"],
            request["arrived_at"].partition("T")[2].partition("+")[0],
            request["model"] or "-",
            *(_ms(request[name]) for name in ("slo_ms", "latency_ms", "slack_ms")),
            request["outcome"] if reason is None else f"{request['outcome']} {reason}",
        )
    console.print(table, markup=False)
    console.print(
        f"Of the last {told['kept']:,} answered. `remontoir requests ID` tells why.", markup=False
    )


def show_story(client: Client, console: Console, request_id: str) -> None:
    """Raises ClientError."""
    told = client.request(request_id)
    for sentence in told["story"]:
        console.print(sentence, markup=False, soft_wrap=True)
    if told["remedy"] is not None:
        console.print(f"What helps: {told['remedy']}", markup=False, soft_wrap=True)
    console.print()
    latency_ms = told["latency_ms"]
    for phase in told["timeline"]:
        begin, end = (_place(phase[name], latency_ms) for name in ("begin_ms", "end_ms"))
        bar = " " * begin + ("█" * (end - begin) or "▏")
        took_ms = phase["end_ms"] - phase["begin_ms"]
        console.print(
            f"{phase['phase']:>8} {_ms(took_ms):>10} ms  {bar}", markup=False, soft_wrap=True
        )
    if told["trace_id"] is not None:
        console.print(f"trace {told['trace_id']}", markup=False)


def _place(at_ms: float, latency_ms: float) -> int:
    """Of an instant, in characters."""
    share = at_ms / latency_ms if latency_ms else 0.0
    return round(TIMELINE_WIDTH * min(1.0, max(0.0, share)))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
