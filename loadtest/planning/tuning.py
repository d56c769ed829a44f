"""What a configuration of one host is worth: workers, threads of each, largest batch, policy.

Owns how a configuration becomes a simulated host, or a live probe. It chooses none
(region_search.py).
"""

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadtest.planning.evaluate import Asks
from loadtest.planning.question import Question
from loadtest.planning.region_search import Config, Space, Value
from loadtest.scenario_setup import Models, Profile
from loadtest.simulate import run
from loadtest.stage import models_of
from loadtest.workloads import Ask
from scheduler.spec import ModelProfile, ModelSpec

DIMENSIONS = ("workers", "threads", "max_batch", "policy")
DEFAULT_POLICIES = ("remontoir", "clockwork", "clipper", "edf")
DEFAULT_BATCHES = (1, 2, 4, 8, 16)
# Amdahl's: what of an execution further threads share. Nobody has measured it for these models.
PARALLEL_SHARE = 0.85
PROBE_TIMEOUT_S = 600
# No REMONTOIR_*: a `remontoir serve` that the command starts would take those for settings.
VARIABLE = "TUNE_"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """`weights_mb` is shared by the workers, each with a cache of its own. `measured`: models as
    they were compiled with so many threads; other numbers are scaled from one by PARALLEL_SHARE.
    """

    cores: int
    weights_mb: int
    parallel_share: float = PARALLEL_SHARE
    measured: dict[int, list[ModelSpec]] = {}

    def models(self, specs: Sequence[ModelSpec], threads: int, max_batch: int) -> list[ModelSpec]:
        """As they are with so many threads, and no larger batches."""
        own = {spec.name: spec for spec in self.measured.get(threads, ())}
        share = self.parallel_share
        factor = (1 - share) + share / threads
        return [
            _limited(own[spec.name], 1.0, max_batch)
            if spec.name in own
            else _limited(spec, factor, max_batch)
            for spec in specs
        ]


def space_of(
    host: Host,
    *,
    workers: Sequence[int] = (),
    threads: Sequence[int] = (),
    batches: Sequence[int] = DEFAULT_BATCHES,
    policies: Sequence[str] = DEFAULT_POLICIES,
) -> Space:
    """Every choice that asks for no more cores than there are. Raises ValueError for none."""
    powers = [1 << power for power in range(host.cores.bit_length()) if 1 << power <= host.cores]
    scale = sorted({*powers, *(3 * power for power in powers if 3 * power <= host.cores)})
    return Space(
        {
            "workers": tuple(workers) or tuple(scale),
            "threads": tuple(threads) or tuple(powers),
            "max_batch": tuple(batches),
            "policy": tuple(policies),
        },
        lambda config: int(config["workers"]) * int(config["threads"]) <= host.cores,
    )


class Simulated:
    """Scores by playing: the share of the requests that was in time. Each configuration is played
    once; a share of the requests is the first of them.
    """

    def __init__(self, question: Question, asks: Asks, host: Host, directory: Path) -> None:
        """Files with the models of each number of threads go into the directory."""
        self._question = question
        self._asks = asks
        self._host = host
        self._directory = directory
        self._specs = models_of(question.case.setup)
        self.num_played = 0
        self._known: dict[tuple[Config, float], float] = {}

    def __call__(self, config: Config, share: float) -> float:
        key = config, share
        if key not in self._known:
            seeds = list(self._asks)
            scores = [self._play(config, share, seed) for seed in seeds]
            self._known[key] = sum(scores) / len(scores)
            self.num_played += len(seeds)
        return self._known[key]

    def _play(self, config: Config, share: float, seed: int) -> float:
        workers, threads, max_batch, policy = config
        setup = self._question.case.setup
        kind = self._question.devices
        pages = max(1, self._host.weights_mb // int(workers) // kind.page_mb)
        devices = msgspec.structs.replace(
            kind, count=int(workers), pages=pages, resident="fit", shares_exec_core=True
        )
        models = self._models(int(threads), int(max_batch))
        setup = msgspec.structs.replace(setup, models=models, devices=(devices,))
        case = msgspec.structs.replace(
            self._question.case, setup=setup, policy=str(policy), seed=seed
        )
        asked = self._asks[seed]
        assert asked is not None  # a closed loop is refused before
        first = _first_of(asked, share)
        summary = run(case, asks=first).summary
        assert summary is not None
        return summary.run.attainment or 0.0

    def _models(self, threads: int, max_batch: int) -> tuple[Models, ...]:
        path = self._directory / f"models-{threads}-{max_batch}.json"
        if not path.exists():
            specs = self._host.models(self._specs, threads, max_batch)
            path.write_bytes(msgspec.json.encode(specs))
        return tuple(
            Models(name=spec.name, profile=Profile(catalogue=str(path), model=spec.name))
            for spec in self._specs
        )


class Probe:
    """Scores by asking a command of the user's: it finds the configuration in its environment,
    measures however it likes, and prints the score as its last line.
    """

    def __init__(self, command: str, names: Sequence[str]) -> None:
        self._command = command
        self._names = tuple(names)
        self.num_played = 0

    def __call__(self, config: Config, share: float) -> float:
        """Raises RuntimeError for a command that fails or prints no number."""
        said: Mapping[str, Value | float] = dict(zip(self._names, config, strict=True))
        variables = {VARIABLE + name.upper(): str(value) for name, value in said.items()}
        self.num_played += 1
        try:
            done = subprocess.run(
                self._command,
                shell=True,
                env={**os.environ, **variables, f"{VARIABLE}SHARE": f"{share:.4f}"},
                stdout=subprocess.PIPE,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"--probe took more than {PROBE_TIMEOUT_S} s for {said}") from None
        if done.returncode != 0:
            raise RuntimeError(f"--probe ended with {done.returncode} for {said}")
        last = (done.stdout.strip().splitlines() or [""])[-1]
        try:
            score = float(last)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise RuntimeError(f"--probe: its last line is no number: {last!r}, for {said}")
        return score


def _first_of(asked: list[Ask], share: float) -> list[Ask]:
    return asked[: max(1, math.ceil(share * len(asked)))]


def _limited(spec: ModelSpec, factor: float, max_batch: int) -> ModelSpec:
    """Faster or slower, and no batch larger than that (but a batch of one)."""
    sizes = tuple(size for size in spec.batch_sizes if size <= max_batch) or spec.batch_sizes[:1]
    shapes = tuple(
        msgspec.structs.replace(
            shape,
            exec_ns={
                size: max(1, round(time_ns * factor))
                for size, time_ns in shape.exec_ns.items()
                if size <= sizes[-1]
            },
        )
        for shape in spec.profile.shapes
    )
    profile = ModelProfile(spec.profile.load_ns, shapes)
    return msgspec.structs.replace(spec, batch_sizes=sizes, profile=profile)
