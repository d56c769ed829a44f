from pathlib import Path

import msgspec
import pytest

from loadtest.machine import Machine
from loadtest.report import Report, percent, shown

MACHINE = Machine(
    cpu="abacus",
    num_cpus=2,
    memory_gib=1.0,
    kernel="1",
    python="3",
    versions={"numpy": "2"},
    commit="abc",
)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50.0 %"), (1.0, "100.0 %"), (0.99949, "99.9 %"), (0.99999, "99.9+ %"), (0.0, "0.0 %")],
)
def test_almost_all_is_not_shown_as_all(share: float, text: str):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234.5, "1,234"), (12.34, "12.3"), (0.456, "0.46"), (4000, "4,000"), ("a", "a")],
)
def test_cells_show_the_digits_that_matter(value: object, text: str):
    assert shown(value) == text


def test_figures_are_saved_with_the_machine_they_were_measured_on(tmp_path: Path):
    path = Report(MACHINE, out_dir=tmp_path / "new", command="make bench").save("x", {"p50": 1})
    document = msgspec.json.decode(path.read_bytes())
    assert document["result"] == {"p50": 1}
    assert document["machine"]["cpu"] == "abacus"
    assert document["command"] == "make bench"


def test_a_missed_bar_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = Report(MACHINE, out_dir=tmp_path, command="make bench")
    report.verdict("goodput 80 % [of capacity]", is_met=False)
    assert "MISSED goodput 80 % [of capacity]" in capsys.readouterr().out
