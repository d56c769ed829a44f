"""`python -m loadtest.sharding`: how models, load and devices fall to several gateways.

Owns the sums of docs/scale.md: rendezvous hashing of so many names over so many replicas, with a
skewed popularity, by the function that gateways use. It simulates nothing: what a shard then does
is for `remontoir simulate 90-shard`.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from scheduler.shards import Replica, rendezvous_order

# A request's cost to its gateway: over HTTP (README: 11,831/s on a core), deciding (25 to 50 GPUs
# with full pages, compiled: docs/measurements/scheduler.md, 6.6), and the hop of nearly every one
# that has no router in front (`python -m loadtest replicas`).
HTTP_US, SCHEDULER_US, HOP_US = 85, 120, 100
BUSY_SHARE = 0.7  # of the core; the rest is for bursts


class Dealt(NamedTuple):
    """Figures of one number of replicas; shares are of the mean, moved and stood-in of all."""

    replicas: int
    models: float
    fullest_models: float
    fullest_load: float
    moved: float
    gone_load: float


def replicas_of(number: int) -> tuple[Replica, ...]:
    return tuple(Replica(f"gateway-{i}", f"http://gateway-{i}:8000") for i in range(number))


def popularity(num_models: int, skew: float) -> list[float]:
    """Zipf's: the i-th model's share of all requests."""
    weights = [1 / (rank + 1) ** skew for rank in range(num_models)]
    total = sum(weights)
    return [weight / total for weight in weights]


def deal(num_models: int, num_replicas: int, *, skew: float) -> Dealt:
    """Names are model-0, model-1, ..., the first the most popular."""
    names = [f"model-{number}" for number in range(num_models)]
    shares = popularity(num_models, skew)
    now = [rendezvous_order(replicas_of(num_replicas), name)[:2] for name in names]
    newcomer = f"gateway-{num_replicas}"
    after = [rendezvous_order(replicas_of(num_replicas + 1), name)[0] for name in names]
    models: Counter[str] = Counter(owner for owner, *_ in now)
    load: Counter[str] = Counter()
    for (owner, *_), share in zip(now, shares, strict=True):
        load[owner] += share  # type: ignore[assignment]  # a Counter of shares
    fullest = max(load, key=lambda name: load[name])
    inherited: Counter[str] = Counter()
    for order, share in zip(now, shares, strict=True):
        if order[0] == fullest and len(order) > 1:
            inherited[order[1]] += share  # type: ignore[assignment]
    worst = max((load[name] + more for name, more in inherited.items()), default=0.0)
    return Dealt(
        num_replicas,
        statistics.mean(models.values()),
        max(models.values()) * num_replicas / num_models,
        load[fullest] * num_replicas,
        sum(owner == newcomer for owner in after) / num_models,
        worst * num_replicas,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    most = int(BUSY_SHARE * 1e6 / args.us_per_request)
    needed = max(2, -(-args.rate // most))
    top = popularity(args.models, args.skew)[0] * args.rate
    console = Console()
    console.print(
        f"{args.rate:,} requests/s, of {args.us_per_request:g} µs each, on gateways that are"
        f" {BUSY_SHARE:.0%} busy ({most:,}/s): {needed} gateways in the mean.\n"
        f"{args.gpus:,} GPUs, {args.models:,} models, popularity with skew {args.skew:g}: the most"
        f" popular is asked {top:,.0f} times a second"
        f"{', more than one gateway answers' if top > most else ''}."
    )
    table = Table()
    for heading in (
        "gateways", "GPUs each", "models each", "fullest: models", "fullest: load",
        "moved by one more", "load of the next, fullest away",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for number in args.replicas or sorted({2, 10, needed, 2 * needed}):
        dealt = deal(args.models, number, skew=args.skew)
        table.add_row(
            str(number),
            f"{args.gpus / number:.0f}",
            f"{dealt.models:.0f}",
            f"{dealt.fullest_models:.2f}",
            f"{dealt.fullest_load:.2f}",
            f"{dealt.moved:.1%}",
            f"{dealt.gone_load:.2f}",
        )
    console.print(table)
    console.print("Figures of the fullest, and of the next, are times the mean.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.sharding", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=90_000, help="requests/s, of all clients")
    parser.add_argument(
        "--us-per-request",
        type=float,
        default=HTTP_US + SCHEDULER_US + HOP_US,
        metavar="US",
        help="CPU of a gateway (default: %(default)g; without hops"
        f" {HTTP_US + SCHEDULER_US}, by a router that sends requests to the owner)",
    )
    parser.add_argument("--skew", type=float, default=0.6, help="Zipf's; 0: all alike")
    parser.add_argument("--replicas", type=int, action="append", metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
