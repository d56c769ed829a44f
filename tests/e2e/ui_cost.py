"""What the live page costs the gateway: `python tests/e2e/ui_cost.py`, on a quiet machine.

Per request, in one process with stand-in workers; and of 1,000 models on 64 devices under load, the
CPU time of the gateway with no page, one and 200 open, with how long the event loop was held.
"""

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.ui import stage
from tests.gateway.doubles import model_spec
from tests.gateway.live_stage import LiveStage

REQUESTS = 10_000
ROUNDS = 7
SECONDS = 10


def main() -> None:
    took_us: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for has_page in (False, True):
            took_us[has_page].append(per_request_us(has_page))
    print(
        f"per request, submit to answer, the best of {ROUNDS}:"
        f" {min(took_us[False]):.1f} us with no page, {min(took_us[True]):.1f} us with one open"
    )
    asyncio.run(sampling())
    with stage() as url:
        port = int(url.rpartition(":")[2])
        pid = _child()
        for num_pages in (0, 1, 200, 0):
            share, frames, num_bytes = asyncio.run(reading(port, pid, num_pages))
            print(
                f"{num_pages} pages: {100 * share:.1f} % of a core in the gateway, 300 requests/s;"
                f" {frames} frames, {num_bytes / max(1, num_pages) / SECONDS / 1000:.0f} kB/s each"
            )


def per_request_us(has_page: bool) -> float:
    """Of the dispatcher, the scheduler and the metrics, one request after another."""
    one = LiveStage()
    one.join("w1", resident=("resnet",))
    if has_page:
        one.dispatcher.add_observer(one.watch)
    begin_ns = time.perf_counter_ns()
    for _ in range(REQUESTS):
        one.ask("a")
        one.finish(took_ms=1)
        one.link.sent.clear()
        one.answers.outcomes.clear()
    return (time.perf_counter_ns() - begin_ns) / REQUESTS / 1000


async def sampling() -> None:
    """How long one sample of 1,000 models on 64 devices takes, and its longest piece."""
    one = LiveStage(*(model_spec(f"m{number}") for number in range(1000)))
    for number in range(64):
        one.join(f"w{number}", resident=tuple(f"m{(number + i) % 1000}" for i in range(8)))
    for name in one.catalog:
        one.metrics.of_model(name).outcomes["served", ""] = 1
        one.metrics.of_model(name).outcomes["rejected", "slo_infeasible_now"] = 1
    one.sampler.begin()
    for name, make in (
        ("snapshot", lambda: one.sampler.snapshot(phase="serving")),
        ("frame", one.sampler.frame),
    ):
        took_ms, longest_ms = [], []
        for _ in range(ROUNDS):
            begin_ns = last_ns = time.perf_counter_ns()
            making = asyncio.ensure_future(make())
            longest_ns = 0
            while not making.done():
                await asyncio.sleep(0)
                now = time.perf_counter_ns()
                longest_ns, last_ns = max(longest_ns, now - last_ns), now
            took_ms.append((last_ns - begin_ns) / 1e6)
            longest_ms.append(longest_ns / 1e6)
        print(
            f"{name}: {statistics.median(took_ms):.1f} ms,"
            f" its longest piece {statistics.median(longest_ms):.2f} ms (medians of {ROUNDS})"
        )


async def reading(port: int, pid: int, num_pages: int) -> tuple[float, int, int]:
    """Share of a core, frames made, bytes read by all, over SECONDS."""
    readers = []
    for _ in range(num_pages):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /ui/events HTTP/1.1\r\nhost: x\r\n\r\n")
        readers.append((reader, writer))
    got = {"bytes": 0, "frames": 0}

    async def read(reader: asyncio.StreamReader, is_first: bool) -> None:
        while piece := await reader.read(1 << 16):
            got["bytes"] += len(piece)
            got["frames"] += is_first and piece.count(b"event: frame")

    tasks = [asyncio.ensure_future(read(r, n == 0)) for n, (r, _) in enumerate(readers)]
    await asyncio.sleep(3)
    before, got["bytes"], got["frames"] = _cpu_s(pid), 0, 0
    await asyncio.sleep(SECONDS)
    share = (_cpu_s(pid) - before) / SECONDS
    told = got["frames"], got["bytes"]
    for task in tasks:
        task.cancel()
    for _, writer in readers:
        writer.close()
    return share, *told


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _child() -> int:
    """What `stage` has started."""
    [child] = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return int(child)


if __name__ == "__main__":
    main()
