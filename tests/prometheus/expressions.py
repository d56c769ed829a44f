"""What dashboards and alert rules ask of Prometheus, as texts that it can be asked."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[2] / "helm" / "remontoir"
RULES = CHART / "alerts" / "remontoir.rules.yaml"
RULES_TEST = Path(__file__).parent / "rules_test.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))

_METRIC = re.compile(r"\b(?:remontoir|process)_\w+\b")
_SELECTOR = re.compile(r"\b((?:remontoir|process)_\w+)\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Expression(NamedTuple):
    where: str  # a file and a panel or a rule
    text: str

    @property
    def metrics(self) -> set[str]:
        return set(_METRIC.findall(self.text))

    def selectors(self) -> Iterator[tuple[str, set[str]]]:
        """Metric and the labels it is chosen by."""
        for metric, matchers in _SELECTOR.findall(self.text):
            yield metric, set(_LABEL.findall(matchers))


def dashboard(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return read


def of_dashboards() -> Iterator[Expression]:
    for file in DASHBOARDS:
        read = dashboard(file)
        for panel in read["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(f"{file.name}: {panel['title']}", target["expr"])
        for variable in read["templating"]["list"]:
            if variable["type"] == "query":
                metric = variable["definition"].removeprefix("label_values(").rpartition(",")[0]
                yield Expression(f"{file.name}: variable {variable['name']}", metric)


def of_rules() -> Iterator[Expression]:
    rules = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield Expression(f"{RULES.name}: {rule.get('alert') or rule['record']}", rule["expr"])


def filled_in(expression: Expression, variables: Mapping[str, str]) -> str:
    """With Grafana's variables replaced, as Grafana does."""
    text = expression.text
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    assert "$" not in text, f"{expression.where}: a variable is left in {text}"
    return text
