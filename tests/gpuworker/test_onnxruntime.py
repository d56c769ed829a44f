from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from gpuworker.artifact_cache import StoredArtifact
from gpuworker.backend import EngineError, InvalidInput, NotCompiled
from gpuworker.compile import compile_repository
from gpuworker.devices.host import HostPages
from gpuworker.engines.datatypes import Array
from gpuworker.engines.onnxruntime import OnnxRuntimeBackend
from gpuworker.engines.paged_session import NotResident, PagedSession
from scheduler.actions import Infer
from tests.gpuworker import onnx_models
from tests.gpuworker.compiled import PAGE, compiled, infer, order, packed
from tests.gpuworker.onnx_models import write_model

RTOL, ATOL = 1e-4, 1e-5


def rows_of(num_rows: int, width: int = 64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((num_rows, width)).astype(np.float32)


def plain_outputs(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """What an ordinary session of ONNX Runtime answers."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Array] = session.run(None, inputs)
    return outputs


def open_session(pages: HostPages, stored: StoredArtifact) -> PagedSession:
    return PagedSession(
        pages,
        graph_path=stored.graph_path,
        weights_path=stored.weights_path,
        weights=stored.artifact.weights,
    )


@pytest.fixture
def pages() -> Iterator[HostPages]:
    device = HostPages(page_bytes=PAGE, total_pages=4)
    yield device
    device.close()


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Array]]] = {
    "mlp": (onnx_models.mlp, {"x": rows_of(3)}),
    "conv": (onnx_models.conv, {"x": rows_of(2, 3 * 48 * 320).reshape(2, 3, 48, 320)}),
    "lookup": (onnx_models.lookup, {"ids": np.array([[0, 7, 3, 3], [1, 2, 5, 0]])}),
    "recurrent": (
        onnx_models.recurrent,
        {
            "x": rows_of(2, 32),
            "state": np.stack([rows_of(2, 32, 1), rows_of(2, 32, 2)]),
            "gain": np.array(1.5, np.float32),
        },
    ),
    "dynamically_quantised": (onnx_models.dynamically_quantised, {"x": rows_of(1)}),
    "int8_weights": (onnx_models.int8_weights, {"x": rows_of(2, 256)}),
    "int8_embedding": (
        onnx_models.int8_embedding,
        {"ids": np.random.default_rng(0).integers(0, 300, (2, 5))},
    ),
    "branch_yes": (onnx_models.two_branches, {"x": rows_of(2, 32), "flag": np.array(True)}),
    "branch_no": (onnx_models.two_branches, {"x": rows_of(2, 32), "flag": np.array(False)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_in_any_pages_give_the_same_bits_and_those_of_plain_onnx_runtime(
    tmp_path: Path, pages: HostPages, name: str
) -> None:
    make, inputs = MODELS[name]
    session = open_session(pages, compiled(tmp_path, make()))
    assert session.num_pages == 1
    first: list[bytes] | None = None
    for page in (0, 3, 1, 3, 2):
        session.load([page])
        outputs = session.run(inputs)
        session.evict()
        first = first or [output.tobytes() for output in outputs]
        assert [output.tobytes() for output in outputs] == first
    for output, expected in zip(outputs, plain_outputs(make(), inputs), strict=True):
        np.testing.assert_allclose(output, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", MODELS)
def test_the_pages_are_the_weights_and_there_is_no_copy(
    tmp_path: Path, pages: HostPages, name: str
) -> None:
    make, inputs = MODELS[name]
    session = open_session(pages, compiled(tmp_path, make()))
    session.load([2])
    before = session.run(inputs)
    alias = pages.reserve(PAGE)
    pages.map(alias, [2])
    alias.bytes_at(0, PAGE)[:] = 0
    after = session.run(inputs)
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    session.evict()
    session.load([2])
    for a, b in zip(before, session.run(inputs), strict=True):
        assert np.array_equal(a, b)


def test_a_session_without_its_pages_refuses_to_run(tmp_path: Path, pages: HostPages) -> None:
    session = open_session(pages, compiled(tmp_path, onnx_models.mlp()))
    with pytest.raises(NotResident):
        session.run({"x": rows_of(1)})
    session.load([0])
    session.run({"x": rows_of(1)})
    session.evict()
    with pytest.raises(NotResident):
        session.run({"x": rows_of(1)})


def test_threads_share_an_execution_and_the_answer_is_the_same(
    tmp_path: Path, pages: HostPages
) -> None:
    stored = compiled(tmp_path, onnx_models.mlp())
    session = PagedSession(
        pages,
        graph_path=stored.graph_path,
        weights_path=stored.weights_path,
        weights=stored.artifact.weights,
        threads=3,
    )
    assert session._session.get_session_options().intra_op_num_threads == 3
    assert open_session(pages, stored)._session.get_session_options().intra_op_num_threads == 1
    session.load([0])
    (output,) = session.run({"x": rows_of(3)})
    (expected,) = plain_outputs(onnx_models.mlp(), {"x": rows_of(3)})
    np.testing.assert_allclose(output, expected, rtol=RTOL, atol=ATOL)


def test_a_failed_load_leaves_the_session_without_pages(tmp_path: Path, pages: HostPages) -> None:
    session = open_session(pages, compiled(tmp_path, onnx_models.mlp()))
    with pytest.raises(ValueError, match="not all in"):
        session.load([4])
    with pytest.raises(NotResident):
        session.run({"x": rows_of(1)})


def test_a_model_larger_than_a_page_lies_across_pages_in_any_order(
    tmp_path: Path, pages: HostPages
) -> None:
    model = onnx_models.mlp(hidden=8000)
    session = open_session(pages, compiled(tmp_path, model))
    assert session.num_pages == 3
    inputs = {"x": rows_of(2)}
    answers = []
    for placed in ([0, 1, 2], [3, 1, 0], [2, 0, 3]):
        session.load(placed)
        answers.append(session.run(inputs)[0])
        session.evict()
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])
    expected = plain_outputs(model, inputs)[0]
    np.testing.assert_allclose(answers[0], expected, rtol=RTOL, atol=ATOL * np.abs(expected).max())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    limits = "max_batch_size: 4"
    write_model(directory / "models", "mlp", onnx_models.mlp(), limits)
    write_model(directory / "models", "other", onnx_models.mlp(seed=50), limits)
    write_model(directory / "models", "lookup", onnx_models.lookup(), limits)
    write_model(directory / "models", "recurrent", onnx_models.recurrent(), limits)
    write_model(directory / "models", "types", onnx_models.every_type(), limits)
    write_model(directory / "models", "fixed", onnx_models.mlp(rows=1))
    write_model(directory / "models", "big", onnx_models.int8_weights(1500), "max_batch_size: 1")
    write_model(directory / "models", "broken", onnx_models.unknown_operator())
    return directory


@pytest.fixture
def backend(repository: Path) -> Iterator[OnnxRuntimeBackend]:
    cache = repository / "cache"
    specs = compile_repository(repository / "models", cache, page_bytes=PAGE, quiet=True)
    opened = OnnxRuntimeBackend(specs=specs, cache_dir=cache, cache_bytes=2 * PAGE, page_bytes=PAGE)
    yield opened
    opened.close()


def test_a_worker_of_two_threads_serves_what_was_compiled_for_two(
    repository: Path, tmp_path: Path
) -> None:
    specs = compile_repository(
        repository / "models", tmp_path, page_bytes=PAGE, threads=2, quiet=True, only="mlp"
    )
    how = {"specs": specs, "cache_dir": tmp_path, "cache_bytes": 2 * PAGE, "page_bytes": PAGE}
    two = OnnxRuntimeBackend(**how, threads=2)
    try:
        two.load("mlp", [0])
        ((output,),) = infer(two, "mlp", [[rows_of(2)]])
        expected = plain_outputs(onnx_models.mlp(), {"x": rows_of(2)})[0]
        np.testing.assert_allclose(output, expected, rtol=RTOL, atol=ATOL)
        assert two._sessions["mlp"]._session.get_session_options().intra_op_num_threads == 2
    finally:
        two.close()
    one = OnnxRuntimeBackend(**how)
    assert "artifact is missing" in str(one.models["mlp"].unavailable_reason)
    one.close()


def test_the_device_says_what_it_is(backend: OnnxRuntimeBackend) -> None:
    assert backend.device.kind == "cpu"
    assert (backend.device.page_bytes, backend.device.total_pages) == (PAGE, 2)


def test_models_take_turns_in_the_pages_and_answer_right(backend: OnnxRuntimeBackend) -> None:
    inputs = rows_of(2)
    expected = {
        "mlp": plain_outputs(onnx_models.mlp(), {"x": inputs})[0],
        "other": plain_outputs(onnx_models.mlp(seed=50), {"x": inputs})[0],
    }
    for page in (0, 1, 0, 1):
        for model, answer in expected.items():
            assert backend.load(model, [page]) > 0
            ((output,),) = infer(backend, model, [[inputs]])
            np.testing.assert_allclose(output, answer, rtol=RTOL, atol=ATOL)
            backend.evict(model)


def mapped_files() -> int:
    """How many maps of weights' blobs this process has."""
    return Path("/proc/self/maps").read_text().count("weights.bin")


def test_what_is_released_is_gone_and_comes_back_with_the_next_load(
    backend: OnnxRuntimeBackend,
) -> None:
    """Beside a model that has the device's first page all the time."""
    backend.load("other", [0])
    inputs = rows_of(2)
    num_maps = mapped_files()
    for page in (1, 1):
        backend.load("mlp", [page])
        ((before,),) = infer(backend, "mlp", [[inputs]])
        backend.evict("mlp")
        num_bytes = backend.release("mlp")
        assert 64 * 64 * 4 < num_bytes <= PAGE
        assert mapped_files() == num_maps - 1
        assert backend.release("mlp") == 0, "there is nothing left"
        backend.load("mlp", [page])
        assert mapped_files() == num_maps
        ((after,),) = infer(backend, "mlp", [[inputs]])
        assert (before == after).all()
        backend.evict("mlp")
    ((still,),) = infer(backend, "other", [[inputs]])
    expected = plain_outputs(onnx_models.mlp(seed=50), {"x": inputs})[0]
    np.testing.assert_allclose(still, expected, rtol=RTOL, atol=ATOL)


def test_a_released_model_whose_artifact_vanished_cannot_be_loaded_until_it_is_back(
    backend: OnnxRuntimeBackend, repository: Path
) -> None:
    backend.release("mlp")
    (artifact,) = (repository / "cache").glob("mlp-*/artifact.json")
    content = artifact.read_bytes()
    artifact.unlink()
    with pytest.raises(EngineError, match="mlp: its compiled artifact is missing"):
        backend.load("mlp", [0])
    artifact.write_bytes(content)
    backend.load("mlp", [0])
    assert infer(backend, "mlp", [[rows_of(1)]])


def test_a_model_without_a_session_has_nothing_to_release(backend: OnnxRuntimeBackend) -> None:
    assert backend.release("broken") == 0


def test_each_request_of_a_batch_gets_its_own_rows(backend: OnnxRuntimeBackend) -> None:
    backend.load("mlp", [0])
    requests = [[rows_of(1, seed=1)], [rows_of(2, seed=2)], [rows_of(1, seed=3)]]
    answers = infer(backend, "mlp", requests)
    for (inputs,), (output,) in zip(requests, answers, strict=True):
        expected = plain_outputs(onnx_models.mlp(), {"x": inputs})[0]
        np.testing.assert_allclose(output, expected, rtol=RTOL, atol=ATOL)


def test_padding_changes_nobodys_answer(backend: OnnxRuntimeBackend) -> None:
    backend.load("mlp", [0])
    request = [rows_of(1, seed=5)]
    ((padded,),) = infer(backend, "mlp", [request], batch_size=4)
    expected = plain_outputs(onnx_models.mlp(), {"x": request[0]})[0]
    assert padded.shape == (1, 10)
    np.testing.assert_allclose(padded, expected, rtol=RTOL, atol=ATOL)


def test_rows_lie_along_each_tensors_own_axis(backend: OnnxRuntimeBackend) -> None:
    backend.load("recurrent", [1])
    gain = np.array(2.0, np.float32)
    requests = [
        [rows_of(n, 32, seed=n), np.stack([rows_of(n, 32, n + 10), rows_of(n, 32, n + 20)]), gain]
        for n in (2, 1)
    ]
    for batch_size in (3, 4):
        answers = infer(backend, "recurrent", requests, batch_size)
        for (x, state, _), outputs in zip(requests, answers, strict=True):
            inputs = {"x": x, "state": state, "gain": gain}
            expected = plain_outputs(onnx_models.recurrent(), inputs)
            for output, wanted in zip(outputs, expected, strict=True):
                assert output.shape == wanted.shape
                np.testing.assert_allclose(output, wanted, rtol=RTOL, atol=ATOL)


def test_an_engine_that_throws_on_one_input_says_so_and_goes_on(
    backend: OnnxRuntimeBackend,
) -> None:
    backend.load("lookup", [0])
    good, bad = np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 99]])
    with pytest.raises(EngineError, match=r"lookup: .*99"):
        infer(backend, "lookup", [[good], [bad]])
    ((output,),) = infer(backend, "lookup", [[good]])
    expected = plain_outputs(onnx_models.lookup(), {"ids": good})[0]
    np.testing.assert_allclose(output, expected, rtol=RTOL, atol=ATOL)


