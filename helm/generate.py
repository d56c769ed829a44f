"""Writes what of the chart follows from something else: `python helm/generate.py`.

README.md from values.yaml and its comments, values.schema.json from values_schema.py and the
gateway's own settings. tests/helm keeps both in step.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helm.values_schema import values_schema

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "remontoir"
MARK = "# -- "

HEAD = """\
# Remontoir's chart

A gateway that keeps time, and one worker for each GPU, or on CPUs. How to build the images,
install, size, upgrade and mend it: [docs/kubernetes.md](../../docs/kubernetes.md). Made by
`python helm/generate.py` from values.yaml; change that.

```
helm install remontoir helm/remontoir --set image.repository=REGISTRY/remontoir \\
    --set models.type=existingClaim --set models.existingClaim.name=models
helm test remontoir --logs
```

API keys and CURVE keys are on and made once; everything else that is optional is off. Unknown keys
and values of a wrong kind are refused by name (values.schema.json), so are values that do not fit
together.

| value | default | |
|---|---|---|
"""


class Value(NamedTuple):
    path: str
    default: object
    description: str


def main() -> int:
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


def outputs() -> dict[Path, str]:
    """What each file should hold."""
    schema = json.dumps(values_schema(), indent=1) + "\n"
    return {CHART / "values.schema.json": schema, CHART / "README.md": readme()}


def readme() -> str:
    return HEAD + "".join(
        f"| `{value.path}` | {_shown(value.default)} | {value.description} |\n"
        for value in documented()
    )


def documented() -> list[Value]:
    """Every value that a comment describes, in the order of the file."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    return list(_described(node, text.splitlines(), ""))


def _described(node: yaml.MappingNode, lines: list[str], above: str) -> Iterator[Value]:
    for key, value in node.value:
        path = f"{above}{key.value}"
        description = _comment_above(lines, key.start_mark.line)
        if description is not None:
            yield Value(path, yaml.safe_load(yaml.serialize(value)), description)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _described(value, lines, f"{path}.")
        else:
            raise ValueError(f"values.yaml: {path} has no comment that begins with {MARK!r}")


def _comment_above(lines: list[str], line: int) -> str | None:
    """The lines of comment right above, from the one with the mark on."""
    comment: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        text = lines[line].strip()
        if text.startswith(MARK):
            return " ".join([text.removeprefix(MARK), *reversed(comment)])
        comment.append(text.removeprefix("#").strip())
    return None


def _shown(default: object) -> str:
    if default in ("", None, [], {}):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    sys.exit(main())
