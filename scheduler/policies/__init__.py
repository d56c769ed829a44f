"""The policies: small deterministic functions that read the state and return a decision.

A policy is a named set of strategies (policies/protocols.py): `remontoir.py` and its neighbours are
the sets, the folders hold the strategies by seam. Chosen by a text: a name, or a name with options,
`clockwork:schedule_ahead_ms=5,deadline_floor`.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import cast

import msgspec

from scheduler.policies.options import in_words, is_value
from scheduler.policies.protocols import (
    AdmissionPolicy,
    BatchingPolicy,
    Policy,
    PolicySet,
    ResidencyPolicy,
    ScheduleAhead,
)

__all__ = [
    "POLICIES",
    "AdmissionPolicy",
    "BatchingPolicy",
    "Policy",
    "PolicyError",
    "PolicySet",
    "ResidencyPolicy",
    "ScheduleAhead",
    "parse",
]


def sets_of(package: str, folders: Iterable[str]) -> dict[str, type[PolicySet]]:
    """The sets of a package by name, the default first: of each of its modules the class that is
    called as its file, `Fifo` of fifo.py. A module without one is no set.
    """
    names = [module.name for module in iter_modules(folders) if not module.ispkg]
    sets: dict[str, type[PolicySet]] = {}
    for name in sorted(names, key=lambda name: (name != "remontoir", name)):
        kind = getattr(import_module(f"{package}.{name}"), name.title().replace("_", ""), None)
        if kind is not None:
            sets[name] = kind
    return sets


POLICIES: Mapping[str, type[PolicySet]] = sets_of(__name__, __path__)


class PolicyError(ValueError):
    """A policy's text that cannot be used. The message names the part."""


def parse(text: str, *, schedule_ahead_ms: float | None = None) -> Policy:
    """The policy of a text, newly built. `schedule_ahead_ms` goes before the text's own.

    Raises PolicyError.
    """
    name, _, listed = text.partition(":")
    kind = POLICIES.get(name)
    if kind is None:
        raise PolicyError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}")
    options: dict[str, str] = {}
    for item in filter(None, listed.split(",")):
        key, separator, value = item.partition("=")
        options[key.strip()] = value.strip() if separator else "true"
    if schedule_ahead_ms is not None:
        options["schedule_ahead_ms"] = str(schedule_ahead_ms)
    fields = msgspec.structs.fields(cast(type[msgspec.Struct], kind))
    types = {field.name: field.type for field in fields}
    for key, value in options.items():
        if key not in types:
            raise PolicyError(f"policy {name} has no option {key!r}; it has {', '.join(types)}")
        if not is_value(value, types[key]):
            as_bare = " (which a bare option is)" if value == "true" else ""
            takes = f"{key} takes {in_words(types[key])}, not {value!r}{as_bare}"
            raise PolicyError(f"policy {name}: {takes}")
    return msgspec.convert(options, type=kind, strict=False).build()
