"""SCENARIO.yaml: what one experiment in virtual time consists of, checked before anything runs.

Owns the words of the file, their defaults and checks, and the product of variables, policies and
seeds. It builds nothing and runs nothing (loadtest/stage.py, loadtest/simulate.py). Every error
names the file, the key and the value. The format by example: loadtest/scenarios/example.yaml.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import msgspec
import yaml

from loadtest.scenario_keys import keys_given_twice, known_keys, no_key, value_at
from loadtest.scenario_setup import Crash, Setup, Stall
from loadtest.variables import Value as Value
from loadtest.variables import combinations, filled, variables_in
from loadtest.workloads import WorkloadEntry
from scheduler.policies import PolicyError
from scheduler.policies import parse as parse_policy

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<where>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"contains unknown field `(.*)`")
_Kind = TypeVar("_Kind")


class ScenarioError(ValueError):
    """A scenario file that cannot be used; the message names file, key and value."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a setup with its variables filled in, a policy, a seed.

    `values` are the variables that this run depends on; `duration_s` is the full one if asked.
    """

    scenario: str
    setup: Setup
    policy: str = "remontoir"
    seed: int = 1
    values: dict[str, Value] = {}
    duration_s: float

    @property
    def name(self) -> str:
        """For a table or a folder: `slo_ms=25,policy=fifo,seed=1`."""
        words = {**self.values, "policy": self.policy, "seed": self.seed}
        return ",".join(f"{key}={value}" for key, value in words.items())


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read: `expand` gives its runs."""

    name: str
    description: str
    path: str
    seeds: tuple[int, ...]
    policies: tuple[str, ...]
    variables: dict[str, tuple[Value, ...]]
    body: dict[str, Any]  # the rest of the file, variables not yet filled in

    def expand(
        self,
        *,
        policies: Sequence[str] = (),
        seeds: Sequence[int] = (),
        variables: Mapping[str, Sequence[Value]] | None = None,
        duration_s: float | None = None,
        is_full: bool = False,
    ) -> list[Case]:
        """Every combination of variables, policies and seeds; arguments go before the file's own.

        Combinations that differ only in variables that a policy's run does not depend on are one
        run. Raises ScenarioError.
        """
        chosen = {**self.variables, **{k: tuple(v) for k, v in (variables or {}).items()}}
        for variable in chosen.keys() - self.variables.keys():
            known = ", ".join(self.variables) or "none"
            raise ScenarioError(f"{self.path}: no variable {variable!r}; there are {known}")
        in_body = set(variables_in(self.body))
        cases: dict[tuple[object, ...], Case] = {}
        for policy_text in policies or self.policies:
            used = in_body | set(variables_in(policy_text))
            for values in combinations({k: v for k, v in chosen.items() if k in used}):
                policy = str(self._filled(policy_text, values, "policies"))
                setup = self._setup(values, duration_s=duration_s)
                try:
                    parse_policy(policy)
                except PolicyError as error:
                    where = "" if policies else f"{self.path}: policies: "
                    raise ScenarioError(f"{where}{error}") from error
                run_s = setup.duration_s
                if is_full and duration_s is None and setup.full_duration_s is not None:
                    run_s = setup.full_duration_s
                for seed in seeds or self.seeds:
                    key = (policy, seed, *values.items())
                    cases[key] = Case(
                        scenario=self.name,
                        setup=setup,
                        policy=policy,
                        seed=seed,
                        values=values,
                        duration_s=run_s,
                    )
        return list(cases.values())

    def _setup(self, values: Mapping[str, Value], *, duration_s: float | None) -> Setup:
        body = {key: self._filled(tree, values, key) for key, tree in self.body.items()}
        if duration_s is not None:
            body["duration_s"] = duration_s
            body.pop("full_duration_s", None)
        return _convert(body, Setup, self.path)

    def _filled(self, tree: Any, values: Mapping[str, Value], where: str) -> Any:
        def refuse(place: str, variable: str, text: str) -> NoReturn:
            known = ", ".join(self.variables) or "none"
            raise ScenarioError(
                f"{self.path}: {place}: no variable {variable!r} for {text!r}; there are {known}"
            )

        return filled(tree, values, where, refuse)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says about its runs, and no run depends on."""

    name: str
    description: str = ""
    seeds: tuple[int, ...] = (1,)
    policies: tuple[str, ...] = ("remontoir",)
    variables: dict[str, tuple[Value, ...] | Value] = {}

    def __post_init__(self) -> None:
        for field in ("seeds", "policies"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        for variable, values in self.variables.items():
            if values == ():
                raise ValueError(f"variables.{variable} has no values")


def load(path: str | Path) -> Scenario:
    """Read a scenario and check every one of its runs. Raises ScenarioError."""
    try:
        tree = _tree_of(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not YAML: {_in_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ScenarioError(f"{path}: a scenario is a mapping of keys, this is {tree!r:.60}")
    head_keys = _Head.__struct_fields__
    head = _convert({k: v for k, v in tree.items() if k in head_keys}, _Head, str(path))
    scenario = Scenario(
        name=head.name,
        description=head.description,
        path=str(path),
        seeds=head.seeds,
        policies=head.policies,
        variables={
            variable: values if isinstance(values, tuple) else (values,)
            for variable, values in head.variables.items()
        },
        body={str(k): v for k, v in tree.items() if k not in head_keys},
    )
    scenario.expand()
    return scenario


def _tree_of(text: str, path: str) -> Any:
    """What yaml.safe_load gives. Raises ScenarioError for a key that is given twice."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        for mistake in keys_given_twice(node):
            raise ScenarioError(f"{path}: {mistake}")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _convert(tree: dict[str, Any], kind: type[_Kind], path: str) -> _Kind:
    """Raises ScenarioError: which key, what is wrong with it, and what it is."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        assert found is not None  # it matches any text
        what, where = found["what"].removeprefix("Object "), found["where"] or ""
        value = value_at(tree, where)
        if unknown := _UNKNOWN.fullmatch(what):
            known = known_keys(kind, tree, where)
            if not where:
                known = [*_Head.__struct_fields__, *known]  # of the file both are
            what = no_key(unknown[1], value[unknown[1]], known)
            raise ScenarioError(": ".join(filter(None, (path, where, what)))) from error
        if where.endswith("].kind"):
            raise ScenarioError(f"{path}: {where}: {value!r} is none of {_kinds(where)}") from error
        raise ScenarioError(
            f"{path}: {where}: {what}, in {value!r}" if where else f"{path}: {what}"
        ) from error


def _kinds(where: str) -> str:
    """What `kind` may be at a path like `workload[0].kind`."""
    structs = get_args(WorkloadEntry) if where.startswith("workload") else (Crash, Stall)
    return ", ".join(sorted(str(struct.__struct_config__.tag) for struct in structs))


def _in_one_line(error: Exception) -> str:
    """What is wrong with the text, and in which line of it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
