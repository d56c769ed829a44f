import numpy as np
import pytest

from gpuworker.engines.datatypes import Array
from gpuworker.sample_inputs import DeclaredTensor, ProbeError
from gpuworker.shape_probe import ProbedModel, Run, probe

X = DeclaredTensor("x", "FP32", ("n", 4))
Y = DeclaredTensor("y", "FP32", ("n", 4))
Z = DeclaredTensor("z", "FP32", (None,))


def axes(probed: ProbedModel) -> tuple[list[int | None], list[int | None]]:
    return [t.batch_axis for t in probed.inputs], [t.batch_axis for t in probed.outputs]


def test_rows_that_mind_their_own_business_can_be_batched() -> None:
    probed = probe(lambda inputs: [inputs["x"] * 2], [X], [Y], {})
    assert axes(probed) == ([0], [0])
    assert (probed.can_batch, probed.note) == (True, "")


def test_rounding_is_not_dependence() -> None:
    def run(inputs: dict[str, Array]) -> list[Array]:
        return [inputs["x"] * np.float32(1 + 1e-6 * len(inputs["x"]))]

    assert probe(run, [X], [Y], {}).can_batch


@pytest.mark.parametrize(
    "run",
    [
        lambda inputs: [inputs["x"] - inputs["x"].mean()],
        lambda inputs: [inputs["x"] * np.float32(1 + 1e-2 * len(inputs["x"]))],
        lambda inputs: [inputs["x"][::-1]],
        lambda inputs: [np.argsort(inputs["x"], axis=0)],
    ],
    ids=["mean of the batch", "number of rows", "order of rows", "rank within the batch"],
)
def test_rows_that_mind_each_other_cannot(run: Run) -> None:
    probed = probe(run, [X], [Y], {})
    assert not probed.can_batch
    assert probed.note == "a row of output 0 depends on its batch-mates"
    assert axes(probed)[0] == [0]


def test_an_output_shared_by_all_rows_must_be_the_same_for_each() -> None:
    constant = np.array([1.0, 2.0], np.float32)
    probed = probe(lambda inputs: [inputs["x"], constant], [X], [Y, Z], {})
    assert axes(probed) == ([0], [0, None])
    assert probed.can_batch
    assert not probe(
        lambda inputs: [inputs["x"], inputs["x"].sum(keepdims=True)[0]], [X], [Y, Z], {}
    ).can_batch


def test_outputs_whose_size_depends_on_content_are_served_alone() -> None:
    def run(inputs: dict[str, Array]) -> list[Array]:
        return [np.flatnonzero(inputs["x"] > 0.5).astype(np.float32)]

    probed = probe(run, [X], [Z], {})
    assert (probed.can_batch, probed.note) == (False, "output shapes depend on content")


def test_another_axis_is_tried_where_the_first_does_not_take_more_rows() -> None:
    """[time, batch], with nothing in the names to tell."""

    def run(inputs: dict[str, Array]) -> list[Array]:
        if inputs["x"].shape[0] != 32:
            raise RuntimeError(f"32 steps, not {inputs['x'].shape[0]}")
        return [inputs["x"].sum(axis=0)]

    probed = probe(
        run,
        [DeclaredTensor("x", "FP32", (None, None))],
        [DeclaredTensor("y", "FP32", (None,))],
        {"x": ((32,),)},
    )
    assert axes(probed) == ([1], [0])
    assert probed.can_batch


def test_a_shared_symbol_is_the_batch_wherever_it_stands() -> None:
    def run(inputs: dict[str, Array]) -> list[Array]:
        return [inputs["x"] + inputs["state"].sum(axis=0)]

    probed = probe(run, [X, DeclaredTensor("state", "FP32", (2, "n", 4))], [Y], {})
    assert axes(probed) == ([0, 1], [0])
    assert probed.can_batch


def test_inputs_that_share_a_size_share_the_configured_one() -> None:
    ids = DeclaredTensor("ids", "INT64", ("n", "length"))
    mask = DeclaredTensor("mask", "INT64", ("n", "length"))
    out = DeclaredTensor("y", "INT64", ("n", "length"))
    probed = probe(
        lambda inputs: [inputs["ids"] * inputs["mask"]], [ids, mask], [out], {"ids": ((7,), (9,))}
    )
    assert [sample.row_shapes for sample in probed.samples] == [((7,), (7,)), ((9,), (9,))]


def test_integers_get_smaller_until_the_model_takes_them() -> None:
    def run(inputs: dict[str, Array]) -> list[Array]:
        if inputs["x"].max() >= 2:
            raise RuntimeError("index out of bounds")
        return [inputs["x"]]

    probed = probe(
        run, [DeclaredTensor("x", "INT64", ("n", 4))], [DeclaredTensor("y", "INT64", ("n", 4))], {}
    )
    assert probed.samples[0].integers_below == 2


def test_a_model_that_takes_nothing_says_why_to_the_likeliest_input() -> None:
    def run(inputs: dict[str, Array]) -> list[Array]:
        raise RuntimeError(f"not with {inputs['x'].shape}")

    with pytest.raises(ProbeError, match=r"inputs \[\(4,\)\]: not with \(1, 4\)"):
        probe(run, [X], [Y], {})