def test_an_execution_without_weights_is_an_error_and_not_a_crash(
    backend: OnnxRuntimeBackend,
) -> None:
    with pytest.raises(EngineError, match="mlp: the weights are not resident"):
        infer(backend, "mlp", [[rows_of(1)]])
    backend.load("mlp", [0])
    backend.evict("mlp")
    with pytest.raises(EngineError, match="mlp: the weights are not resident"):
        infer(backend, "mlp", [[rows_of(1)]])


def test_staging_needs_no_weights(backend: OnnxRuntimeBackend) -> None:
    """The input phase may run while the weights are still on their way."""
    tensors, views = packed([rows_of(1)])
    staged = backend.stage(order("mlp", [1]), [tensors], [views])
    backend.load("mlp", [1])
    assert backend.execute(staged) > 0


def test_output_buffers_outlive_the_next_batch(backend: OnnxRuntimeBackend) -> None:
    """They are sent without copying, while the next batch runs in the same arena."""
    backend.load("mlp", [0])
    tensors, views = packed([rows_of(4, seed=1)])
    staged = backend.stage(order("mlp", [4]), [tensors], [views])
    backend.execute(staged)
    _, buffers = backend.unstage(staged)
    before = [bytes(buffer) for buffer in buffers]
    del staged
    for seed in range(2, 20):
        infer(backend, "mlp", [[rows_of(4, seed=seed)]])
    assert [bytes(buffer) for buffer in buffers] == before


