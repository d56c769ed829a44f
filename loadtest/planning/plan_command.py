"""`remontoir plan`: how many devices, how much cache, for a trace, a recording or a scenario.

Owns the words of the command and its progress bar on stderr.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from loadtest.planning.plan import Limits, Plan, Progress, make_plan
from loadtest.planning.plan_report import print_plan, write_plan
from loadtest.planning.question import (
    Question,
    is_recording_file,
    of_recording,
    of_scenario,
    of_trace,
)
from loadtest.profiles import ProfileError, catalogue_names
from loadtest.scenario import ScenarioError, Value
from loadtest.scenario_setup import Devices, Models, Profile
from loadtest.simulate_command import path_of
from scheduler.policies import PolicyError, parse

PIPE_WIDTH = 160
DEFAULT_TARGET = 0.99
DEVICE_MB = 22_016  # what Clockwork (OSDI 2020) keeps of a V100


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with 0 where there is a plan, 1 where the most devices do not attain the target, 2 where
    it was asked wrongly, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    errors = Console(stderr=True, highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="remontoir-plan-") as directory:
            plan = _plan(options, errors, Path(directory))
        files = write_plan(plan, Path(options.out)) if options.out else []
    except (ValueError, RuntimeError) as error:  # of the question; a library that is not there
        errors.print(f"remontoir: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
    except OSError as error:
        errors.print(
            f"remontoir: --out {options.out}: {error.strerror}", style="red", soft_wrap=True
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(plan)).decode())
    else:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        console = Console(highlight=False, width=width)
        print_plan(console, plan)
        for file in files:
            console.print(f"wrote {file}", markup=False, soft_wrap=True)
    raise SystemExit(0 if plan.sizes.devices is not None else 1)


def _plan(options: argparse.Namespace, errors: Console, directory: Path) -> Plan:
    _check(options)
    question = with_noise(question_of(options, directory), options.exec_noise)
    limits = Limits(
        max_devices=options.max_devices,
        max_requests=options.max_requests,
        budget_s=options.budget_s,
        jobs=options.jobs,
    )
    with _bars(errors) as bars:
        return make_plan(
            question,
            target=options.target,
            seeds=options.seed or (1,),
            limits=limits,
            progress=_Shown(bars),
        )


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.target <= 1:
        raise ScenarioError(f"--target {options.target:g} is not in 0 ... 1; 0.99 is 99 %")
    check_numbers(options, "max_devices", "max_requests", "jobs", "budget_s", "count", "device_mb")
    if options.policy is not None:
        try:
            parse(options.policy)
        except PolicyError as error:
            raise ScenarioError(f"--policy: {error}") from error


def check_numbers(options: argparse.Namespace, *flags: str) -> None:
    """Of these flags and of those about the source. Raises ScenarioError."""
    for flag in (*flags, "slo_ms", "rate_per_s", "scale", "duration_s"):
        value = getattr(options, flag)
        if value is not None and not value > 0:
            raise ScenarioError(f"--{flag.replace('_', '-')} {value:g} is not positive")
    if options.scale is not None and options.rate_per_s is not None:
        raise ScenarioError("--scale and --rate-per-s: only one of them")


def question_of(options: argparse.Namespace, directory: Path) -> Question:
    """From the file that was named, or a trace with the models beside it."""
    named = [text for text in (options.source, options.trace) if text is not None]
    if len(named) != 1:
        raise ScenarioError(
            "what is to be planned for? One of SCENARIO.yaml, FILE.rec and --trace FILE"
        )
    source = named[0]
    of_models = options.catalogue or options.profile
    is_scenario = source.endswith((".yaml", ".yml")) or path_of(source) != Path(source)
    if options.trace is None and is_scenario:
        _refuse(options, "a scenario", "slo_ms", "rate_per_s", "scale", "duration_s", "device_mb")
        if of_models:
            raise ScenarioError("a scenario has models of its own: --models goes with --trace")
        return of_scenario(str(path_of(source)), values=_values(options.set), policy=options.policy)
    if options.set:
        raise ScenarioError("--set goes with a scenario")
    if not of_models:
        if _is_recording(source):
            _refuse(options, "a recording", "duration_s", "device_mb")
            return of_recording(
                source,
                catalogue=directory / "recorded.json",
                slo_ms=options.slo_ms,
                policy=options.policy,
                rate_per_s=options.rate_per_s,
                scale=options.scale,
            )
        raise ScenarioError(
            f"{source}: which models are asked? One of --models DIR, --catalogue FILE and "
            "--profile v100/NAME"
        )
    return of_trace(
        source,
        models=_models(options),
        slo_ms=options.slo_ms,
        policy=options.policy,
        devices=Devices(
            pages=max(1, options.device_mb // options.page_mb), page_mb=options.page_mb
        ),
        duration_s=options.duration_s,
        rate_per_s=options.rate_per_s,
        scale=options.scale,
    )


def _refuse(options: argparse.Namespace, whose: str, *flags: str) -> None:
    for flag in flags:
        if getattr(options, flag) != (DEVICE_MB if flag == "device_mb" else None):
            name = flag.replace("_", "-")
            raise ScenarioError(f"--{name}: {whose} says that itself")


def _is_recording(source: str) -> bool:
    return is_recording_file(source)


def _models(options: argparse.Namespace) -> list[Models]:
    """`--count` of each; the models of a catalogue by their own names."""
    found = []
    for text in options.profile:
        name = text.rpartition("/")[2]
        is_glob = "*" in text
        found.append(
            Models(name="{profile}-" if is_glob else name, profile=text, count=options.count)
        )
    for file in options.catalogue:
        try:
            names = catalogue_names(file)
        except ProfileError as error:
            raise ScenarioError(str(error)) from error
        if not names:
            raise ScenarioError(f"catalogue {file}: no model in it can be served")
        for name in names:
            profile = Profile(catalogue=file, model=name)
            found.append(Models(name=name, profile=profile, count=options.count))
    return found


def with_noise(question: Question, exec_noise: float | None) -> Question:
    """The same with devices that vary."""
    if exec_noise is None:
        return question
    setup = question.case.setup
    kind = msgspec.structs.replace(question.devices, exec_noise=exec_noise)
    setup = msgspec.structs.replace(setup, devices=(kind,))
    return msgspec.structs.replace(
        question, case=msgspec.structs.replace(question.case, setup=setup)
    )


def _values(settings: Sequence[str]) -> dict[str, Sequence[Value]]:
    values: dict[str, Sequence[Value]] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name or not value:
            raise ScenarioError(f"--set takes NAME=VALUE, not {setting!r}")
        try:
            values[name] = [yaml.safe_load(value)]
        except yaml.YAMLError:
            raise ScenarioError(f"--set {name}: {value!r} is no value that YAML knows") from None
    return values


class _Shown(Progress):
    """How far: the workload's share while it is looked through, then the runs that ended."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._looking = bars.add_task("looking for the busiest part", total=1.0)
        self._playing = bars.add_task("playing", total=None, visible=False)
        self._num_played = 0

    def looked(self, share: float) -> None:
        self._bars.update(self._looking, completed=share)

    def played(self) -> None:
        self._num_played += 1
        self._bars.update(self._looking, visible=False)
        self._bars.update(
            self._playing, visible=True, description=f"playing: {self._num_played} runs done"
        )


