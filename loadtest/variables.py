"""`${variable}` in files of scenarios and jobs: where they stand, how they are filled in.

Owns the words alone: nothing is read and nothing decided.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NoReturn

Value = str | int | float | bool  # of a variable
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def variables_in(tree: Any) -> Iterator[str]:
    """The names of all variables of a tree of mappings, lists and scalars."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from variables_in(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from variables_in(value)
    elif isinstance(tree, str):
        yield from _VARIABLE.findall(tree)


def filled(
    tree: Any,
    values: Mapping[str, Value],
    where: str,
    refuse: Callable[[str, str, str], NoReturn],
) -> Any:
    """The tree with every variable replaced; one alone keeps the value's own type. `refuse` gets
    the place, the name and the text of a variable that has no value.
    """
    if isinstance(tree, dict):
        return {
            k: filled(v, values, f"{where}.{k}".removeprefix("."), refuse) for k, v in tree.items()
        }
    if isinstance(tree, list):
        return [filled(v, values, f"{where}[{i}]", refuse) for i, v in enumerate(tree)]
    if not isinstance(tree, str):
        return tree
    for variable in _VARIABLE.findall(tree):
        if variable not in values:
            refuse(where, variable, tree)
    if alone := _VARIABLE.fullmatch(tree):
        return values[alone[1]]
    return _VARIABLE.sub(lambda found: str(values[found[1]]), tree)


def combinations(variables: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every combination of the variables' values, the last variable fastest."""
    for values in product(*variables.values()):
        yield dict(zip(variables, values, strict=True))
