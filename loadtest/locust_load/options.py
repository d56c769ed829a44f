"""The options that the locustfile adds to Locust's own, their help and their checks.

Owns names and defaults. Values stay what Locust can show in its web form: text and numbers.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.locust_load.mix import DEFAULT_SLO_MS, Mix, MixError, read_mix, read_models, read_slos
from loadtest.locust_load.payloads import Protocol
from loadtest.locust_load.steps import Steps, read_steps, trace_steps

SHAPES = ("users", "steps", "trace")
ARRIVALS = ("closed", "open")


class OptionsError(ValueError):
    """One line: the option, what is wrong with it, and what it should be."""


class Options(NamedTuple):
    mix: Mix
    protocol: Protocol
    rows: int
    dynamic_size: int
    is_open: bool
    rate_per_user: float
    think_s: float
    max_outstanding: int
    give_up_s: float
    seed: int
    api_key: str | None
    ca_cert: Path | None


def add_options(parser: Any) -> None:
    """`parser` is Locust's, an argparse.ArgumentParser that also knows the web form."""
    group = parser.add_argument_group(
        "Remontoir", "Requests with latency objectives (SLOs); docs/locust.md has examples."
    )

    def add(name: str, help_: str, *, is_secret: bool = False, **more: Any) -> None:
        environment = "REMONTOIR_LOCUST_" + name.removeprefix("--").upper().replace("-", "_")
        action = group.add_argument(name, help=help_, env_var=environment, **more)
        # What Locust's own add_argument says to its web form; a group of argparse's does not.
        action.include_in_web_ui = True
        action.is_secret = is_secret
        action.is_required = action.is_multiple = False

    add(
        "--models",
        "which models are asked, and how often: NAME[:WEIGHT],... (all that GET /models lists)",
        default="",
        type=_checked(read_models),
        metavar="MIX",
    )
    add(
        "--slo-ms",
        "SLO of each request, drawn by weight: [MODEL=]MS[:WEIGHT],... as in 50, or 25:1,250:4, or "
        f"magika=20,100:1,500:1 (default {DEFAULT_SLO_MS})",
        default=DEFAULT_SLO_MS,
        type=_checked(read_slos),
        metavar="MIX",
    )
    add(
        "--protocol",
        "json or binary to POST /infer, v2-json or v2-binary to POST /v2/models/M/infer "
        "(default binary)",
        default="binary",
        choices=[protocol.value for protocol in Protocol],
    )
    add("--rows", "rows per request (default 1)", default=1, type=_at_least(int, 1))
    add(
        "--dynamic-size",
        "size of axes that the model leaves open, the batch axis aside (default 16)",
        default=16,
        type=_at_least(int, 1),
    )
    add(
        "--arrivals",
        "closed: a user asks, waits for the answer, thinks, asks again. open: each user is a "
        "Poisson process that waits for nothing, and latency counts from the instant a request "
        "was due (default closed)",
        default="closed",
        choices=list(ARRIVALS),
    )
    add(
        "--rate-per-user",
        "open: requests per second and user; the rate of the run is this times the users "
        "(default 1)",
        default=1.0,
        type=_at_least(float, 0.001),
        metavar="PER_S",
    )
    add(
        "--think-s",
        "closed: mean of the exponential pause between an answer and the user's next request "
        "(default 0)",
        default=0.0,
        type=_at_least(float, 0.0),
        metavar="S",
    )
    add(
        "--shape",
        "users: as many as -u and -r say. steps: as --steps says. trace: the rate of --trace over "
        "time, by open arrivals (default users)",
        default="users",
        choices=list(SHAPES),
    )
    add(
        "--steps",
        "with --shape steps: RATE:SECONDS,... (closed arrivals: USERS:SECONDS,...)",
        default="10:30,20:30,40:30",
        type=_checked(read_steps),
        metavar="STEPS",
    )
    add(
        "--trace",
        "with --shape trace: a file of loadtest/data, or a path to one of the same form",
        default="azure2019_500fn_min480_959.csv.gz",
        metavar="FILE",
    )
    add(
        "--trace-step-s",
        "how long a minute (ServeGen: ten minutes) of the trace lasts here (default 1)",
        default=1.0,
        type=_at_least(float, 0.1),
        metavar="S",
    )
    add(
        "--peak-rate",
        "requests per second in the trace's busiest minute (default 50)",
        default=50.0,
        type=_at_least(float, 0.1),
        metavar="PER_S",
    )
    add(
        "--max-outstanding",
        "open: a process with so many unanswered sends no more, and counts what was due as not "
        "sent (default 1000)",
        default=1000,
        type=_at_least(int, 1),
    )
    add(
        "--give-up-s",
        "hang up on a request after so long (default 10)",
        default=10.0,
        type=_at_least(float, 0.1),
        metavar="S",
    )
    add(
        "--min-attainment",
        "exit with 1 if a smaller share of all requests was answered in time, as in 0.99 "
        "(default 0: never)",
        default=0.0,
        type=_share,
        metavar="SHARE",
    )
    add("--seed", "of arrivals, models, SLOs and tensors (default 1)", default=1, type=int)
    add(
        "--api-key",
        "sent as `Authorization: Bearer KEY`",
        default="",
        is_secret=True,
        metavar="KEY",
    )
    add("--ca-cert", "trust this certificate for https", default="", metavar="FILE")


def read_options(parsed: Mapping[str, Any]) -> Options:
    """Also of what was typed into the web form, which nobody has checked. Raises OptionsError."""
    try:
        return Options(
            mix=read_mix(parsed["models"], parsed["slo_ms"]),
            protocol=Protocol(parsed["protocol"]),
            rows=int(parsed["rows"]),
            dynamic_size=int(parsed["dynamic_size"]),
            is_open=parsed["arrivals"] == "open" or parsed["shape"] == "trace",
            rate_per_user=_at_least(float, 0.001)(parsed["rate_per_user"]),
            think_s=float(parsed["think_s"]),
            max_outstanding=_at_least(int, 1)(parsed["max_outstanding"]),
            give_up_s=_at_least(float, 0.1)(parsed["give_up_s"]),
            seed=int(parsed["seed"]),
            api_key=parsed["api_key"] or None,
            ca_cert=Path(parsed["ca_cert"]) if parsed["ca_cert"] else None,
        )
    except MixError as error:
        raise OptionsError(str(error)) from error
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise OptionsError(f"an option is not of its form: {error}") from error


def read_shape(parsed: Mapping[str, Any]) -> Steps | None:
    """None where users are as many as Locust is told. Only who has the shape needs the trace's
    file: a master, or a process alone. Raises OptionsError.
    """
    try:
        if parsed["shape"] == "steps":
            return read_steps(parsed["steps"])
        if parsed["shape"] == "trace":
            return trace_steps(
                parsed["trace"],
                step_s=float(parsed["trace_step_s"]),
                peak_per_s=float(parsed["peak_rate"]),
            )
    except ValueError as error:
        raise OptionsError(str(error)) from error
    return None


def _checked(read: Callable[[str], object]) -> Callable[[str], str]:
    def text(given: str) -> str:
        try:
            read(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return given

    return text


def _at_least(kind: type[int] | type[float], least: float) -> Callable[[Any], Any]:
    def number(given: Any) -> Any:
        try:
            value = kind(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{given!r} is no number") from error
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{given} is less than {least}, or not finite")
        return value

    return number


def _share(given: str) -> float:
    value: float = _at_least(float, 0.0)(given)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"{given} is not a share between 0 and 1")
    return value
