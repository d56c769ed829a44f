"""SIGTERM for whoever is the first process of a container, before there is anything to end well."""

import signal
import sys

FIRST = 1


def end_on_sigterm(pid: int) -> None:
    """Until a command says what SIGTERM means to it. The kernel keeps signals that nobody handles
    from process 1: a pod that is told to go while we import would be waited for, its whole grace.
    """
    if pid == FIRST:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
