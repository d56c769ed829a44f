import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from gpuworker import compile as compiling
from gpuworker.__main__ import main
from gpuworker.additions import NotHereError
from gpuworker.artifact_cache import Artifact
from gpuworker.compile import Provider, compile_in_own_process, compile_repository
from gpuworker.compile_model import CompileError, fewest_byte_seconds
from gpuworker.device_choice import CPU
from gpuworker.engines.onnx_graph import compact_weights, optimise, read_graph, weights_bytes
from gpuworker.model_store import RepositoryModel, read_model
from scheduler.spec import MILLISECOND_NS, ModelSpec, SharingSpec, TensorSpec
from tests.gpuworker import onnx_models
from tests.gpuworker.compiled import PAGE, spec_of
from tests.gpuworker.onnx_models import write_model
from tests.scheduler.story import model_spec


def axes(tensors: tuple[TensorSpec, ...]) -> dict[str, int | None]:
    return {tensor.name: tensor.batch_axis for tensor in tensors}


def shapes(tensors: tuple[TensorSpec, ...]) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors}


def test_a_plain_model_runs_batches_of_any_size_up_to_sixteen(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.mlp())
    assert spec.inputs == (TensorSpec("x", "FP32", (-1, 64), 0),)
    assert spec.outputs == (TensorSpec("y", "FP32", (-1, 10), 0),)
    assert (spec.batch_sizes, spec.runs_exact_batch) == ((1, 2, 4, 8, 16), True)
    assert spec.platform == "onnxruntime_onnx"
    assert spec.unavailable_reason is None
    # 64 x 64 and 64 x 10 floats; the biases are small enough to stay in the graph.
    assert spec.weights_bytes == 4 * (64 * 64 + 64 * 10)


def test_the_profile_has_a_time_for_every_batch_size_and_for_a_load(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.mlp())
    (profile,) = spec.profile.shapes
    assert (profile.shape_key, profile.elements) == ("", 64)
    assert tuple(profile.exec_ns) == spec.batch_sizes
    assert min(profile.exec_ns.values()) > 0
    assert spec.profile.load_ns > 0


def test_a_fixed_batch_is_served_alone(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.mlp(rows=1))
    assert (spec.batch_sizes, spec.runs_exact_batch) == ((1,), False)
    assert shapes(spec.inputs) == {"x": (1, 64)}
    assert axes(spec.inputs) == {"x": 0}
    assert axes(spec.outputs) == {"y": 0}


def test_a_batch_that_is_not_one_belongs_to_one_request(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.mlp(rows=4))
    assert spec.batch_sizes == (1,)
    assert shapes(spec.inputs) == {"x": (4, 64)}
    assert axes(spec.inputs) == {"x": None}
    assert axes(spec.outputs) == {"y": None}


def test_batch_axes_are_found_where_they_are(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.recurrent())
    assert axes(spec.inputs) == {"x": 0, "state": 1, "gain": None}
    assert axes(spec.outputs) == {"y": 0, "stateN": 1}
    assert shapes(spec.inputs) == {"x": (-1, 32), "state": (2, -1, 32), "gain": ()}
    assert shapes(spec.outputs) == {"y": (-1, 32), "stateN": (2, -1, 32)}
    assert spec.batch_sizes == (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    "model",
    [
        onnx_models.dynamically_quantised(),
        onnx_models.one_row_inside(),
        onnx_models.flattened_rows(),
    ],
    ids=["rows share a scale", "two rows do not run", "no output axis counts rows"],
)
def test_rows_that_cannot_share_a_batch_do_not(tmp_path: Path, model: onnx.ModelProto) -> None:
    spec = spec_of(tmp_path, model)
    assert (spec.batch_sizes, spec.runs_exact_batch) == ((1,), False)
    assert axes(spec.inputs) == {"x": 0}


def test_indices_are_kept_small_enough_for_the_model(tmp_path: Path) -> None:
    """256 is tried first and makes it throw, 2 does not."""
    assert spec_of(tmp_path, onnx_models.lookup()).batch_sizes == (1, 2, 4, 8, 16)


def test_text_truth_and_half_precision_are_served(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.every_type())
    assert [tensor.datatype for tensor in spec.inputs] == ["BYTES", "BOOL", "FP16"]
    assert spec.batch_sizes == (1, 2, 4, 8, 16)
    assert spec.weights_bytes == 0
    assert spec.num_pages(PAGE) == 1


def test_free_sizes_are_guessed_and_profiled_under_their_shape(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.conv())
    assert shapes(spec.inputs) == {"x": (-1, 3, -1, -1)}
    (profile,) = spec.profile.shapes
    assert (profile.shape_key, profile.elements) == ("3x48x320", 3 * 48 * 320)


