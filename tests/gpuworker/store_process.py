"""A process that keeps weights in a shared store, as a worker does: `... store_process DESCRIPTOR`.

Does what its standard input says, a line each, and answers with a line each.
"""

import sys
import time
import zlib
from typing import Any

import numpy as np

from gpuworker.devices.host_store import HostStore
from gpuworker.devices.pages import Bytes


class Unpinned:
    """Memory that no device copies from by itself."""

    def unpin(self, memory: Bytes) -> None:
        pass

    def pin(self, memory: Bytes) -> None:
        pass


class Endless:
    """Weights of which never more than the first half is written."""

    def __init__(self, num_bytes: int) -> None:
        self.nbytes = num_bytes

    def __array__(self, *_: object, **__: object) -> Bytes:
        print("writing", flush=True)
        time.sleep(3600)
        raise AssertionError("outlived its test")


def content(seed: int, num_bytes: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8)


def main(descriptor: int) -> None:
    store = HostStore(Unpinned(), descriptor)
    kept: dict[str, Bytes] = {}
    for line in sys.stdin:
        match line.split():
            case ["keep", name, seed, num_bytes]:
                kept[name] = store.keep(name, content(int(seed), int(num_bytes)))
                answer = "kept"
            case ["keep-endless", name, num_bytes]:
                endless: Any = Endless(int(num_bytes))
                store.keep(name, endless)
                answer = "kept"
            case ["flip", name]:
                kept[name][0] ^= 255
                answer = "flipped"
            case ["sum", name]:
                answer = str(zlib.crc32(kept[name]))
            case words:
                raise AssertionError(words)
        print(answer, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
