"""MLServer's runtime: rows as base64, so that its adaptive batching can put requests together.

It finds its settings in the files that the launcher writes: settings.json, and a folder a model.
"""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from peer_models import OrtModel


class OrtRuntime(MLModel):
    async def load(self) -> bool:
        self.model = OrtModel(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = [
            item.decode() if isinstance(item, bytes) else item for item in payload.inputs[0].data
        ]
        answers = self.model.run_many_base64(texts)
        output = ResponseOutput(
            name=self.model.output, shape=[len(answers), 1], datatype="BYTES", data=answers
        )
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
