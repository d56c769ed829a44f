"""`python -m loadtest`: measures the product from outside, over HTTP, and the core in virtual time.

Imports `scheduler` only. Servers are started as commands, as a user would, on a core of their own.
"""

import os

# For the bare loops and baselines, which load ONNX Runtime themselves: see gpuworker/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
