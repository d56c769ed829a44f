"""Lies in the binary framing, on both routes: a 4xx that says what is wrong, or a sound request."""

import asyncio
import json
import math
import zlib
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.inference.datatypes import DATATYPES, check_binary
from scheduler.spec import ModelSpec, TensorSpec
from tests.gateway.http_doubles import Bench, model_spec

SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        model_spec("mlp"),
        model_spec("scalar", inputs=(TensorSpec("x", "INT32", (), None),)),
        model_spec("free", inputs=(TensorSpec("x", "UINT8", (-1, -1, 2)),)),
        model_spec("freer", inputs=(TensorSpec("x", "INT16", (-1, -1, -1)),)),
        model_spec("shared", inputs=(TensorSpec("x", "BYTES", (-1, -1), None),)),
        model_spec(
            "types",
            inputs=(
                TensorSpec("größe", "BYTES", (-1, 2)),
                TensorSpec("x", "FP16", (-1, 2)),
                TensorSpec("flag", "BOOL", (2, -1), 1),
                TensorSpec("b", "BF16", (-1,)),
            ),
        ),
    )
}
SIZES = st.sampled_from(
    [-1, 0, 1, 2, 3, 4, 5, 2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**64, 10**4000, -(10**4000)]
)
SHAPES = st.lists(SIZES, max_size=4)
NAMES = st.one_of(st.sampled_from(["x", "größe", "flag", "b", "X", ""]), st.text(max_size=5))
KINDS = st.one_of(st.sampled_from([*DATATYPES]), st.text(max_size=4))
BLOBS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([bytes(n) for n in (1, 2, 4, 8, 16, 32)]),
    st.lists(st.binary(max_size=4), max_size=4).map(
        lambda elements: b"".join(len(e).to_bytes(4, "little") + e for e in elements)
    ),
    st.just(b"\xff\xff\xff\xff"),
)


@st.composite
def sound_inputs(draw: st.DrawFn, spec: ModelSpec) -> tuple[list[dict[str, Any]], list[bytes]]:
    """What the model takes, so that a single lie beside it is reached."""
    rows = draw(st.integers(1, 2))
    tensors, blobs = [], []
    for tensor in spec.inputs:
        shape = [draw(st.sampled_from([0, 2])) if size == -1 else size for size in tensor.shape]
        if tensor.batch_axis is not None:
            shape[tensor.batch_axis] = rows
        count = math.prod(shape)
        num_bytes = DATATYPES[tensor.datatype].num_bytes
        blob = b"\1\0\0\0a" * count if num_bytes is None else bytes(count * num_bytes)
        tensors.append(
            {
                "name": tensor.name,
                "shape": shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(blob)},
            }
        )
        blobs.append(blob)
    return tensors, blobs


@st.composite
def lies(draw: st.DrawFn) -> tuple[str, bytes, str, bool]:
    """(model, body, header length, whether it is deflated)."""
    model = draw(st.sampled_from([*SPECS]))
    tensors, blobs = draw(sound_inputs(SPECS[model]))
    for _ in range(draw(st.integers(0, 2))):
        index = draw(st.integers(0, len(tensors) - 1))
        tensor = tensors[index]
        match draw(st.integers(0, 8)):
            case 0:
                tensor["shape"] = draw(SHAPES)
            case 1:
                tensor["datatype"] = draw(KINDS)
            case 2:
                tensor["name"] = draw(NAMES)
            case 3:
                blobs[index] = draw(BLOBS)
            case 4:
                blobs[index] = draw(BLOBS)
                tensor["parameters"] = {"binary_data_size": len(blobs[index])}
            case 5:
                tensor["parameters"] = {
                    "binary_data_size": draw(st.one_of(SIZES, st.just(1.5), st.just("4")))
                }
            case 6:
                tensors.append(dict(tensor))
                blobs.append(blobs[index])
            case 7 if tensor["shape"]:  # all else fits: any other rank is refused at once
                axis = draw(st.integers(0, len(tensor["shape"]) - 1))
                tensor["shape"] = [
                    *tensor["shape"][:axis],
                    draw(SIZES),
                    *tensor["shape"][axis + 1 :],
                ]
            case _:
                tensor["data"] = draw(st.sampled_from([[], [1], [[1, 2]], "a", None, {}]))
    request = {"model": model, "inputs": tensors}
    text = json.dumps(request, ensure_ascii=draw(st.booleans())).encode()
    body = b"".join((text, *blobs)) + draw(st.sampled_from([b"", b"", b"", b"\0"]))
    lengths = st.one_of(
        st.just(str(len(text))),
        st.just(str(len(text))),
        st.sampled_from(["-1", "0", "1", "", "x", "1e3", "+5", "9" * 30, str(len(body) + 1)]),
    )
    is_packed = draw(st.booleans())
    return model, zlib.compress(body) if is_packed else body, draw(lengths), is_packed


@settings(max_examples=400, deadline=None)
@given(lies(), st.booleans())
def test_no_lie_is_a_500_and_what_is_let_in_is_sound(
    lie: tuple[str, bytes, str, bool], is_v2: bool
) -> None:
    model, body, header_length, is_packed = lie

    async def story() -> None:
        bench = Bench(*SPECS.values())
        headers = {"inference-header-content-length": header_length}
        if is_packed:
            headers["content-encoding"] = "deflate"
        path = f"/v2/models/{model}/infer" if is_v2 else "/infer"
        client = await bench.post(body, headers=headers, path=path)
        if not bench.dispatcher.submitted:
            assert client.status in (400, 404), client.body
            assert client.json["error"]
            return
        (submitted,) = bench.dispatcher.submitted
        spec = SPECS[submitted.model]
        assert len(submitted.buffers) == len(submitted.tensors) == len(spec.inputs)
        for tensor, meta, buffer in zip(
            spec.inputs, submitted.tensors, submitted.buffers, strict=True
        ):
            assert meta.num_bytes == len(buffer)
            assert msgspec.msgpack.encode(meta)  # or it would break on its way to the worker
            np.empty(meta.shape, np.int64)
            check_binary(DATATYPES[tensor.datatype], buffer, meta.shape, math.prod(meta.shape))
        client.hang_up()
        assert client.task is not None
        await client.task

    asyncio.run(story())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*SPECS]), st.binary(max_size=64))
def test_raw_mode_takes_any_bytes(model: str, body: bytes) -> None:
    async def story() -> None:
        bench = Bench(*SPECS.values())
        headers = {"inference-header-content-length": "0"}
        client = await bench.post(body, headers=headers, path=f"/v2/models/{model}/infer")
        if bench.dispatcher.submitted:
            client.hang_up()
            assert client.task is not None
            await client.task
        else:
            assert client.status == 400

    asyncio.run(story())