def test_profile_shapes_of_the_config_are_all_measured(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        onnx_models.conv(),
        "profile_shapes: {x: [[3, 8, 16], [3, 16, 16]]}\nbatch_sizes: [1, 2]",
    )
    found = [(p.shape_key, p.elements, tuple(p.exec_ns)) for p in spec.profile.shapes]
    assert found == [("3x8x16", 384, (1, 2)), ("3x16x16", 768, (1, 2))]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("profile_shapes: {z: [[3]]}", r"names \['z'\], which are not inputs"),
        ("profile_shapes: {x: [[4, 8, 8]]}", r"x has rows of shape \[3, -1, -1\], not \[4, 8, 8\]"),
        ("profile_shapes: {x: [[3, 8]]}", r"x has rows of shape \[3, -1, -1\], not \[3, 8\]"),
        ("profile_shapes: {x: [[3, 8, 8], [3, 8]]}", r"not \[3, 8\]"),
    ],
)
def test_profile_shapes_that_do_not_fit_are_named(
    tmp_path: Path, config: str, message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        spec_of(tmp_path, onnx_models.conv(), config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("max_batch_size: 1", (1,)),
        ("max_batch_size: 4", (1, 2, 4)),
        ("max_batch_size: 6", (1, 2, 4, 6)),
        ("batch_sizes: [12, 3]", (1, 3, 12)),
        ("batch_sizes: [3, 12]\nmax_batch_size: 8", (1, 3, 8)),
    ],
)
def test_the_config_chooses_batch_sizes(
    tmp_path: Path, config: str, expected: tuple[int, ...]
) -> None:
    spec = spec_of(tmp_path, onnx_models.mlp(), config)
    assert spec.batch_sizes == expected
    assert tuple(spec.profile.shapes[0].exec_ns) == expected


def test_slo_pin_and_sharing_of_the_config_reach_the_spec(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path, onnx_models.mlp(), "default_slo_ms: 12.5\npinned: true\ncache: {mb: 1}"
    )
    assert spec.default_slo_ns == 12_500_000 == round(12.5 * MILLISECOND_NS)
    assert spec.is_pinned
    assert spec.sharing == SharingSpec(1 << 20)


def test_weights_stay_compact_while_that_saves_more_than_it_costs() -> None:
    folded, compact = 0, 1
    assert fewest_byte_seconds([90_300_000, 22_900_000], [6_600, 9_600]) == compact
    assert fewest_byte_seconds([90_300_000, 22_900_000], [12_000, 60_000]) == folded


def test_folding_is_weighed_against_compact_weights(tmp_path: Path) -> None:
    source = read_graph(write_model(tmp_path, "m", onnx_models.int8_weights(size=256)))
    compact = compact_weights(source)
    assert compact == {"w"}
    assert weights_bytes(optimise(source)) == 4 * 256 * 256
    assert weights_bytes(optimise(source, keep=compact)) == 256 * 256


def test_a_model_in_either_form_is_served(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.int8_weights(size=256))
    assert spec.weights_bytes in (256 * 256, 4 * 256 * 256)
    assert spec.batch_sizes == (1, 2, 4, 8, 16)