def _bars(errors: Console) -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def source_flags(parser: argparse.ArgumentParser) -> None:
    """Requests and models, for all commands that play them."""
    parser.add_argument("source", nargs="?", metavar="SCENARIO.yaml|FILE.rec")
    parser.add_argument("--trace", metavar="FILE")
    parser.add_argument("--slo-ms", type=float, metavar="N")
    parser.add_argument("--catalogue", action="append", default=[], metavar="FILE")
    parser.add_argument("--profile", action="append", default=[], metavar="v100/NAME")
    parser.add_argument("--count", type=int, default=1, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N")
    parser.add_argument("--rate-per-s", type=float, metavar="N")
    parser.add_argument("--scale", type=float, metavar="X")
    parser.add_argument("--duration-s", type=float, metavar="S")
    parser.add_argument("--exec-noise", type=float, metavar="X")
    parser.add_argument("--device-mb", type=int, default=DEVICE_MB, metavar="MIB")
    parser.add_argument("--page-mb", type=int, default=16, metavar="MIB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remontoir plan",
        description="How many devices, how much cache: found by playing the requests.",
    )
    limits = Limits()
    source_flags(parser)
    parser.add_argument("--target", type=float, default=DEFAULT_TARGET, metavar="SHARE")
    parser.add_argument("--policy", metavar="TEXT")
    parser.add_argument("--max-devices", type=int, default=limits.max_devices, metavar="N")
    parser.add_argument("--max-requests", type=int, default=limits.max_requests, metavar="N")
    parser.add_argument("--budget-s", type=float, default=limits.budget_s, metavar="S")
    parser.add_argument("--jobs", type=int, default=limits.jobs, metavar="N")
    parser.add_argument("--out", metavar="DIR")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
