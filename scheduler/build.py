"""Which build of the core this is: compiled by mypyc (hatch_build.py), or plain Python."""

from typing import Final

IS_COMPILED: Final = not __file__.endswith(".py")


def describe() -> str:
    return "compiled core" if IS_COMPILED else "pure Python core"
