"""How long executions take: alone, while LOADs run, and beside others at once.

The product executes one batch at a time on a device; the last two say what that is worth. Clockwork
(OSDI '20) publishes 0.03 % between the median and p99.99 for ResNet-50 alone on a V100.
"""

import threading
from collections.abc import Sequence

import msgspec
import numpy as np

from gpuworker.gpu_check.engine import CheckedEngine, EngineDevice
from gpuworker.gpu_check.lines import Line, Spread, digits, spread

NUM_WARM = 20
MAX_TAIL = 1.01  # p99.9 of the median


class ExecTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model. `situation` is "alone", "while LOADs run", "2 at once" or "4 at once".

    `per_s` is executions per second of the device's time; `num_loads` is how many ran meanwhile.
    """

    name: str
    situation: str
    times: Spread
    per_s: float
    num_loads: int = 0


def measure_alone(engine: CheckedEngine, num_runs: int) -> ExecTimes:
    with _Resident([engine]):
        times = _one_at_a_time(engine, num_runs)
    return ExecTimes(
        name=engine.reference.name, situation="alone", times=times, per_s=1e3 / times.p50_ms
    )


def measure_while_loading(device: EngineDevice, engine: CheckedEngine, num_runs: int) -> ExecTimes:
    """Another thread loads and evicts a model of the same size without pause, as the load lane
    of a worker would.
    """
    num_pages = engine.session.num_pages
    blob = device.context.pinned(num_pages * device.pages.page_bytes)
    blob[:] = 1
    addresses = device.pages.reserve(blob.nbytes)
    stop = threading.Event()
    failed: list[Exception] = []
    num_loads = 0

    def load() -> None:
        nonlocal num_loads
        device.context.bind_thread()
        try:
            while not stop.is_set():
                device.pages.load(addresses, range(num_pages, 2 * num_pages), blob)
                device.pages.unload(addresses)
                num_loads += 1
        except Exception as error:  # raised again below, by who waits for it
            failed.append(error)

    with _Resident([engine]):
        thread = threading.Thread(target=load, name="loads")
        thread.start()
        try:
            times = _one_at_a_time(engine, num_runs)
        finally:
            stop.set()
            thread.join()
    if failed:
        raise failed[0]
    return ExecTimes(
        name=engine.reference.name,
        situation="while LOADs run",
        times=times,
        per_s=1e3 / times.p50_ms,
        num_loads=num_loads,
    )


def measure_at_once(engines: Sequence[CheckedEngine], num_runs: int) -> ExecTimes:
    """Engines of the same model, each on a stream of its own, started together over and over."""
    times_ms: list[float] = []
    rounds_ms: list[float] = []
    with _Resident(engines):
        for number in range(NUM_WARM + num_runs):
            for engine in engines:
                engine.start()
            round_ms = [engine.wait() for engine in engines]
            if number >= NUM_WARM:
                times_ms += round_ms
                rounds_ms.append(max(round_ms))
    return ExecTimes(
        name=engines[0].reference.name,
        situation=f"{len(engines)} at once",
        times=spread(times_ms),
        per_s=1e3 * len(engines) / float(np.median(rounds_ms)),
    )


def lines_of(found: ExecTimes, *, has_bar: bool) -> list[Line]:
    times = found.times
    loads = f" ({found.num_loads:,} of them)" if found.num_loads else ""
    what = f"{found.name}, executed {found.situation}{loads}"
    text = " / ".join(digits(ms) for ms in (times.p50_ms, times.p99_ms, times.p999_ms))
    lines = [
        Line(f"{what}: p50 / p99 / p99.9", f"{text} ms, {digits(found.per_s)}/s"),
    ]
    if has_bar:
        ratio = times.p999_ms / times.p50_ms
        lines.append(
            Line(
                f"{what}: p99.9 of the median of {times.num:,}",
                f"{ratio * 100:.2f} %",
                f"<= {MAX_TAIL * 100:.0f} %",
                ratio <= MAX_TAIL,
            )
        )
    return lines


class _Resident:
    """So many engines with weights, side by side from the first page on."""

    def __init__(self, engines: Sequence[CheckedEngine]) -> None:
        self._engines = engines

    def __enter__(self) -> None:
        begin = 0
        for engine in self._engines:
            engine.session.load(range(begin, begin + engine.session.num_pages))
            begin += engine.session.num_pages

    def __exit__(self, *_: object) -> None:
        for engine in self._engines:
            engine.session.evict()


def _one_at_a_time(engine: CheckedEngine, num_runs: int) -> Spread:
    for _ in range(NUM_WARM):
        engine.run()
    return spread([engine.run() for _ in range(num_runs)])
