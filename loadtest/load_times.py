"""LOAD against memmove: one real worker, ordered about directly, and a copy loop on the same cores.

Owns the pairing: LOAD, memmove, LOAD, memmove, so that both see the same minute of the machine.
"""

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadtest import worker_probe
from loadtest.bench import Bench
from loadtest.machine import on_cpus
from loadtest.score import percentile
from loadtest.worker_probe import WorkerProbe
from scheduler.actions import InferResult
from scheduler.spec import MILLISECOND_NS

# Executions kept waiting on a busy EXEC lane; such a batch takes about as long as a LOAD.
NUM_WAITING = 2
BUSY_ROWS = 16


class LoadTimes(msgspec.Struct, kw_only=True):
    """So many LOADs and as many copies, in milliseconds."""

    form: str
    shares_exec_core: bool
    num_pairs: int
    num_bytes: int
    load_p50_ms: float
    load_p99_ms: float
    memmove_p50_ms: float
    memmove_p99_ms: float
    exec_p50_ms: float | None = None
    exec_p99_ms: float | None = None


def measure(
    bench: Bench,
    repository: Path,
    *,
    forms: Sequence[tuple[str, str]],
    cache_mb: int,
    num_cached: int,
) -> list[LoadTimes]:
    """Idle in each form, and busy where the device says that EXEC does not mind LOADs."""
    num_pairs = 60 if bench.is_quick else 600
    measured: list[LoadTimes] = []
    for form, cpus in forms:
        with worker_probe.worker(
            repository,
            cache_dir=bench.cache_dir,
            cache_mb=cache_mb,
            cpus=cpus,
            log_dir=bench.log_dir,
        ) as probe:
            bench.report.say(f"$ {probe.command}")
            num_bytes = next(iter(probe.models.values())).weights_bytes
            with _copier(cpus, num_bytes, len(probe.models), num_cached) as copier:
                pairing = _Pairing(probe, copier, num_cached, bench.seed)
                measured.append(pairing.run(form, num_pairs))
                if not probe.hello.device.shares_exec_core:
                    pairing.keep_busy()
                    measured.append(pairing.run(f"{form}, busy", num_pairs))
                    pairing.stop_busy()
    return measured


class _Pairing:
    """Which models are resident, and the EXEC lane's work."""

    def __init__(
        self, probe: WorkerProbe, copier: "subprocess.Popen[str]", num_cached: int, seed: int
    ) -> None:
        self._probe = probe
        self._copier = copier
        self._num_cached = num_cached
        self._chance = random.Random(seed)
        self._names = sorted(probe.models)
        # All and only models with weights on the device, except the busy one.
        self._resident: list[str] = []
        self._busy_model: str | None = None
        self._waiting: list[int] = []
        self._exec_ms: list[float] = []
        probe.on_inferred = self._on_inferred

    def run(self, form: str, num_pairs: int) -> LoadTimes:
        loads_ms: list[float] = []
        copies_ms: list[float] = []
        self._exec_ms.clear()
        num_warm = self._num_cached + 1  # the first LOADs find pages that were never copied to
        for _ in range(num_warm + num_pairs):
            loads_ms.append(self._load_another())
            copies_ms.append(self._copy())
        del loads_ms[:num_warm], copies_ms[:num_warm]
        return LoadTimes(
            form=form,
            shares_exec_core=self._probe.hello.device.shares_exec_core,
            num_pairs=num_pairs,
            num_bytes=self._probe.models[self._names[0]].weights_bytes,
            load_p50_ms=percentile(loads_ms, 50) or 0.0,
            load_p99_ms=percentile(loads_ms, 99) or 0.0,
            memmove_p50_ms=percentile(copies_ms, 50) or 0.0,
            memmove_p99_ms=percentile(copies_ms, 99) or 0.0,
            exec_p50_ms=percentile(self._exec_ms, 50),
            exec_p99_ms=percentile(self._exec_ms, 99),
        )

    def keep_busy(self) -> None:
        """From now on one resident model executes back to back."""
        self._busy_model = self._resident.pop()
        for _ in range(NUM_WAITING):
            self._start_infer()

    def stop_busy(self) -> None:
        self._busy_model = None
        for action_id in list(self._waiting):
            self._probe.wait_for(action_id)

    def _load_another(self) -> float:
        held = self._num_cached - (self._busy_model is not None)
        if len(self._resident) == held:
            victim = self._resident.pop(self._chance.randrange(held))
            self._probe.evict(victim)
        taken = {*self._resident, self._busy_model}
        name = self._chance.choice([name for name in self._names if name not in taken])
        result = self._probe.load(name)
        self._resident.append(name)
        return result.load.duration_ns / MILLISECOND_NS

    def _copy(self) -> float:
        pipe = self._copier
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        source = self._chance.randrange(len(self._names))
        pipe.stdin.write(f"{source} {self._chance.randrange(self._num_cached)}\n")
        pipe.stdin.flush()
        self._probe.pump_until_readable(pipe.stdout.fileno())
        return int(pipe.stdout.readline()) / MILLISECOND_NS

    def _start_infer(self) -> None:
        assert self._busy_model is not None
        spec = self._probe.models[self._busy_model].inputs[0]
        batch = np.ones((BUSY_ROWS, *spec.shape[1:]), np.float32)
        self._waiting.append(self._probe.start_infer(self._busy_model, batch))

    def _on_inferred(self, result: InferResult) -> None:
        self._waiting.remove(result.action_id)
        self._exec_ms.append(result.exec.duration_ns / MILLISECOND_NS)
        if self._busy_model is not None:
            self._start_infer()


@contextlib.contextmanager
def _copier(
    cpus: str, num_bytes: int, num_sources: int, num_destinations: int
) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "loadtest.memmove"]
    command += [str(num_bytes), str(num_sources), str(num_destinations)]
    with subprocess.Popen(
        on_cpus(cpus, command),
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # ready
        try:
            yield process
        finally:
            process.stdin.close()