def test_weights_inside_branches_are_counted(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, onnx_models.two_branches())
    assert spec.weights_bytes == 2 * 4 * 32 * 32
    assert axes(spec.inputs) == {"x": 0, "flag": None}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (onnx_models.unknown_operator(), "ONNX Runtime refuses the model: .*Conjure"),
        (onnx_models.never_runs(), "Reshape"),
        (onnx.ModelProto(), "its graph has no nodes"),
    ],
    ids=["unknown operator", "throws on everything", "empty"],
)
def test_a_broken_model_says_what_is_wrong(
    tmp_path: Path, model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        spec_of(tmp_path, model)


def test_a_repository_is_compiled_once_and_its_broken_models_harm_nobody(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    write_model(repository, "good", onnx_models.mlp(), "max_batch_size: 2")
    write_model(repository, "mad", onnx_models.mlp(), "colour: red")
    write_model(repository, "text", onnx_models.mlp()).write_bytes(b"this is not protobuf")
    first = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    reasons = {spec.name: spec.unavailable_reason for spec in first}
    assert reasons["good"] is None
    assert "config.yaml: Object contains unknown field `colour`" in str(reasons["mad"])
    assert "model.onnx is not an ONNX model" in str(reasons["text"])
    # A profile that is equal to the nanosecond was not measured again.
    assert compile_repository(repository, cache, page_bytes=PAGE, quiet=True) == first


def test_with_more_threads_a_model_is_another_artifact_with_times_of_its_own(
    tmp_path: Path,
) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    write_model(repository, "m", onnx_models.mlp(), "max_batch_size: 1")
    (one,) = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    assert len(list(cache.glob("m-*/weights.bin"))) == 1
    (two,) = compile_repository(repository, cache, page_bytes=PAGE, threads=2, quiet=True)
    assert len(list(cache.glob("m-*/weights.bin"))) == 2
    assert one.unavailable_reason is two.unavailable_reason is None
    assert one.content_hash == two.content_hash
    # both stay: nobody's times are the other's
    assert compile_repository(repository, cache, page_bytes=PAGE, quiet=True) == [one]
    Provider(repository, cache, page_bytes=PAGE, device=CPU, threads=2)(two)
    assert len(list(cache.glob("m-*/weights.bin"))) == 2


def test_a_damaged_artifact_is_compiled_again(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    write_model(repository, "m", onnx_models.mlp(), "max_batch_size: 1")
    (first,) = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    (blob,) = cache.glob("m-*/weights.bin")
    content = blob.read_bytes()
    blob.write_bytes(bytes(len(content)))
    (second,) = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    assert second.unavailable_reason is None
    assert second.weights_bytes == first.weights_bytes
    (blob,) = cache.glob("m-*/weights.bin")
    assert blob.read_bytes() == content


def test_what_cannot_be_compiled_is_tried_by_who_compiles_and_not_by_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    write_model(repository, "m", onnx_models.mlp())
    tried: list[str] = []
    is_mended = False
    compile_it = compile_in_own_process

    def in_own_process(model: RepositoryModel, directory: Path, **how: Any) -> Artifact:
        tried.append(model.name)
        if not is_mended:
            raise CompileError(f"attempt {len(tried)}")
        return compile_it(model, directory, page_bytes=PAGE)

    monkeypatch.setattr(compiling, "compile_in_own_process", in_own_process)

    def reason(*, tries_again: bool) -> str | None:
        (spec,) = compile_repository(
            repository, cache, page_bytes=PAGE, quiet=True, tries_again=tries_again
        )
        return spec.unavailable_reason

    assert reason(tries_again=False) == "attempt 1"  # nobody has tried yet
    assert reason(tries_again=False) == "attempt 1"
    assert reason(tries_again=True) == reason(tries_again=False) == "attempt 2"
    is_mended = True
    assert reason(tries_again=False) == "attempt 2"
    assert reason(tries_again=True) is reason(tries_again=False) is None
    content = onnx_models.mlp(seed=2).SerializeToString()
    (repository / "m" / "1" / "model.onnx").write_bytes(content)
    is_mended = False
    assert reason(tries_again=False) == "attempt 4"  # another content is another model
    assert len(tried) == 4


@pytest.mark.parametrize(
    ("script", "timeout_s", "message"),
    [
        ("import os; os.abort()", 60.0, r"ended its process \(SIGABRT\)"),
        ("raise SystemExit(7)", 60.0, r"ended its process \(exit code 7\)"),
        ("import time; time.sleep(60)", 0.2, r"took longer than 0\.2 s"),
        ("print('noise')", 60.0, r"ended its process \(exit code 0\)"),
    ],
    ids=["crash", "exit", "hang", "nonsense"],
)
def test_a_model_that_takes_its_process_down_is_only_unavailable(
    tmp_path: Path, script: str, timeout_s: float, message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        compile_in_own_process(
            RepositoryModel(name="m", model_path=tmp_path / "model.onnx"),
            tmp_path,
            page_bytes=PAGE,
            command=(sys.executable, "-c", script),
            timeout_s=timeout_s,
        )


def test_the_command_writes_a_catalogue_of_all_models(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "good", onnx_models.mlp(), "max_batch_size: 1")
    write_model(tmp_path / "models", "text", onnx_models.mlp()).write_bytes(b"no")
    catalogue = tmp_path / "catalogue.json"
    arguments = ["compile", "--models", str(tmp_path / "models"), "--device", "cpu"]
    arguments += [
        "--quiet",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--catalog-out",
        str(catalogue),
    ]
    assert main(arguments) == 0
    specs = {spec.name: spec for spec in decoded(catalogue)}
    assert specs["good"].unavailable_reason is None
    assert specs["text"].unavailable_reason is not None


def test_the_command_ends_with_2_and_one_line_without_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "missing", tmp_path):
        arguments = ["compile", "--models", str(path), "--catalog-out", str(tmp_path / "c.json")]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"gpuworker: --models {path}: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "c.json").exists()


def decoded(path: Path) -> list[ModelSpec]:
    return msgspec.json.decode(path.read_bytes(), type=list[ModelSpec])


def test_a_wanted_content_is_compiled_where_the_repository_has_it(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    write_model(repository, "m", onnx_models.mlp())
    content_hash = read_model(repository / "m").content_hash
    spec = msgspec.structs.replace(model_spec("m/1"), version="1", content_hash=content_hash)

    give = Provider(repository, cache, page_bytes=PAGE, device=CPU)

    with pytest.raises(NotHereError, match=r"m, version 2: nothing is here, .* is wanted"):
        give(msgspec.structs.replace(spec, version="2"))
    with pytest.raises(NotHereError, match="is here, another is wanted"):
        give(msgspec.structs.replace(spec, content_hash="another"))
    with pytest.raises(NotHereError, match="is here, another is wanted"):
        give(msgspec.structs.replace(spec, content_hash="another"))  # remembered, not read again
    give(spec)
    shutil.rmtree(repository)
    give(spec)  # the artifact is enough


def test_a_wanted_content_that_cannot_be_compiled_says_why(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "1" / "model.onnx").write_bytes(b"no model")
    content_hash = read_model(repository / "m").content_hash
    spec = msgspec.structs.replace(model_spec("m"), content_hash=content_hash)
    with pytest.raises(CompileError):
        Provider(repository, tmp_path / "c", page_bytes=PAGE, device=CPU)(spec)
