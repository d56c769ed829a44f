"""One long day for the installed core: what it decided, and what that cost. For tests/e2e/wheel.py.

`python -m tests.e2e.day` prints one line of JSON: the hash of every decision, the microseconds per
request, and where the core was imported from.
"""

import hashlib
import json

from loadtest.scheduler_cost import BUSY, LIGHT, simulate
from scheduler import scheduler
from scheduler.events import Command, Event

VIRTUAL_S = 0.5


def main() -> None:
    decisions = hashlib.sha256()

    def note(now: int, event: Event, commands: list[Command]) -> None:
        decisions.update(repr((now, event, commands)).encode())

    noted = [simulate(size, virtual_s=VIRTUAL_S, seed=1, observer=note) for size in (*LIGHT, *BUSY)]
    # Timed apart: taking notes keeps everything alive and the caches full.
    runs = [simulate(size, virtual_s=VIRTUAL_S, seed=1, warmup_s=VIRTUAL_S / 2) for size in LIGHT]
    print(
        json.dumps(
            {
                "core": scheduler.__file__,
                "decisions": decisions.hexdigest(),
                "requests": sum(run.num_requests for run in noted),
                "us_per_request": sum(run.request_us for run in runs) / len(runs),
            }
        )
    )


if __name__ == "__main__":
    main()
