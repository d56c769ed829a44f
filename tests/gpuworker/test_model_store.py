import fcntl
import os
from pathlib import Path

import pytest

from gpuworker.artifact_cache import (
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Artifact,
    ArtifactCache,
    SampleInputs,
    WeightTensor,
)
from gpuworker.model_store import RepositoryError, RepositoryModel, scan_repository
from scheduler.spec import ModelProfile, ModelSpec, SharingSpec


def add(repository: Path, name: str, version: str = "1", content: bytes = b"graph") -> Path:
    path = repository / name / version / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def only_model(repository: Path) -> RepositoryModel:
    (model,) = scan_repository(repository)
    return model


def test_models_are_read_by_name_in_their_highest_numeric_version(tmp_path: Path) -> None:
    add(tmp_path, "b", "2")
    add(tmp_path, "b", "10")
    add(tmp_path, "a")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README").write_text("not a model")
    (tmp_path / "b" / "99x").mkdir()
    found = [(model.name, model.version, model.problem) for model in scan_repository(tmp_path)]
    assert found == [("a", "1", None), ("b", "10", None)]


@pytest.mark.parametrize("exists", [True, False])
def test_a_repository_without_models_is_an_error_that_names_it(
    tmp_path: Path, exists: bool
) -> None:
    path = tmp_path / "models"
    if exists:
        path.mkdir()
    with pytest.raises(RepositoryError, match=f"--models {path}: "):
        scan_repository(path)


def test_a_model_without_version_or_file_is_a_problem_of_its_own(tmp_path: Path) -> None:
    add(tmp_path, "good")
    (tmp_path / "no_file" / "3").mkdir(parents=True)
    (tmp_path / "no_version" / "latest").mkdir(parents=True)
    problems = {model.name: model.problem for model in scan_repository(tmp_path)}
    assert problems == {
        "good": None,
        "no_file": "no model.onnx in version 3",
        "no_version": "no version directory (no_version/1, ...)",
    }


def test_every_key_of_config_yaml_is_read(tmp_path: Path) -> None:
    add(tmp_path, "m")
    (tmp_path / "m" / "config.yaml").write_text(
        "default_slo_ms: 12.5\nmax_batch_size: 8\nbatch_sizes: [1, 8]\n"
        "priority: low\npinned: true\n"
        "profile_shapes: {x: [[3, 48, 192], [3, 48, 320]]}\n"
        "single_flight: true\ncache: {mb: 0.5}\nshare_across_tenants: false\n"
    )
    config = only_model(tmp_path).config
    assert (config.default_slo_ms, config.max_batch_size, config.batch_sizes) == (12.5, 8, (1, 8))
    assert (config.priority, config.pinned) == ("low", True)
    assert config.profile_shapes == {"x": ((3, 48, 192), (3, 48, 320))}
    assert config.sharing() == SharingSpec(1 << 19, is_across_tenants=False)


@pytest.mark.parametrize(
    ("text", "sharing"),
    [
        ("share_across_tenants: false", None),
        ("single_flight: true", SharingSpec(0)),
        ("cache: {mb: 64}", SharingSpec(64 << 20)),
    ],
)
def test_answers_are_shared_where_the_config_asks_for_it(
    tmp_path: Path, text: str, sharing: SharingSpec | None
) -> None:
    add(tmp_path, "m")
    (tmp_path / "m" / "config.yaml").write_text(text)
    assert only_model(tmp_path).config.sharing() == sharing


def test_an_empty_config_is_the_default_one(tmp_path: Path) -> None:
    add(tmp_path, "m")
    (tmp_path / "m" / "config.yaml").write_text("# nothing yet\n")
    assert only_model(tmp_path).problem is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max_batch: 4", "unknown field `max_batch`"),
        ("max_batch_size: 0", "`int` >= 1"),
        ("batch_sizes: []", "length >= 1"),
        ("default_slo_ms: -1", "> 0"),
        ("default_slo_ms: .nan", "> 0"),
        ("default_slo_ms: .inf", "<= 86400000"),
        ("pinned: sometimes", "Expected `bool`"),
        ("profile_shapes: {x: [3]}", "Expected `array`"),
        ("cache: 64", "Expected `object | null`"),
        ("cache: {}", "missing required field `mb`"),
        ("cache: {mb: 0}", "> 0"),
        ("cache: {gb: 1}", "unknown field `gb`"),
        ("single_flight: 1", "Expected `bool`"),
        ("[1, 2]", "Expected `object`"),
        ("a: [", "expected"),
    ],
)
def test_a_bad_config_makes_the_model_a_problem_that_names_the_key(
    tmp_path: Path, text: str, part: str
) -> None:
    add(tmp_path, "m")
    (tmp_path / "m" / "config.yaml").write_text(text)
    problem = only_model(tmp_path).problem
    assert problem is not None
    assert problem.startswith("config.yaml: ")
    assert part in problem


