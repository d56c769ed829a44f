"""What the gateway's process takes of the machine, under the names that all exporters use.

It reads /proc when the page is made and owns nothing. The workers are processes of their own: these
figures are the gateway's alone, which is one core at the most.
"""

import os
import resource
import time
from pathlib import Path

from gateway.metrics.text import family

_STATM, _FDS = Path("/proc/self/statm"), Path("/proc/self/fd")
_PAGE_BYTES = resource.getpagesize()
# When this was imported, which is within a second of the truth.
_STARTED_S = time.time()


def page() -> str:
    resident_bytes = int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    rows = (
        ("cpu_seconds_total", "counter", "CPU time, user and system.", time.process_time()),
        ("resident_memory_bytes", "gauge", "Memory in use, as RSS.", resident_bytes),
        ("start_time_seconds", "gauge", "When it started, since the epoch.", _STARTED_S),
        ("open_fds", "gauge", "Open files and sockets.", len(os.listdir(_FDS))),
        (
            "max_fds",
            "gauge",
            "Most that it may open.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
    )
    return "".join(
        family(name, kind, text, [("", value)], prefix="process_")
        for name, kind, text, value in rows
    )
