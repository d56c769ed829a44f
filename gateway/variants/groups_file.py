"""The groups file: models for one task under one name. YAML to GroupSpec.

It owns the words of the file and every complaint about it. It must never look at a model: whether
there is one of that name, and whether members agree, gateway/variants/groups.py finds out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from gateway.strict_yaml import StrictLoader

# Each is some lines of the metrics page, and each member a question to the scheduler per request.
MAX_GROUPS = 1000
MAX_MEMBERS = 16

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class GroupsError(ValueError):
    """A groups file that cannot be used. The message names the file, the group and the key."""


class MemberSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a group. `accuracy` in [0, 1] is the operator's, by whatever measure."""

    model: str
    accuracy: Share | None = None


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group. `members` are in order of preference: the most accurate first."""

    members: tuple[MemberSpec, ...]
    selection: Literal["best", "exp3"] = "best"
    eta: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.1  # 70 full losses from best to worst
    seed: int = 0  # any: it makes runs repeatable, and says nothing of quality
    default_slo_ms: Annotated[float, msgspec.Meta(gt=0, le=86_400_000)] | None = None
    # Time for somebody to look at an answer and click.
    feedback_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0


Groups = Mapping[str, GroupSpec]


def read_groups(file: Path) -> Groups:
    """By name, in the order of the file. Raises GroupsError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GroupsError(f"groups file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GroupsError(f"groups file {file} is not UTF-8: {error.reason}") from error
    return parse_groups(text, source=f"groups file {file}")


def parse_groups(text: str, *, source: str) -> Groups:
    """The same of its text. Raises GroupsError."""
    try:
        content = yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise GroupsError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or content.keys() != {"groups"}:
        raise GroupsError(f"{source}: expected one key at the top level, `groups:`")
    entries = content["groups"]
    if not isinstance(entries, dict) or not entries:
        raise GroupsError(f"{source}: `groups:` names none; expected NAME: and its settings")
    if len(entries) > MAX_GROUPS:
        raise GroupsError(f"{source}: {len(entries)} groups, the most is {MAX_GROUPS}")
    return {str(name): _spec(name, entry, source) for name, entry in entries.items()}


def members_of(groups: Groups) -> dict[str, tuple[str, ...]]:
    """Models by group, in order of preference."""
    return {name: tuple(m.model for m in spec.members) for name, spec in groups.items()}


def _spec(name: object, entry: Any, source: str) -> GroupSpec:
    where = f"{source}: group {name}"
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise GroupsError(
            f"{source}: group {name!r}: a name is a text without '/', not beginning with '.' "
            "(quote one of digits alone)"
        )
    if isinstance(entry, dict) and isinstance(entry.get("members"), list):
        members = [{"model": m} if isinstance(m, str) else m for m in entry["members"]]
        entry = {**entry, "members": members}
    try:
        spec = msgspec.convert(entry, GroupSpec)
    except msgspec.ValidationError as error:
        raise GroupsError(f"{where}: {error}") from None
    return msgspec.structs.replace(spec, members=_in_order(spec.members, where))


def _in_order(members: tuple[MemberSpec, ...], where: str) -> tuple[MemberSpec, ...]:
    names = [member.model for member in members]
    if not 2 <= len(members) <= MAX_MEMBERS:
        raise GroupsError(f"{where}: {len(members)} members, expected 2 to {MAX_MEMBERS}")
    if len(set(names)) != len(names):
        raise GroupsError(f"{where}: a member is there twice: {', '.join(names)}")
    known = [member.accuracy for member in members if member.accuracy is not None]
    if known and len(known) != len(members):
        absent = ", ".join(member.model for member in members if member.accuracy is None)
        raise GroupsError(
            f"{where}: no accuracy is given for {absent}; give it for all members, or for none "
            "and name the most accurate first"
        )
    if known:  # the order of the file where they are equal
        return tuple(sorted(members, key=lambda member: -(member.accuracy or 0.0)))
    return members
