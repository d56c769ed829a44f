"""Weights in pinned memory of the host, from where a LOAD copies them: one copy for all GPUs.

Owns that memory. The workers of a machine with several GPUs share one memfd, made by the process
that started them: whoever has read a model's weights back first writes them there, the others
compare theirs and use the same bytes. A worker on its own keeps them in memory of its own.
"""

import fcntl
import logging
import mmap
import os
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from gpuworker.devices.host import DeviceError, memory_available_bytes
from gpuworker.devices.pages import Bytes

_log = logging.getLogger("gpuworker")

_ALIGNMENT = 4096  # a page of the host: what is pinned is whole pages
_LENGTH_BYTES = 8


class Pinning(Protocol):
    """What the store needs of a device's context."""

    def pin(self, memory: Bytes) -> None: ...
    def unpin(self, memory: Bytes) -> None: ...


class _Place(msgspec.Struct, frozen=True):
    """`flag` is the offset of the byte that says whether the weights are there."""

    flag: int
    offset: int
    num_bytes: int


class HostStore:
    """`shared` is what `share` returned in the process that started this one. Raises DeviceError
    for a descriptor that is no store.
    """

    def __init__(self, pinning: Pinning, shared: int | None = None) -> None:
        self._pinning = pinning
        self._own: dict[str, Bytes] = {}
        self._shared = None if shared is None else _Shared(shared, pinning)

    def keep(self, name: str, content: Bytes) -> Bytes:
        """These bytes, pinned, for as long as the store lives. Raises MemoryError, and others may
        still be kept then.
        """
        if self._shared is not None:
            kept = self._shared.keep(name, content)
            if kept is not None:
                return kept
        # Memory of the system, pinned: it can be given back, and by any thread.
        memory = np.frombuffer(mmap.mmap(-1, _whole(content.nbytes)), np.uint8)
        self._pinning.pin(memory)
        own = memory[: content.nbytes]
        own[:] = content
        self._own[name] = memory
        return own

    def drop(self, name: str) -> int:
        """Give back what is kept under the name; nobody copies from it any more. Returns how many
        bytes: none of what workers share, which another may need.
        """
        memory = self._own.pop(name, None)
        if memory is None:
            return 0
        self._pinning.unpin(memory)
        return memory.nbytes


class _Shared:
    def __init__(self, descriptor: int, pinning: Pinning) -> None:
        self._descriptor = descriptor
        self._pinning = pinning
        # All and only offsets of places that are pinned: each model's own, so that pinned memory
        # which runs out costs the model that comes last, and not the worker.
        self._pinned: set[int] = set()
        try:
            self._memory = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
            length = int.from_bytes(self._memory[:_LENGTH_BYTES].tobytes(), "little")
            index = self._memory[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes()
            self._places = msgspec.json.decode(index, type=dict[str, _Place])
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise DeviceError(f"descriptor {descriptor} is no store of weights: {error}") from error

    def keep(self, name: str, content: Bytes) -> Bytes | None:
        """None where there is no place for them, or another worker has other bytes. Raises
        MemoryError.
        """
        place = self._places.get(name)
        if place is None or place.num_bytes != content.nbytes:
            return None
        view: Bytes = self._memory[place.offset : place.offset + place.num_bytes]
        with _Lock(self._descriptor, place.flag):
            if not self._memory[place.flag]:
                view[:] = content
                self._memory[place.flag] = 1
        if np.array_equal(view, content):
            self._pin(place)
            return view
        _log.warning("%s: its weights differ from another GPU's, and are kept apart", name)
        return None

    def _pin(self, place: _Place) -> None:
        if place.offset not in self._pinned:
            self._pinning.pin(self._memory[place.offset : place.offset + _whole(place.num_bytes)])
            self._pinned.add(place.offset)


class _Lock(NamedTuple):
    """Of one byte of a file, against other processes; the kernel frees a dead one's."""

    descriptor: int
    offset: int

    def __enter__(self) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, self.offset)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, self.offset)


def share(sizes: Mapping[str, int]) -> int:
    """A descriptor of memory for so many bytes of each model, to be inherited by workers.

    Raises DeviceError where there is not that much memory.
    """
    num_head = _whole(64 * 1024 + 256 * len(sizes))
    places: dict[str, _Place] = {}
    offset = num_head
    for number, (name, num_bytes) in enumerate(sizes.items()):
        places[name] = _Place(num_head - 1 - number, offset, num_bytes)
        offset += _whole(num_bytes)
    index = msgspec.json.encode(places)
    if _LENGTH_BYTES + len(index) + len(sizes) > num_head:
        raise DeviceError(f"{len(sizes)} models' names do not fit into {num_head} bytes")
    available = memory_available_bytes()
    if offset > available:  # asked for all the same, the kernel would kill processes to find it
        raise DeviceError(
            f"{offset >> 20} MiB for the weights of all models: {available >> 20} MiB are available"
        )
    descriptor = os.memfd_create("weights-store", 0)  # inherited: without MFD_CLOEXEC
    try:
        os.posix_fallocate(descriptor, 0, offset)
    except OSError as error:
        os.close(descriptor)
        raise DeviceError(f"{offset >> 20} MiB for the weights of all models: {error}") from error
    os.pwrite(descriptor, len(index).to_bytes(_LENGTH_BYTES, "little") + index, 0)
    os.set_inheritable(descriptor, True)
    return descriptor


def _whole(num_bytes: int) -> int:
    """At least one page of the host, since none of two models may be the same."""
    return -(-max(1, num_bytes) // _ALIGNMENT) * _ALIGNMENT
