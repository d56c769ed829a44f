from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtest import graphs
from loadtest.reference import sample_rows, session_of


@pytest.fixture
def saved(tmp_path: Path):
    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path))
        return path

    return save


def test_the_mlp_is_what_its_sizes_say(saved):
    rows, outputs = sample_rows(saved(graphs.mlp(sizes=(64, 64, 10), seed=1)), 1)
    assert rows[0].shape == (1, 64)
    assert outputs[0].shape == (1, 10)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    def weights(seed: int) -> bytes:
        return graphs.mlp(sizes=(8, 8, 4), seed=seed).SerializeToString()

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)


@pytest.mark.parametrize("layers", [2, 60])
def test_a_chain_of_any_length_answers_differently_to_different_inputs(saved, layers: int):
    _, (one, other) = sample_rows(saved(graphs.conv_chain(layers=layers, channels=8, size=8)), 2)
    assert np.isfinite(one).all()
    assert not np.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_rows_of_a_batch_do_not_depend_on_each_other(saved):
    session = session_of(saved(graphs.conv_chain(layers=3, channels=8, size=8)))
    rows = np.random.default_rng(3).standard_normal((4, 1, 8, 8), np.float32)
    (together,) = session.run(None, {"x": rows})
    alone = [session.run(None, {"x": row[None]})[0][0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_resnet18_has_the_weights_of_a_resnet18():
    model = graphs.resnet((2, 2, 2, 2))
    num_weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    # 11,689,512 with batch normalisation, which takes 9,600 and gives 4,800 as biases; and two
    # numbers that scale the picture
    assert num_weights == 11_689_512 - 9_600 + 4_800 + 2