def test_the_content_hash_follows_every_file_of_the_version_and_the_config(
    tmp_path: Path,
) -> None:
    path = add(tmp_path, "m")
    hashes = [only_model(tmp_path).content_hash]
    path.write_bytes(b"other graph")
    hashes.append(only_model(tmp_path).content_hash)
    (path.parent / "weights.data").write_bytes(b"external")
    hashes.append(only_model(tmp_path).content_hash)
    (tmp_path / "m" / "config.yaml").write_text("pinned: true")
    hashes.append(only_model(tmp_path).content_hash)
    assert len(set(hashes)) == 4
    os.utime(path, (0, 0))
    assert only_model(tmp_path).content_hash == hashes[-1]


def artifact(name: str = "m") -> Artifact:
    spec = ModelSpec(
        name=name,
        version="1",
        content_hash="abc",
        platform="onnxruntime_onnx",
        inputs=(),
        outputs=(),
        batch_sizes=(1,),
        runs_exact_batch=False,
        weights_bytes=4,
        profile=ModelProfile(load_ns=1, shapes=()),
    )
    weights = (WeightTensor(name="w", onnx_type=1, shape=(1,), offset=0, num_bytes=4),)
    return Artifact(spec=spec, weights=weights, samples=(SampleInputs(((3,),), 2),))


def fill(directory: Path) -> Artifact:
    (directory / GRAPH_FILE).write_bytes(b"graph")
    (directory / WEIGHTS_FILE).write_bytes(b"1234")
    return artifact()


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache", engine_key="engine-1")


def test_a_stored_artifact_is_found_again(cache: ArtifactCache) -> None:
    stored = cache.store("m", "1", "abc", fill)
    found = cache.find("m", "1", "abc")
    assert found == stored
    assert found is not None
    assert found.artifact == artifact()
    assert found.weights_path.read_bytes() == b"1234"


@pytest.mark.parametrize(
    "identity", [("other", "1", "abc"), ("m", "2", "abc"), ("m", "1", "changed")]
)
def test_another_model_version_or_content_is_another_artifact(
    cache: ArtifactCache, identity: tuple[str, str, str]
) -> None:
    cache.store("m", "1", "abc", fill)
    assert cache.find(*identity) is None


def test_another_engine_or_machine_is_another_artifact(tmp_path: Path) -> None:
    ArtifactCache(tmp_path, engine_key="engine-1").store("m", "1", "abc", fill)
    assert ArtifactCache(tmp_path, engine_key="engine-2").find("m", "1", "abc") is None


@pytest.mark.parametrize("name", [GRAPH_FILE, WEIGHTS_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "gone"])
def test_a_damaged_artifact_is_not_found_and_can_be_made_anew(
    cache: ArtifactCache, name: str, damage: str
) -> None:
    path = cache.store("m", "1", "abc", fill).directory / name
    content = path.read_bytes()
    if damage == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut short":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert cache.find("m", "1", "abc") is None
    cache.store("m", "1", "abc", fill)
    assert cache.find("m", "1", "abc") is not None


def test_a_failed_writing_leaves_nothing_behind(cache: ArtifactCache, tmp_path: Path) -> None:
    def fail(directory: Path) -> Artifact:
        fill(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.store("m", "1", "abc", fail)
    assert cache.find("m", "1", "abc") is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_process_left_is_swept_up(cache: ArtifactCache, tmp_path: Path) -> None:
    stored = cache.store("m", "1", "abc", fill)
    leftover = stored.directory.with_name(f"{stored.directory.name}.unfinished")
    leftover.mkdir()
    (leftover / "half").write_bytes(b"written")
    again = cache.store("m", "1", "abc", fill)
    assert sorted(path.name for path in again.directory.iterdir()) == sorted(
        [GRAPH_FILE, WEIGHTS_FILE, MANIFEST_FILE]
    )
    assert not leftover.exists()


def test_only_one_process_compiles_a_model_at_a_time(cache: ArtifactCache, tmp_path: Path) -> None:
    with cache.lock("m", "1", "abc"):
        (path,) = (tmp_path / "cache").glob("*.lock")
        # flock is per open file, so that a second open is as good as a second process.
        with path.open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with cache.lock("m", "1.5", "abc"):
            pass  # another model is not held up
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_of_several_gateways_models_only_ours_are_read(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    found = scan_repository(tmp_path, is_ours=lambda name: name == "ours")
    assert [model.name for model in found] == ["ours"]
    assert scan_repository(tmp_path, is_ours=lambda _: False) == []
