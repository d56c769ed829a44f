"""TorchServe's handler: a body of raw values in, raw float32 out. The launcher writes the rest."""

from typing import Any

from peer_models import MODELS, OrtModel

_models: dict[str, OrtModel] = {}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    name = context.manifest["model"]["modelName"]
    if name not in _models:
        assert name in MODELS
        _models[name] = OrtModel(name)
    if data is None:
        return None
    model = _models[name]
    rows = [model.row(bytes(item.get("body") or item["data"])) for item in data]
    return [answer.tobytes() for answer in model.run_rows(rows)]
