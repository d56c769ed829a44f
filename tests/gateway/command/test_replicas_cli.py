"""`remontoir replicas`, as a user calls it."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.command.command_error import CommandError
from gateway.command.replicas_cli import app

TWO = "g0=http://a:8000,g1=http://b:8000"
MODELS = [f"m{number}" for number in range(40)]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["--replicas", TWO, *arguments])


def test_the_table_counts_what_each_owns_and_stands_in_for(tmp_path: Path) -> None:
    for name in (*MODELS, ".git"):
        (tmp_path / name).mkdir()
    told = call("--models", str(tmp_path)).output.split("\n")
    rows = [line.replace("│", " ").split() for line in told if " g0 " in line or " g1 " in line]
    assert {row[0] for row in rows} == {"g0", "g1"}
    assert sum(int(row[2]) for row in rows) == 40
    for row in rows:
        assert int(row[2]) + int(row[3]) == 40  # of two, each has all


def test_what_another_list_moves_is_its_newcomers(tmp_path: Path) -> None:
    out = call(*MODELS, "--after", f"{TWO},g2=http://c:8000").output
    (said,) = [line for line in out.split("\n") if "move" in line]
    assert 5 < int(said.split()[2]) < 22  # a third of 40


def test_json_says_the_order_and_envoy_gets_a_route_for_each() -> None:
    holders = json.loads(call("m1", "m2", "--format", "json").output)
    assert {tuple(sorted(of)) for of in holders.values()} == {("g0", "g1")}
    routes = json.loads(call("m1", "--format", "envoy").output)["routes"]
    header = {"name": "x-remontoir-model", "string_match": {"exact": "m1"}}
    owner = {"cluster": holders["m1"][0]}
    assert routes == [
        {"match": {"prefix": "/", "headers": [header]}, "route": owner},
        {"match": {"path_separated_prefix": "/v2/models/m1"}, "route": owner},
        {"match": {"prefix": "/"}, "route": {"cluster": "remontoir"}},
    ]


def test_the_chart_gets_the_models_of_each_owner() -> None:
    holders = json.loads(call(*MODELS, "--format", "json").output)
    told = yaml.safe_load(call(*MODELS, "--format", "helm").stdout)
    owners = told["httpRoute"]["owners"]
    assert sorted(owners) == ["g0", "g1"]
    for owner, models in owners.items():
        assert models == sorted(name for name in MODELS if holders[name][0] == owner)


def test_a_model_that_no_path_can_name_gets_no_route_and_is_said() -> None:
    called = call("m 1", "m2", "--format", "helm")
    [models] = yaml.safe_load(called.stdout)["httpRoute"]["owners"].values()
    assert models == ["m2"]
    assert "'m 1' is left out" in called.stderr


def test_a_group_is_listed_and_its_models_are_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    members = ", ".join(MODELS[:9])
    file.write_text(f"groups: {{task: {{members: [{members}]}}}}")
    holders = json.loads(call(*MODELS, "--groups", str(file), "--format", "json").output)
    assert list(holders) == [*MODELS, "task"]
    assert {tuple(holders[name]) for name in MODELS[:9]} == {tuple(holders["task"])}
    assert {tuple(holders[name]) for name in MODELS} == {("g0", "g1"), ("g1", "g0")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which models?"),
        (["--models", "/nowhere"], "--models /nowhere: no such directory"),
        (["m", "--groups", "/nowhere"], "groups file /nowhere: No such file"),
        (["m", "--after", "g0"], "--after: 'g0' is not NAME=http://HOST:PORT"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], message: str) -> None:
    failed = call(*arguments).exception
    assert isinstance(failed, CommandError)
    assert message in str(failed)
