"""Our own modules as programs of their own: a worker, a compile, a simulation.

Owns how they are started. They run the code that we run: Python would look into the current
directory first, which may be a checkout beside the installed product, or have a `scheduler` of its
own.
"""

import os
import sys


def program(module: str) -> list[str]:
    """The command that runs a module of ours, without its arguments."""
    sees_directory = os.getcwd() in sys.path  # as with `python -m gateway` in a checkout
    return [sys.executable, *([] if sees_directory else ["-P"]), "-m", module]


def given_flags(**values: object) -> list[str]:
    """Keyword arguments that are not None, as command-line flags."""
    given = {name: value for name, value in values.items() if value is not None}
    return [
        text
        for name, value in given.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
