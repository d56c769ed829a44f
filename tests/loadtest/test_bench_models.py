"""Canonical models run and depend on their seed; the registry knows what it was told."""

from pathlib import Path

import numpy as np
import pytest

from loadtest.driver.job import Canonical, Family
from loadtest.driver.job_file import JobError, parse
from loadtest.driver.model_files import build, model_files, repository
from loadtest.driver.registry import Registry, RegistryError
from loadtest.driver.results_db import ResultsDatabase
from loadtest.reference import sample_rows, session_of

JOB = """\
job: j
target: {{kind: remontoir}}
models: [{models}]
workload: [{{kind: poisson, models: "*", rate_per_s: 1, slo_ms: 50}}]
duration_s: 1
"""


@pytest.fixture
def registry(tmp_path: Path):
    database = ResultsDatabase(tmp_path / "results")
    yield Registry(database)
    database.close()


@pytest.mark.parametrize("family", ["fully-connected", "residual-cnn", "lstm", "attention"])
def test_a_canonical_model_is_seeded_and_answers_rows_of_a_batch_each_for_itself(
    family: Family, tmp_path: Path
):
    paths = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(
            build(Canonical(family=family, depth=2, width=16, seed=seed)).SerializeToString()
        )
        paths.append(path)
    rows, (one, two) = sample_rows(paths[0], 2)
    (both,) = session_of(paths[0]).run(None, {"x": np.concatenate(rows)})
    np.testing.assert_allclose(both, np.concatenate([one, two]), rtol=1e-4, atol=1e-5)
    assert one.shape == (1, 10)
    assert not np.allclose(one, two, rtol=1e-3)
    assert not np.allclose(one, session_of(paths[1]).run(None, {"x": rows[0]})[0], rtol=1e-3)
    again = build(Canonical(family=family, depth=2, width=16, seed=1))
    assert paths[0].read_bytes() == again.SerializeToString()


def test_more_depth_and_more_width_are_more_weights():
    def size(depth: int, width: int) -> int:
        return len(
            build(Canonical(family="attention", depth=depth, width=width)).SerializeToString()
        )

    assert size(1, 64) < size(2, 64) < size(2, 128)


def test_registering_finding_changing_and_deleting(registry: Registry, tmp_path: Path):
    path = tmp_path / "line.onnx"
    path.write_bytes(b"one")
    registry.register("ocr", path, now="T1", task="text direction", accuracy="98.9 % top-1")
    registry.register("speech", path, now="T1", family="transformer", shapes={"x": (80, 3000)})
    assert [model.name for model in registry.search("DIRECTION ocr")] == ["ocr"]
    assert [model.name for model in registry.search("")] == ["ocr", "speech"]
    path.write_bytes(b"two")
    with pytest.raises(RegistryError, match=r"'ocr': .* has changed since T1"):
        registry.get("ocr").checked_path()
    changed = registry.update("ocr", now="T2", path=path, notes="smaller")
    assert (changed.accuracy, changed.notes, changed.registered_at) == (
        "98.9 % top-1",
        "smaller",
        "T1",
    )
    assert registry.get("ocr").checked_path() == path
    registry.delete("ocr")
    assert path.exists()
    with pytest.raises(
        RegistryError, match=r"no model 'ocr' in the registry of .*; there are speech"
    ):
        registry.get("ocr")


def test_what_the_registry_refuses(registry: Registry, tmp_path: Path):
    path = tmp_path / "m.onnx"
    with pytest.raises(RegistryError, match=r"'m': .*m\.onnx: No such file"):
        registry.register("m", path, now="T1")
    path.write_bytes(b"one")
    registry.register("m", path, now="T1")
    with pytest.raises(RegistryError, match="'m' is registered already"):
        registry.register("m", path, now="T1")
    with pytest.raises(RegistryError, match="is no name"):
        registry.register("../m", path, now="T1")
    with pytest.raises(RegistryError, match="nothing to change"):
        registry.update("m", now="T2")
    with pytest.raises(RegistryError, match="no model 'n'"):
        registry.delete("n")


def test_a_jobs_models_become_a_repository(registry: Registry, tmp_path: Path):
    (tmp_path / "own.onnx").write_bytes(b"own")
    registry.register("kept", tmp_path / "own.onnx", now="T1", shapes={"x": (3,)})
    models = (
        "{name: a, path: own.onnx}, {name: b, registered: kept}, "
        "{name: c, canonical: {family: lstm, depth: 1, width: 4}}"
    )
    (case,) = parse(JOB.format(models=models), str(tmp_path / "job.yaml")).cases
    folder = tmp_path / "models"
    files = model_files(case.job, folder=folder, job_folder=tmp_path, registry=lambda: registry)
    assert files["a"].sha256 == files["b"].sha256
    assert files["b"].shapes == {"x": (3,)}
    for _ in range(2):
        root = repository(files, folder)
    assert sorted(path.parent.parent.name for path in root.glob("*/1/model.onnx")) == [
        "a",
        "b",
        "c",
    ]
    assert (root / "a/1/model.onnx").read_bytes() == b"own"


@pytest.mark.parametrize(
    ("model", "message"),
    [("{name: a, path: none.onnx}", "models: a: .*none.onnx: No such file"),
     ("{name: a, registered: b}", "models: a: no model 'b' in the registry")],
)  # fmt: skip
def test_a_model_that_is_not_there_is_said(
    model: str, message: str, registry: Registry, tmp_path: Path
):
    (case,) = parse(JOB.format(models=model), "job.yaml").cases
    with pytest.raises(JobError, match=message):
        model_files(case.job, folder=tmp_path, job_folder=tmp_path, registry=lambda: registry)
