"""Inputs on their way to a GPU and outputs on their way back, beside what executes meanwhile.

Owns the staging buffers. A slot is a batch's from its input phase to its output phase: pinned
memory of the host and device memory, in the layout of the arena in which engines execute, so that a
batch goes in and out with one copy each. Copies have streams of their own.
"""

import queue

import pycuda.driver as cuda

from gpuworker.devices.cuda_context import CudaContext
from gpuworker.devices.pages import Bytes


class IoSlot:
    """Raises MemoryError where the device or pinned memory is full."""

    def __init__(self, context: CudaContext, input_bytes: int, output_bytes: int) -> None:
        self.host_inputs: Bytes = context.pinned(input_bytes)
        self.host_outputs: Bytes = context.pinned(output_bytes)
        self._inputs = device_memory(input_bytes)
        self._outputs = device_memory(output_bytes)
        self.inputs, self.outputs = int(self._inputs), int(self._outputs)
        self.arrived, self.executed, self.left = (context.event() for _ in range(3))
        self.begin, self.end = context.event(), context.event()


class IoSlots:
    """`num_slots` batches can be between their phases at once; a further one waits for a slot."""

    def __init__(
        self, context: CudaContext, *, num_slots: int, input_bytes: int, output_bytes: int
    ) -> None:
        self._input_stream, self._output_stream = context.stream(), context.stream()
        self._free: queue.SimpleQueue[IoSlot] = queue.SimpleQueue()
        for _ in range(num_slots):
            self._free.put(IoSlot(context, input_bytes, output_bytes))

    def take(self) -> IoSlot:
        return self._free.get()

    def give_back(self, slot: IoSlot) -> None:
        self._free.put(slot)

    def send(self, slot: IoSlot, num_bytes: int) -> None:
        """Copy the inputs to the device; `slot.arrived` is when they are there."""
        if num_bytes:
            part = slot.host_inputs[:num_bytes]
            cuda.memcpy_htod_async(slot.inputs, part, self._input_stream)
        slot.arrived.record(self._input_stream)

    def fetch(self, slot: IoSlot, num_bytes: int) -> Bytes:
        """The outputs, in memory of their own: the slot's is the next batch's."""
        self._output_stream.wait_for_event(slot.executed)
        part = slot.host_outputs[:num_bytes]
        if num_bytes:
            cuda.memcpy_dtoh_async(part, slot.outputs, self._output_stream)
        slot.left.record(self._output_stream)
        slot.left.synchronize()
        return part.copy()


def device_memory(num_bytes: int) -> cuda.DeviceAllocation:
    """Raises MemoryError with the numbers."""
    try:
        return cuda.mem_alloc(max(1, num_bytes))
    except cuda.MemoryError as error:
        free, total = cuda.mem_get_info()
        raise MemoryError(
            f"{num_bytes >> 20} MiB of device memory: {free >> 20} of {total >> 20} MiB are free"
        ) from error
