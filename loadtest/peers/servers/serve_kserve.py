"""KServe's model server: a model each; it has no batching and no limits (its sidecars have)."""

from typing import Any

import kserve
from peer_models import MODELS, PORT, OrtModel


class OrtKserve(kserve.Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = OrtModel(name)
        self.ready = True

    async def predict(
        self, payload: kserve.InferRequest, headers: Any = None, response_headers: Any = None
    ) -> kserve.InferResponse:
        answer = self.model.run(payload.inputs[0].as_numpy())
        output = kserve.InferOutput(self.model.output, list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return kserve.InferResponse(payload.id or "", self.name, [output])


if __name__ == "__main__":
    kserve.ModelServer(http_port=PORT, workers=1, enable_grpc=False).start(
        [OrtKserve(name) for name in MODELS]
    )
