"""What holds for every test: nothing is reported to anybody over the network."""

import os

# Tests load ONNX Runtime before gpuworker, which says why.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
