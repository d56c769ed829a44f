"""LitServe: an API per model; tuned: batching and the request timeout of its documentation."""

import litserve
from peer_models import BATCH_WAIT_S, IS_TUNED, MODELS, PORT, TIMEOUT_S, OrtModel


class OrtApi(litserve.LitAPI):
    def __init__(self, name: str) -> None:
        batch = MODELS[name]["max_batch"] if IS_TUNED else 1
        super().__init__(
            max_batch_size=batch,
            batch_timeout=BATCH_WAIT_S if batch > 1 else 0.0,
            api_path=f"/{name}",
        )
        self.name = name
        self.is_batched = batch > 1

    def setup(self, device: str) -> None:
        self.model = OrtModel(self.name)

    def decode_request(self, request: dict[str, str]) -> str:
        return request["data"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, data: str | list[str]) -> list[str]:
        return self.model.run_many_base64([data] if isinstance(data, str) else data)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str | list[str]) -> dict[str, str]:
        return {"data": output if isinstance(output, str) else output[0]}


if __name__ == "__main__":
    server = litserve.LitServer(
        [OrtApi(name) for name in MODELS],
        accelerator="cpu",
        workers_per_device=1,
        timeout=TIMEOUT_S if IS_TUNED else False,
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, num_api_servers=1)
