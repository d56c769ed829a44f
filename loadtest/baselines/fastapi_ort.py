"""Plain FastAPI with ONNX Runtime, as tutorials show it; and its best known cure for overload.

Environment: BASELINE_MODELS is NAME=PATH,NAME=PATH. `/json/{model}` is the tutorial: a typed body,
a sync endpoint, FastAPI's thread pool. `/raw/{model}` takes raw values, gives raw float32, runs the
model on one executor thread, and answers 503 at once when `limit` requests are outstanding (0: no
limit), which `PUT /limit/{n}` sets, or when a model has as many as BASELINE_LIMITS, NAME=N,NAME=N,
allows it. It also runs as a peer, so it imports nothing of ours.
"""

import asyncio
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, HTTPException, Request, Response

app = FastAPI()
_executor = ThreadPoolExecutor(max_workers=1)


class _Outstanding:
    limit = 0
    of_model: ClassVar[Counter[str]] = Counter()


def _pairs(variable: str) -> dict[str, str]:
    items = os.environ.get(variable, "").split(",")
    return {name: value for name, _, value in (item.partition("=") for item in items if item)}


def _session(path: str) -> Any:  # ort.InferenceSession, a library without types
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


_sessions: dict[str, Any] = {
    name: _session(path) for name, path in _pairs("BASELINE_MODELS").items()
}
_limits = {name: int(limit) for name, limit in _pairs("BASELINE_LIMITS").items()}
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
    if _is_full(model):
        raise HTTPException(503, "too many outstanding requests")
    _Outstanding.of_model[model] += 1
    try:
        row = np.frombuffer(await request.body(), _dtype(model)).reshape(_row_shape(model))
        loop = asyncio.get_running_loop()
        output = await loop.run_in_executor(_executor, _run, model, row)
    finally:
        _Outstanding.of_model[model] -= 1
    return Response(output, media_type="application/octet-stream")


def _is_full(model: str) -> bool:
    limit, of_model = _Outstanding.limit, _Outstanding.of_model
    if limit and of_model.total() >= limit:
        return True
    return model in _limits and of_model[model] >= _limits[model]


def _run(model: str, row: Any) -> bytes:
    (output,) = _sessions[model].run(None, {_inputs[model].name: row})
    data: bytes = output.tobytes()
    return data


def _dtype(model: str) -> type[np.generic]:
    return np.uint8 if _inputs[model].type == "tensor(uint8)" else np.float32


def _row_shape(model: str) -> list[int]:
    return [1, *_inputs[model].shape[1:]]
