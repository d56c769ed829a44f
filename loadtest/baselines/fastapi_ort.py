"""Plain FastAPI with ONNX Runtime, as tutorials show it; and its best known cure for overload.

Environment: BASELINE_MODELS is NAME=PATH,NAME=PATH. `/json/{model}` is the tutorial: a typed body,
a sync endpoint, FastAPI's thread pool. `/raw/{model}` takes raw values, gives raw float32, runs the
model on one executor thread, and answers 503 at once when `limit` requests are outstanding (0: no
limit); `PUT /limit/{n}` sets that.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, HTTPException, Request, Response

app = FastAPI()
_executor = ThreadPoolExecutor(max_workers=1)


class _Outstanding:
    limit = 0
    count = 0


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
_inputs = {name: session.get_inputs()[0] for name, session in _sessions.items()}


@app.get("/ready")
def ready() -> dict[str, list[str]]:
    return {"models": list(_sessions)}


@app.put("/limit/{limit}")
def set_limit(limit: int) -> dict[str, int]:
    _Outstanding.limit = limit
    return {"limit": limit}


@app.post("/json/{model}")
def infer_json(model: str, body: dict[str, list[float]]) -> dict[str, list[float]]:
    row = np.asarray(body["data"], np.float32).reshape(_row_shape(model))
    (output,) = _sessions[model].run(None, {_inputs[model].name: row})
    return {"data": output.ravel().tolist()}


@app.post("/raw/{model}")
async def infer_raw(model: str, request: Request) -> Response:
    if _Outstanding.limit and _Outstanding.count >= _Outstanding.limit:
        raise HTTPException(503, "too many outstanding requests")
    _Outstanding.count += 1
    try:
        row = np.frombuffer(await request.body(), _dtype(model)).reshape(_row_shape(model))
        loop = asyncio.get_running_loop()
        output = await loop.run_in_executor(_executor, _run, model, row)
    finally:
        _Outstanding.count -= 1
    return Response(output, media_type="application/octet-stream")


def _run(model: str, row: Any) -> bytes:
    (output,) = _sessions[model].run(None, {_inputs[model].name: row})
    data: bytes = output.tobytes()
    return data


def _dtype(model: str) -> type[np.generic]:
    return np.uint8 if _inputs[model].type == "tensor(uint8)" else np.float32


def _row_shape(model: str) -> list[int]:
    return [1, *_inputs[model].shape[1:]]