def test_broken_models_are_listed_and_cannot_be_loaded(backend: OnnxRuntimeBackend) -> None:
    assert "Conjure" in str(backend.models["broken"].unavailable_reason)
    with pytest.raises(EngineError, match="broken cannot be served"):
        backend.load("broken", [0])


def test_a_model_larger_than_the_cache_keeps_its_spec_but_is_never_loaded(
    backend: OnnxRuntimeBackend,
) -> None:
    big = backend.models["big"]
    assert big.unavailable_reason is None
    assert big.num_pages(PAGE) > backend.device.total_pages
    with pytest.raises(EngineError, match="big cannot be served"):
        backend.load("big", [0, 1])


def test_a_model_whose_artifact_vanished_is_unavailable(repository: Path, tmp_path: Path) -> None:
    cache = repository / "cache"
    specs = compile_repository(repository / "models", cache, page_bytes=PAGE, quiet=True)
    elsewhere = OnnxRuntimeBackend(
        specs=specs, cache_dir=tmp_path, cache_bytes=2 * PAGE, page_bytes=PAGE
    )
    reasons = {name: spec.unavailable_reason for name, spec in elsewhere.models.items()}
    elsewhere.close()
    assert reasons["mlp"] == "its compiled artifact is missing or damaged"


def test_wrong_input_is_refused_before_the_engine_sees_it(backend: OnnxRuntimeBackend) -> None:
    tensors, views = packed([rows_of(1, 63)])
    with pytest.raises(InvalidInput, match=r"x: shape \[1, 63\] does not fit the model's"):
        backend.stage(order("mlp", [1]), [tensors], [views])


