"""mosec: a route per model; tuned: its batches, and --timeout and --capacity as flags."""

import mosec
from peer_models import BATCH_WAIT_S, IS_TUNED, MODELS, OrtModel


def _worker(name: str, is_batched: bool) -> type[mosec.Worker]:
    class OrtWorker(mosec.Worker):
        def __init__(self) -> None:
            self.model = OrtModel(name)

        def deserialize(self, data: bytes) -> bytes:
            return data

        def serialize(self, data: bytes) -> bytes:
            return data

        def forward(self, data: bytes | list[bytes]) -> bytes | list[bytes]:
            if isinstance(data, list):
                rows = [self.model.row(body) for body in data]
                return [answer.tobytes() for answer in self.model.run_rows(rows)]
            return self.model.run_bytes(data)

    # Each is pickled by name for its process, which imports this file anew.
    OrtWorker.__name__ = OrtWorker.__qualname__ = f"Worker_{name}"
    return OrtWorker


BATCHES = {name: MODELS[name]["max_batch"] if IS_TUNED else 1 for name in MODELS}
WORKERS = {name: _worker(name, BATCHES[name] > 1) for name in MODELS}
globals().update({worker.__name__: worker for worker in WORKERS.values()})

if __name__ == "__main__":
    server = mosec.Server()
    server.register_runtime(
        {
            f"/{name}": [
                mosec.Runtime(
                    WORKERS[name],
                    num=1,
                    max_batch_size=BATCHES[name],
                    max_wait_time=max(1, round(BATCH_WAIT_S * 1e3)),
                )
            ]
            for name in MODELS
        }
    )
    server.run()
