"""Processes that end with the one that started them, however that ends.

Owns the kernel's word for it. A server or a client that nobody knows of any more would go on beside
whatever is measured next on its core.
"""

import ctypes
import shutil
import signal
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """This process gets the signal when its parent is gone, also by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """The command, which then gets SIGTERM. As it is where util-linux has no setpriv."""
    setpriv = shutil.which("setpriv")
    return list(command) if setpriv is None else [setpriv, "--pdeathsig", "TERM", *command]
