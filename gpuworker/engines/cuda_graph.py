"""What a stream was told, recorded once and launched as one: the CPU's part of an execution.

Owns graphs through cuda-bindings; pycuda has none.
"""

import contextlib
from collections.abc import Iterator

from cuda.bindings import driver

from gpuworker.devices.cuda_memory import CudaError, call


class CudaGraph:
    """Launching it does what was enqueued while it was recorded, with the same addresses."""

    def __init__(self, executable: driver.CUgraphExec) -> None:
        self._executable = executable

    def launch(self, stream: int) -> None:
        call(driver.cuGraphLaunch, self._executable, stream)

    def close(self) -> None:
        call(driver.cuGraphExecDestroy, self._executable)


class Recording:
    """`graph` is what was recorded, None where it could not be (`reason` says why).

    Whoever enqueues sets `reason` where he was refused: half of an execution is not recorded.
    """

    def __init__(self) -> None:
        self.graph: CudaGraph | None = None
        self.reason = ""


@contextlib.contextmanager
def recording(stream: int) -> Iterator[Recording]:
    """Records what this thread enqueues on the stream within, which then does not happen."""
    recorded = Recording()
    call(
        driver.cuStreamBeginCapture,
        stream,
        driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    )
    try:
        yield recorded
    finally:
        # Also where something was enqueued that cannot be recorded: the stream must end it.
        try:
            graph = call(driver.cuStreamEndCapture, stream)
        except CudaError as error:
            recorded.reason = recorded.reason or str(error)
        else:
            _instantiate(graph, recorded)


def _instantiate(graph: driver.CUgraph, recorded: Recording) -> None:
    try:
        _code, _nodes, num_nodes = driver.cuGraphGetNodes(graph)
        if not recorded.reason and not num_nodes:
            recorded.reason = "nothing was enqueued"  # and replaying it would answer with the past
        if not recorded.reason:
            recorded.graph = CudaGraph(call(driver.cuGraphInstantiate, graph, 0))
    except CudaError as error:
        recorded.reason = str(error)
    finally:
        call(driver.cuGraphDestroy, graph)
