"""Which keys a scenario may have where; what is said of one that is none, or is there twice.

Owns the words of both mistakes. Reads no file, and decides no value: a place is a path of keys like
`models[0].profile`, as msgspec writes it.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import msgspec.inspect
import yaml

CLOSE = 0.5  # of difflib's likeness: `rate` means `rate_per_s`, `gpus` nothing that there is
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def steps_of(where: str) -> list[str | int]:
    """`models[0].profile` → "models", 0, "profile"."""
    return [int(index) if index else key for key, index in _STEP.findall("." + where)]


def value_at(tree: Any, where: str) -> Any:
    """What stands at a path like `models[0].batch`, as far as it can be followed."""
    for step in steps_of(where):
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            break
    return tree


def no_key(key: str, value: object, known: list[str]) -> str:
    """What is said of a key that does not exist."""
    nearest = get_close_matches(key, known, 1, CLOSE)
    near = f", the nearest is {nearest[0]!r}" if nearest else ""
    return f"no key {key!r} ({value!r:.60}){near}; there are {', '.join(known)}"


def known_keys(kind: type, tree: Any, where: str) -> list[str]:
    """The keys that may stand at this place of a tree that should become a `kind`."""
    info = _fitting(msgspec.inspect.type_info(kind), tree)
    for step in steps_of(where):
        tree = tree[step]
        if isinstance(info, msgspec.inspect.StructType):
            [inner] = [field.type for field in info.fields if field.encode_name == step]
        else:
            assert isinstance(info, msgspec.inspect.VarTupleType)
            inner = info.item_type
        info = _fitting(inner, tree)
    assert isinstance(info, msgspec.inspect.StructType)
    tag = [] if info.tag_field is None else [info.tag_field]
    return [*tag, *(field.encode_name for field in info.fields)]


def keys_given_twice(node: yaml.Node | None, where: str = "") -> Iterator[str]:
    """YAML takes the last and says nothing; whoever wrote the first would wonder."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from keys_given_twice(item, f"{where}[{index}]")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            place = f"{where}.{key.value}".removeprefix(".")
            word, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if word in lines:
                yield f"{place} is given twice, in line {lines[word]} and in line {line}"
            lines[word] = line
            yield from keys_given_twice(value, place)


def _fitting(info: msgspec.inspect.Type, value: Any) -> msgspec.inspect.Type:
    """Of several kinds the one that the value is meant to be."""
    for one in info.types if isinstance(info, msgspec.inspect.UnionType) else ():
        if isinstance(one, msgspec.inspect.StructType) and isinstance(value, dict):
            if one.tag_field is None or value.get(one.tag_field) == one.tag:
                return one
        elif isinstance(one, msgspec.inspect.VarTupleType) and isinstance(value, list):
            return one
    return info
