"""The physical limit of a LOAD: the same bytes, copied by memmove, on the same cores.

`python -m loadtest.memmove BYTES SOURCES DESTINATIONS` copies from one of so many buffers to one of
so many others for every line `SOURCE DESTINATION` on stdin, and prints the nanoseconds it took.
As with weights, what is copied was touched long ago: the buffers together exceed any cache.
"""

import ctypes
import sys
import time

import numpy as np


def main() -> None:
    num_bytes, num_sources, num_destinations = map(int, sys.argv[1:4])
    sources = [np.full(num_bytes, index % 251, np.uint8) for index in range(num_sources)]
    destinations = [np.zeros(num_bytes, np.uint8) for _ in range(num_destinations)]
    print("ready", flush=True)
    for line in sys.stdin:
        source, destination = map(int, line.split())
        to, from_ = destinations[destination].ctypes.data, sources[source].ctypes.data
        begin_ns = time.monotonic_ns()
        ctypes.memmove(to, from_, num_bytes)
        duration_ns = time.monotonic_ns() - begin_ns
        print(duration_ns, flush=True)


if __name__ == "__main__":
    main()
