"""Versions: which version of each model serves, which are kept beside it, and what they are called.

It owns the two catalogues: what clients are shown, by the model's name, and what scheduler and
workers know, where a version that came while the gateway served is a model of its own (adr/0012).
Taking over is one assignment here. It must never tell anybody: gateway/versions/reloading.py does.
"""

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

import msgspec

from scheduler.spec import ModelSpec

# Why a model does not serve that an operator has taken out of service.
UNLOADED = "unloaded by an operator"


NONE_KEPT: Mapping[tuple[str, str], ModelSpec] = {}


class Problem(NamedTuple):
    """Why a version in the repository does not serve."""

    version: str
    reason: str


class Versions:
    """`serving` has what clients are shown, unavailable models too; `scheduled` what scheduler and
    workers were told, by its name there. Both may be changed by others, each spec as a whole.
    """

    def __init__(
        self,
        serving: MutableMapping[str, ModelSpec],
        scheduled: MutableMapping[str, ModelSpec],
    ) -> None:
        self.serving = serving
        self.scheduled = scheduled
        # All and only versions that clients may name beside the one that serves, by name and
        # version. Looked at by the hot path.
        self.kept: dict[tuple[str, str], ModelSpec] = {}
        self._before: dict[str, list[ModelSpec]] = {}  # those kept for rollback, the latest first
        self.problems: dict[str, Problem] = {}
        self.under_way: dict[str, str] = {}  # what is being done for a version to come, in words
        self._num_named: dict[str, int] = {}  # versions that were given a name, by that name

    def new_key(self, name: str, version: str) -> str:
        """What scheduler and workers will call a version: never what they know another by."""
        holder = self.scheduled.get(name)
        if holder is None or not is_scheduled(holder):
            return name  # nobody has it, or nobody ever served it
        base = f"{name}/{version}"
        number = self._num_named[base] = self._num_named.get(base, 0) + 1
        return base if number == 1 else f"{base}#{number}"

    def kept_of(self, name: str) -> list[ModelSpec]:
        """What a rollback goes back to first, and then the ones before."""
        return self._before.get(name, [])

    def with_content(self, name: str, content_hash: str) -> ModelSpec | None:
        """A kept version of this content."""
        for spec in self.kept_of(name):
            if spec.content_hash == content_hash:
                return spec
        return None

    def take_over(self, spec: ModelSpec) -> None:
        """From the next request on this serves, and the one before is kept, if it served."""
        name = spec.name
        old = self.serving.get(name)
        before = [kept for kept in self.kept_of(name) if kept.key != spec.key]
        if old is not None and old.key != spec.key and is_scheduled(old):
            before.insert(0, old)
        self.serving[name] = spec
        self._before[name] = before
        self._index(name)

    def drop_beyond(self, name: str, number: int) -> list[ModelSpec]:
        """Keeps so many; returns those that are kept no more."""
        before = self.kept_of(name)
        self._before[name] = before[:number]
        self._index(name)
        return before[number:]

    def _index(self, name: str) -> None:
        for key in [key for key in self.kept if key[0] == name]:
            del self.kept[key]
        for spec in reversed(self.kept_of(name)):  # of two contents under one number, the later
            if spec.version != self.serving[name].version:
                self.kept[name, spec.version] = spec


def versions_of(spec: ModelSpec, kept: Mapping[tuple[str, str], ModelSpec]) -> tuple[str, ...]:
    """All that clients may name, the one that serves first."""
    others = [version for name, version in kept if name == spec.name]
    return (spec.version, *reversed(others))


def is_scheduled(spec: ModelSpec) -> bool:
    """Whether the scheduler may serve it: else it is only shown, with its reason."""
    return spec.unavailable_reason is None


def shown_of(scheduled: ModelSpec) -> ModelSpec:
    """As clients know it."""
    name = scheduled.public_name
    if name == scheduled.name:
        return scheduled
    return msgspec.structs.replace(scheduled, name=name, scheduled_as=scheduled.name)


def scheduled_of(shown: ModelSpec) -> ModelSpec:
    """As scheduler and workers know it."""
    if not shown.scheduled_as:
        return shown
    return msgspec.structs.replace(shown, name=shown.scheduled_as, scheduled_as="")
