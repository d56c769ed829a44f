"""Triton's Python backend: a model.py for each model; batches are what its scheduler made."""

from typing import Any

import triton_python_backend_utils as pb_utils
from peer_models import OrtModel


class TritonPythonModel:
    def initialize(self, args: dict[str, Any]) -> None:
        self.model = OrtModel(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        name = self.model.input.name
        rows = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.model.output, answer)])
            for answer in self.model.run_rows(rows)
        ]
