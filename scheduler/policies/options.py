"""Options of a set as a user writes them: whether a text is a value of one, and what would be."""

from typing import Final

import msgspec
from msgspec import inspect

LIMITS: Final = {"ge": "at least", "gt": "more than", "le": "at most"}  # of msgspec.Meta


def is_value(text: str, kind: object) -> bool:
    """Whether the text can be read as the type of the option."""
    try:
        msgspec.convert(text, type=kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def in_words(kind: object) -> str:
    """What an option of this type takes: "a whole number of at least 1"."""
    return _in_words(inspect.type_info(kind))


def _in_words(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types):  # or None, which is said by leaving the option out
            return _in_words(types[0])
        case inspect.LiteralType(values):
            return " or ".join(map(str, values))
        case inspect.BoolType():
            return "true or false"
    what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    limits = [
        f"{words} {limit}"
        for name, words in LIMITS.items()
        if (limit := getattr(kind, name)) is not None
    ]
    return f"{what} of {' and '.join(limits)}" if limits else what
