"""`remontoir bench report`, `leaderboard`, `recommend`, `roofline`: what people see and get."""

from pathlib import Path

import onnx
import pytest

from loadtest import graphs
from loadtest.analysis import __main__ as command
from loadtest.analysis import ceilings, measured_roofs
from loadtest.analysis.cell import row_of
from loadtest.analysis.graph_cost import GraphError
from loadtest.analysis.results_view import read_cells, write_cells
from loadtest.driver.results_db import ResultsError
from loadtest.job_queue.messages import Beat, Submission
from loadtest.job_queue.queue_tables import JobQueue
from tests.loadtest.analysis_cells import a_cell, a_day


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is not measured again and again."""
    found = ceilings.Ceilings(device="a CPU", threads=1, flops_per_s=100e9, memory_bytes_per_s=10e9)
    monkeypatch.setattr(ceilings, "measure", lambda **_: found)
    monkeypatch.setattr(measured_roofs, "load_average", lambda: 0.1)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    write_cells(folder / "day.jsonl", a_day(repeats=1, rates=(0.6, 1.5)))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "tiny" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(graphs.mlp(sizes=(8, 8, 2), seed=1), path)
    return path


def test_a_report_is_written_whole(tmp_path: Path, model: Path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    cells = [a_cell(model="tiny", model_path=str(model)), a_cell(model="magika")]
    write_cells(results / "two.jsonl", cells)
    out = results / "pages" / "report.html"
    assert command.main(["report", str(results), "--out", str(out), "--title", "Our day"]) == 0
    text = out.read_text()
    assert "<title>Our day</title>" in text
    assert "Roofline of a CPU" in text
    assert "magika: the results do not say where its model.onnx is" in text
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert "2 cells" in capsys.readouterr().out


def test_the_leaderboard_shows_the_metric_it_is_sorted_by(results: Path, capsys):
    arguments = ["leaderboard", str(results), "--sort", "energy", "--model", "magika", "--top", "2"]
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Wh / 1,000" in text
    assert "resnet18" not in text
    assert "10 more lines" in text


def test_three_are_recommended_and_outside_of_what_was_measured_is_said(results: Path, capsys):
    arguments = ["recommend", str(results), "--model", "resnet18"]
    assert command.main([*arguments, "--slo-ms", "200"]) == 0
    text = capsys.readouterr().out
    assert text.count("predicted") == 3
    assert "a guess" not in text
    assert command.main([*arguments, "--slo-ms", "5000"]) == 0
    assert "5000 ms lies outside" in capsys.readouterr().out


def test_what_costs_too_much_is_left_out(results: Path, capsys):
    arguments = ["recommend", str(results), "--model", "resnet18", "--slo-ms", "200"]
    assert command.main([*arguments, "--max-cost", "0.0005"]) == 0
    text = capsys.readouterr().out
    assert text.count("predicted") == 1
    assert " 100 % " in text  # of one that is left, it is the best
    assert "US$ by prices.yaml, as of 2024 to 2025, not verified (--prices)" in text
    assert command.main([*arguments, "--max-cost", "1e-9"]) == 1
    assert "the cheapest has 0.000" in capsys.readouterr().err


def test_of_several_kinds_of_arrivals_one_can_be_taken(tmp_path: Path, capsys):
    cells = [a_cell(), a_cell(arrivals="on-off", good=40, refused=59, config=(("policy", "edf"),))]
    write_cells(tmp_path / "two.jsonl", cells)
    arguments = ["recommend", str(tmp_path), "--model", "resnet18", "--slo-ms", "100"]
    assert command.main(arguments) == 0
    assert "Measured under on-off, poisson: the most of any" in capsys.readouterr().out
    assert command.main([*arguments, "--arrivals", "on-off"]) == 0
    text = capsys.readouterr().out
    assert "1 configuration, from 1" in text
    assert "Measured under" not in text
    assert command.main([*arguments, "--arrivals", "storm"]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "not measured under 'storm' arrivals, but under on-off, poisson" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "nowhere"], 1, "nowhere: no such file or folder"),
        (["leaderboard", "{}", "--sort", "speed"], 2, "no metric 'speed'"),
        (["leaderboard", "{}", "--prices", "none.yaml"], 2, "none.yaml: No such file"),
        (["leaderboard", "{}", "--model", "x"], 1, "no results of model 'x'"),
        (["leaderboard", "{}", "--job", "x"], 1, "no results of job 'x'; it has day"),
        (["leaderboard", "{}", "--run", "x"], 1, "no results of run 'x'; it has run-clipper-1"),
        (["roofline", "none.onnx"], 1, "none.onnx: no such file"),
    ],
)
def test_what_cannot_be_is_told(results: Path, capsys, arguments, code: int, message: str):
    assert command.main([text.format(results) for text in arguments]) == code
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_model_under_its_roof(model: Path, capsys):
    assert command.main(["roofline", str(model), "--batch", "1,4"]) == 0
    text = capsys.readouterr().out
    assert "100.0 GFLOP/s, memory 10.0 GB/s" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("tiny")] == [
        ["tiny", "1"],
        ["tiny", "4"],
    ]


def test_a_machine_that_is_not_quiet_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured_roofs, "load_average", lambda: 3.0)
    found = measured_roofs.roofs_of([], threads=1)
    assert "not quiet (load average 3.0)" in found.missing[0]


def test_shapes_come_from_the_models_own_settings(model: Path):
    assert measured_roofs.row_shapes(model) == {}
    config = model.parent.parent / "config.yaml"
    config.write_text("profile_shapes:\n  x:\n  - [3, 48, 320]\n  - [3, 48, 640]\n")
    assert measured_roofs.row_shapes(model) == {"x": (3, 48, 320)}
    config.write_text("profile_shapes: 7\n")
    with pytest.raises(GraphError, match=r"config\.yaml: profile_shapes cannot be read"):
        measured_roofs.row_shapes(model)


def test_a_batch_size_a_model_does_not_take_is_said(tmp_path: Path):
    path = tmp_path / "fixed.onnx"
    fixed = graphs.mlp(sizes=(8, 8, 2), seed=1)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, path)
    found = measured_roofs.roofs_of([("fixed", path)], threads=1, batches=(1, 2))
    assert [point.batch for point in found.points] == [1]
    assert "fixed, batch 2: " in found.missing[0]


def test_results_are_read_from_lines_folders_and_a_leaders_database(tmp_path: Path):
    cell = a_cell()
    write_cells(tmp_path / "rows.jsonl", [cell])
    assert read_cells(str(tmp_path / "rows.jsonl")) == [cell]
    queue = JobQueue(str(tmp_path / "leader"))
    queue.submit("j", Submission(name="j", spec="x: 1"), 0.0)
    run = queue.beat("a", Beat(instance="a"), 1.0).run
    assert run is not None
    other = a_cell(model="magika")
    queue.add_rows("j", run.lease, [other])
    queue.close()
    file = tmp_path / "leader" / "results.sqlite"
    assert read_cells(str(file)) == [other]
    assert read_cells(f"sqlite:///{file}") == [other]
    assert sorted(c.model for c in read_cells(str(tmp_path))) == ["magika", "resnet18"]


def test_a_line_that_is_not_whole_is_left_out_and_said(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    write_cells(file, [a_cell()])
    with file.open("ab") as cut:
        cut.write(row_of(a_cell(repeat=1))[:100])
    said: list[str] = []
    assert len(read_cells(str(file), say=said.append)) == 1
    assert said == [f"{file}, line 2 is not whole, and left out"]


def test_what_is_no_result_is_named_by_its_line(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"x": 1}\n')
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line 1: no result: .*missing required"):
        read_cells(str(file))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ResultsError, match=r"holds no results: no \.jsonl"):
        read_cells(str(empty))
