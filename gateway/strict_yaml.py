"""YAML in which a key that is there twice is an error: the first would silently be lost.

It owns that rule alone.
"""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """For `yaml.load(text, Loader=StrictLoader)`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before merge keys (`<<`) are resolved: what comes by one may well be overridden.
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            raise yaml.constructor.ConstructorError(
                problem="a key is there twice in one mapping", problem_mark=node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping
