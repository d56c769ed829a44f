"""What has changed in the repository directory, and is complete: files that two looks saw alike.

It owns what was seen of each model's files, never what they say: that is for who compiles them. A
model is noticed by the version that would be served, the highest with a file in it, and by its
config.yaml. It must never take a half-copied file for a whole one while it is still written to;
what stalls for longer than between two looks does not compile, and is taken once it is complete.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIG_FILE = "config.yaml"

# Of one model's files: (path, bytes, time of change, inode), and so of its highest version. A file
# that is replaced by a rename has another inode, whatever its time says.
State = frozenset[tuple[str, int, int, int]]
NOTHING: State = frozenset()


class RepositoryWatch:
    """Before the first `look` every model is as it should be."""

    def __init__(self, known: Mapping[str, State]) -> None:
        # As each model was when it was last taken, or found wanting.
        self._known = dict(known)
        # All and only models that are otherwise, as the last look saw them.
        self._seen: dict[str, State] = {}

    def look(self, states: Mapping[str, State]) -> list[str]:
        """The models that are otherwise than when they were last taken, and that this look and the
        one before saw alike. They count as taken.
        """
        complete = []
        for name in sorted(states.keys() | self._known.keys()):
            state = states.get(name, NOTHING)
            if state == self._known.get(name, NOTHING):
                self._seen.pop(name, None)
            elif self._seen.get(name) == state:
                complete.append(name)
                self.take(name, state)
            else:
                self._seen[name] = state
        return complete

    def is_changed(self, name: str, state: State) -> bool:
        return state != self._known.get(name, NOTHING)

    def take(self, name: str, state: State) -> None:
        """Whatever comes of it: another state is the next to be taken."""
        self._seen.pop(name, None)
        self._known[name] = state


def states_of(models_dir: Path) -> dict[str, State]:
    """Of every model there is. Takes a moment per file: not for the event loop's thread."""
    states = {}
    with contextlib.suppress(OSError), os.scandir(models_dir) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                states[entry.name] = state_of(Path(entry.path))
    return states


def state_of(directory: Path) -> State:
    """Of one model; NOTHING for one without a version that has files."""
    for version in sorted(_versions(directory), key=int, reverse=True):
        files = frozenset(_files(directory / version))
        if files:
            return files | frozenset(_status(directory / CONFIG_FILE))
    return NOTHING


def _versions(directory: Path) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [e.name for e in entries if e.name.isascii() and e.name.isdigit() and e.is_dir()]
    return []


def _files(directory: Path) -> Iterator[tuple[str, int, int, int]]:
    for parent, _, names in os.walk(directory):
        for name in names:
            yield from _status(Path(parent, name))


def _status(path: Path) -> Iterator[tuple[str, int, int, int]]:
    with contextlib.suppress(OSError):  # gone since the directory was read, or never there
        status = path.stat()
        yield str(path), status.st_size, status.st_mtime_ns, status.st_ino
