"""The Open Inference Protocol's infer route on plain FastAPI with ONNX Runtime, as one writes it.

What tritonclient needs to be served, and no more: tensors as JSON and binary, both ways. No SLO, no
batching, no checks. Environment: BASELINE_MODELS is NAME=PATH,NAME=PATH.
"""

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response

app = FastAPI()
HEADER_LENGTH = "Inference-Header-Content-Length"


def _session(path: str) -> Any:  # ort.InferenceSession, a library without types
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


_sessions: dict[str, Any] = {
    name: _session(path)
    for name, _, path in (
        item.partition("=") for item in os.environ.get("BASELINE_MODELS", "").split(",") if item
    )
}


@app.get("/ready")
def ready() -> dict[str, list[str]]:
    return {"models": list(_sessions)}


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: Request) -> Response:
    body = await request.body()
    length = int(request.headers.get(HEADER_LENGTH, len(body)))
    header = json.loads(body[:length])
    offset = length
    inputs = {}
    for tensor in header["inputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.asarray(tensor["data"], np.float32)
        else:
            values = np.frombuffer(body, np.float32, size // 4, offset)
            offset += size
        inputs[tensor["name"]] = values.reshape(tensor["shape"])
    session = _sessions[model]
    outputs = session.run(None, inputs)
    names = [output.name for output in session.get_outputs()]
    wanted = {output["name"]: output.get("parameters", {}) for output in header.get("outputs", [])}
    is_binary = header.get("parameters", {}).get("binary_data_output", False)
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in zip(names, outputs, strict=True):
        tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if wanted.get(name, {}).get("binary_data", is_binary):
            blobs.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    text = json.dumps({"model_name": model, "outputs": tensors}).encode()
    if not blobs:
        return Response(text, media_type="application/json")
    return Response(
        b"".join([text, *blobs]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(text))},
    )
