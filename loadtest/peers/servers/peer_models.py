"""What every peer's program shares: its configuration, and ONNX models run by ONNX Runtime.

These programs run in a peer's own environment, so they import nothing of ours but this, and no
more than that environment has. Configuration: the variable PEER_CONFIG is a JSON object,
{"port", "models": {name: {"path", "max_batch", "limit", "queue_timeout_ms"}}, "is_tuned",
"batch_wait_ms", "timeout_ms", "limit"}; limits and timeouts are used by peers that have such.
"""

import base64
import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort

CONFIG: dict[str, Any] = json.loads(os.environ["PEER_CONFIG"])
MODELS: dict[str, dict[str, Any]] = CONFIG["models"]
PORT: int = CONFIG["port"]
IS_TUNED: bool = CONFIG["is_tuned"]
BATCH_WAIT_S: float = CONFIG["batch_wait_ms"] / 1e3
TIMEOUT_S: float = CONFIG["timeout_ms"] / 1e3


class OrtModel:
    """A model with one input and one output, rows along the first axis, on one thread."""

    def __init__(self, name: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = MODELS[name]["path"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0].name
        self.row_shape = [1, *self.input.shape[1:]]
        self.dtype = np.uint8 if self.input.type == "tensor(uint8)" else np.float32
        self.run(np.zeros(self.row_shape, self.dtype))  # the first run allocates

    def row(self, data: bytes) -> Any:
        return np.frombuffer(data, self.dtype).reshape(self.row_shape)

    def run(self, batch: Any) -> Any:
        return self.session.run(None, {self.input.name: batch})[0]

    def run_rows(self, rows: list[Any]) -> list[Any]:
        """Rows as one batch; answers in the same order, each with its batch axis."""
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        answers = self.run(batch)
        return [answers[index : index + 1] for index in range(len(rows))]

    def run_bytes(self, data: bytes) -> bytes:
        answer: bytes = self.run(self.row(data)).tobytes()
        return answer

    def run_many_base64(self, texts: list[str]) -> list[str]:
        answers = self.run_rows([self.row(base64.b64decode(text)) for text in texts])
        return [base64.b64encode(answer.tobytes()).decode() for answer in answers]
