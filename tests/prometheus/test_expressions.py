"""Dashboards, alert rules and docs/metrics.md name what is on the metrics page, and only that."""

import re
from pathlib import Path

import pytest
import yaml

from tests.gateway.full_page import Family, families, full_page
from tests.prometheus.expressions import (
    DASHBOARDS,
    RULES,
    RULES_TEST,
    Expression,
    dashboard,
    filled_in,
    of_dashboards,
    of_rules,
)

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
# What Prometheus adds to every series.
OF_THE_TARGET = {"job", "instance"}
FAMILIES = families(full_page())
EXPRESSIONS = [*of_dashboards(), *of_rules()]


def family_of(metric: str) -> Family | None:
    for suffix in ("", "_bucket", "_count", "_sum"):
        found = FAMILIES.get(metric.removesuffix(suffix))
        if found is not None and (suffix == "" or found.kind == "histogram"):
            return found
    return None


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda e: e.where)
def test_every_metric_and_label_of_an_expression_exists(expression: Expression) -> None:
    for metric in expression.metrics:
        assert family_of(metric) is not None, f"no metric {metric}"
    for metric, labels in expression.selectors():
        family = family_of(metric)
        assert family is not None
        unknown = labels - family.labels - OF_THE_TARGET
        assert not unknown, f"{metric} has no label {unknown}"


def test_a_rate_is_taken_of_counters_only() -> None:
    for expression in EXPRESSIONS:
        for function, metric in re.findall(r"\b(rate|increase)\(([a-z]\w+)", expression.text):
            family = family_of(metric)
            assert family is not None
            assert family.kind in ("counter", "histogram"), f"{expression.where}: {function}"


def test_signed_histograms_have_no_sum_that_somebody_asks_for() -> None:
    for expression in EXPRESSIONS:
        assert "slack_seconds_sum" not in expression.text
        assert "prediction_error_seconds_sum" not in expression.text


def test_variables_of_dashboards_are_declared() -> None:
    for file in DASHBOARDS:
        names = {variable["name"] for variable in dashboard(file)["templating"]["list"]}
        declared = dict.fromkeys(names | {"__rate_interval"}, "x")
        for expression in of_dashboards():
            if expression.where.startswith(file.name):
                filled_in(expression, declared)


def test_dashboards_are_whole() -> None:
    uids = [dashboard(file)["uid"] for file in DASHBOARDS]
    assert len(uids) == len(set(uids)) == 3
    for file in DASHBOARDS:
        panels = dashboard(file)["panels"]
        ids = [panel["id"] for panel in panels]
        assert len(ids) == len(set(ids))
        places: set[tuple[int, int]] = set()
        for panel in panels:
            grid = panel["gridPos"]
            assert grid["x"] + grid["w"] <= 24
            cells = {
                (x, y)
                for x in range(grid["x"], grid["x"] + grid["w"])
                for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert not cells & places, f"{file.name}: {panel['title']} lies on another panel"
            places |= cells
            if panel["type"] != "row":
                assert panel["targets"]
                assert panel["datasource"]["uid"] == "${datasource}"


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    alerts = {
        rule["alert"]: rule
        for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    for rule in alerts.values():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
    tested = yaml.safe_load(RULES_TEST.read_text("utf-8"))["tests"]
    cases = [case for test in tested for case in test["alert_rule_test"]]
    for name in alerts:
        expected = [case["exp_alerts"] for case in cases if case["alertname"] == name]
        assert any(expected), f"{name} is never seen to fire"
        assert not all(expected), f"{name} is never seen to keep quiet"
    docs = DOCS.read_text("utf-8")
    assert set(re.findall(r"`(Remontoir[A-Z]\w+)`", docs)) == set(alerts)


def test_the_docs_list_every_metric_with_its_labels_and_no_other() -> None:
    rows = re.findall(
        r"^\| `((?:remontoir|process)_\w+)` \|([^|]*)\|", DOCS.read_text("utf-8"), re.M
    )
    assert len(rows) == len({name for name, _ in rows})
    assert {name for name, _ in rows} == set(FAMILIES)
    for name, labels in rows:
        told = set(re.findall(r"`(\w+)`", labels))
        assert told == FAMILIES[name].labels - {"le"}, f"labels of {name}"


def test_the_docs_list_tritons_names_and_no_other() -> None:
    with_triton = set(families(full_page(triton_metrics=True))) - set(FAMILIES)
    told = set(re.findall(r"`(nv_\w+)`", DOCS.read_text("utf-8")))
    assert told == with_triton
