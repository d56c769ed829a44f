"""A policy stays a set that is read at a glance, and a strategy one idea."""

from pathlib import Path

import pytest

from scheduler import policies
from scheduler.policies import sets_of

FOLDER = Path(policies.__file__).parent
NOT_SETS = ("__init__", "options", "protocols")
SETS = [path for path in sorted(FOLDER.glob("*.py")) if path.stem not in NOT_SETS]
STRATEGIES = sorted(FOLDER.glob("*/*.py"))


def num_lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_set_has_less_than_60_lines(path: Path) -> None:
    assert num_lines(path) < 60


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_strategy_has_less_than_200_lines(path: Path) -> None:
    assert num_lines(path) < 200


def test_every_set_is_chosen_by_the_name_of_its_file() -> None:
    assert {path.stem for path in SETS} == set(policies.POLICIES)


def test_a_new_set_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what has no class of its own name nor what lies in a folder is a set."""
    package = tmp_path / "sets_of_others"
    for name, text in {
        "__init__": "",
        "last_in": "class LastIn: ...",
        "remontoir": "class Remontoir: ...",
        "a_part": "class Other: ...",
        "batching/__init__": "class Batching: ...",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(sets_of("sets_of_others", [str(package)])) == ["remontoir", "last_in"]
