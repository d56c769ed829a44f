"""The pure Python core in a process whose installed core is compiled, to measure both.

A wheel with the compiled core has its sources beside it. Must be called before anything of
`scheduler` is imported, and so imports nothing itself.
"""

import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path


def use_pure_core() -> None:
    """From now on, modules in a folder `scheduler` are found as sources only."""
    loaded = [name for name in sys.modules if name.partition(".")[0] == "scheduler"]
    if loaded:
        raise RuntimeError(f"the core is chosen already: {', '.join(sorted(loaded))} are imported")
    sys.path_hooks.insert(0, _sources_of_the_core)
    sys.path_importer_cache.clear()


def _sources_of_the_core(path: str) -> FileFinder:
    if "scheduler" not in Path(path).parts:
        raise ImportError(f"{path} is not of the core")
    return FileFinder(path, (SourceFileLoader, SOURCE_SUFFIXES))
