"""How the bound's inner loops become machine code.

Owns the decorator `compiled` and the place where its results are kept: the user's cache folder, not
an installed package's (only where there is no such folder, numba tries beside the source, as Python
does, and then goes without). Must never be imported before a bound is asked for: numba takes a
second to import.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The same function as machine code, compiled at its first call or taken from the cache."""
    try:
        return cast(_Function, numba.njit(cache=True)(function))
    except RuntimeError:  # no folder to cache in: compile anew in every process
        return cast(_Function, numba.njit(function))


def _use_own_cache() -> None:
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    setattr(numba.config, "CACHE_DIR", str(root / "remontoir" / "numba"))  # noqa: B010


_use_own_cache()