def test_a_model_made_ready_beside_the_pages_serves_and_goes_again(tmp_path: Path) -> None:
    """While every page belongs to somebody else."""
    repository, cache = tmp_path / "models", tmp_path / "cache"
    write_model(repository, "m", onnx_models.mlp())
    specs = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    backend = OnnxRuntimeBackend(specs=[], cache_dir=cache, cache_bytes=PAGE, page_bytes=PAGE)
    wanted = msgspec.structs.replace(specs[0], name="m/1/abc")
    backend.add(backend.prepare(wanted))
    assert backend.models == {"m/1/abc": wanted}
    backend.load("m/1/abc", [0])
    inputs = rows_of(2)
    ((output,),) = infer(backend, "m/1/abc", [[inputs]])
    np.testing.assert_allclose(
        output, plain_outputs(onnx_models.mlp(), {"x": inputs})[0], rtol=RTOL, atol=ATOL
    )
    trial = backend.stage(Infer(1, "m/1/abc", 4, (), (), 0, 0, 0, 0), (), ())
    assert backend.execute(trial) > 0
    assert backend.unstage(trial) == ((), [])
    with pytest.raises(InvalidInput, match="a trial of 17 rows of shape class 0"):
        backend.stage(Infer(1, "m/1/abc", 17, (), (), 0, 0, 0, 0), (), ())
    backend.evict("m/1/abc")
    assert backend.release("m/1/abc") > 0
    backend.remove("m/1/abc")
    assert backend.models == {}
    backend.add(backend.prepare(wanted))
    backend.remove("m/1/abc")
    with pytest.raises(NotCompiled):
        backend.prepare(msgspec.structs.replace(wanted, content_hash="another"))
    large = OnnxRuntimeBackend(specs=[], cache_dir=cache, cache_bytes=PAGE, page_bytes=PAGE)
    write_model(repository, "large", onnx_models.mlp(hidden=8000))
    specs = compile_repository(repository, cache, page_bytes=PAGE, quiet=True)
    large.add(large.prepare(specs[0]))
    assert specs[0].name in large.models
    for each in (backend, large):
        each.close()
