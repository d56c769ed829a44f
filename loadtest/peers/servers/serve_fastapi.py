"""FastAPI with ONNX Runtime on a thread; tuned: at most `limit` outstanding a model."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from peer_models import IS_TUNED, MODELS, PORT, OrtModel

app = FastAPI()
executor = ThreadPoolExecutor(max_workers=1)
models = {name: OrtModel(name) for name in MODELS}
outstanding: Counter[str] = Counter()


@app.get("/ready")
def ready() -> list[str]:
    return list(models)


@app.post("/{model}")
async def infer(model: str, request: Request) -> Response:
    if IS_TUNED and outstanding[model] >= MODELS[model]["limit"]:
        raise HTTPException(503, "too many outstanding requests")
    outstanding[model] += 1
    try:
        data = await request.body()
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(executor, models[model].run_bytes, data)
    finally:
        outstanding[model] -= 1
    return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
