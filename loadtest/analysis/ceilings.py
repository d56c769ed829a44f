"""What this machine can do at the most: FLOP/s and bytes/s, measured.

Owns the two ceilings of a roofline (Williams et al., CACM 2009) for a number of threads. FLOP/s are
those of large matrix products by ONNX Runtime, which is what executes models here: no operator of
it is expected to be faster. Bytes/s are those of plain copies and reads, once of arrays far larger
than any cache and once of arrays that fit into a core's own.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

# In seconds: the best of what fits is taken, since a ceiling is what was reached undisturbed.
MEASURE_S = 0.6
PRODUCT_SIZES = (512, 1024, 1536)
MEMORY_BYTES = 256 << 20  # an array far beyond a last-level cache, shared among the threads
CACHE_BYTES = 128 << 10  # both arrays of a copy fit into 512 KiB, what a core has of its own

Clock = Callable[[], int]


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    threads: int
    flops_per_s: float
    memory_bytes_per_s: float
    cache_bytes_per_s: float | None = None

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on memory is no longer what limits."""
        return self.flops_per_s / self.memory_bytes_per_s

    def roof(self, intensity: float) -> float:
        """FLOP/s that can be reached at so many FLOPs per byte from memory."""
        return min(self.flops_per_s, intensity * self.memory_bytes_per_s)

    def least_s(self, flops: float, moved_bytes: float) -> float:
        """No execution takes less."""
        return max(flops / self.flops_per_s, moved_bytes / self.memory_bytes_per_s)


def measure(
    *,
    threads: int,
    device: str,
    clock: Clock = time.perf_counter_ns,
    measure_s: float = MEASURE_S,
    on_step: Callable[[str], None] = lambda _: None,
) -> Ceilings:
    """Measure this machine with so many threads; some seconds. `on_step` hears what comes next."""
    on_step("matrix products")
    flops_per_s = _flops_per_s(threads, clock, measure_s)
    on_step("memory")
    memory = _bytes_per_s(MEMORY_BYTES, threads, clock, measure_s)
    on_step("cache")
    cache = _bytes_per_s(CACHE_BYTES * threads, threads, clock, measure_s, rounds=64)
    return Ceilings(
        device=device,
        threads=threads,
        flops_per_s=flops_per_s,
        memory_bytes_per_s=memory,
        cache_bytes_per_s=max(memory, cache),
    )


def _flops_per_s(threads: int, clock: Clock, measure_s: float) -> float:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    best = 0.0
    for size in PRODUCT_SIZES:
        weights = np.full((size, size), 0.01, np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"x": weights}
        fastest_ns = _fastest_ns(lambda: session.run(None, feeds), clock, measure_s / 3)  # noqa: B023
        best = max(best, 2 * size**3 / fastest_ns * 1e9)
    return best


def _bytes_per_s(
    total_bytes: int, threads: int, clock: Clock, measure_s: float, rounds: int = 1
) -> float:
    """The best of a copy (read and written bytes counted) and of a read; each thread its part."""
    count = total_bytes // 4 // threads
    sources = [np.full(count, 0.5, np.float32) for _ in range(threads)]
    targets = [np.zeros(count, np.float32) for _ in range(threads)]

    def copy(index: int) -> None:
        for _ in range(rounds):
            np.copyto(targets[index], sources[index])

    def read(index: int) -> None:
        for _ in range(rounds):
            np.maximum.reduce(sources[index])

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for work, moved in ((copy, 2 * 4 * count), (read, 4 * count)):
            fastest_ns = _fastest_ns(
                lambda: list(pool.map(work, range(threads))),  # noqa: B023
                clock,
                measure_s / 2,
            )
            best = max(best, moved * threads * rounds / fastest_ns * 1e9)
    return best


def _fastest_ns(work: Callable[[], object], clock: Clock, measure_s: float) -> int:
    """Of at least three calls, and of as many as fit into the time."""
    work()
    end_ns = clock() + int(measure_s * 1e9)
    fastest_ns, calls = 0, 0
    while calls < 3 or clock() < end_ns:
        begin_ns = clock()
        work()
        took_ns = max(1, clock() - begin_ns)
        fastest_ns = min(fastest_ns or took_ns, took_ns)
        calls += 1
    return fastest_ns
