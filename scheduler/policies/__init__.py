"""The policies: small deterministic functions that read the state and return a decision.

A policy is a named set of strategies (policies/protocols.py): `remontoir.py` and its neighbours are
the sets, the folders hold the strategies by seam. Chosen by a text: a name, or a name with options,
`clockwork:schedule_ahead_ms=5,deadline_floor`.
"""

from collections.abc import Mapping
from typing import cast

import msgspec

from scheduler.policies.clipper import Clipper
from scheduler.policies.clockwork import Clockwork
from scheduler.policies.edf import Edf
from scheduler.policies.fifo import Fifo
from scheduler.policies.nexus import Nexus
from scheduler.policies.options import in_words, is_value
from scheduler.policies.protocols import (
    AdmissionPolicy,
    BatchingPolicy,
    Policy,
    PolicySet,
    ResidencyPolicy,
    ScheduleAhead,
)
from scheduler.policies.remontoir import Remontoir
from scheduler.policies.symphony import Symphony
from scheduler.policies.triton import Triton

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

POLICIES: Mapping[str, type[PolicySet]] = {
    "remontoir": Remontoir,
    "clockwork": Clockwork,
    "clipper": Clipper,
    "symphony": Symphony,
    "nexus": Nexus,
    "triton": Triton,
    "edf": Edf,
    "fifo": Fifo,
}


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
