"""BentoML: an API per model; tuned: adaptive batching with a latency bound, and max_concurrency."""

from collections.abc import Callable
from typing import Any

import bentoml
from peer_models import CONFIG, IS_TUNED, MODELS, TIMEOUT_S, OrtModel


def _api(name: str) -> Any:
    def predict(self: Any, data: list[str]) -> list[str]:
        answers: list[str] = self.models[name].run_many_base64(data)
        return answers

    settings: dict[str, Any] = {"route": f"/{name}"}
    if IS_TUNED and MODELS[name]["max_batch"] > 1:  # BentoML has no batches of one
        settings |= {
            "batchable": True,
            "max_batch_size": MODELS[name]["max_batch"],
            "max_latency_ms": max(1, round(MODELS[name]["timeout_ms"])),
        }
    predict.__name__ = name
    decorate: Callable[[Any], Any] = bentoml.api(**settings)
    return decorate(predict)


def _init(self: Any) -> None:
    self.models = {name: OrtModel(name) for name in MODELS}


# A timeout of 60 s is BentoML's own default; tuned, a request may not take longer than its SLO.
TRAFFIC: dict[str, Any] = {"timeout": 60}
if IS_TUNED:
    TRAFFIC = {"timeout": max(1, round(TIMEOUT_S)), "max_concurrency": CONFIG["limit"]}

Peer = bentoml.service(name="peer", workers=1, traffic=TRAFFIC)(
    type("Peer", (), {"__init__": _init, **{name: _api(name) for name in MODELS}})
)
