"""What holds for every test: nothing is reported to anybody over the network, and no machine is
blamed for being slow.
"""

import os

from hypothesis import HealthCheck, settings

# Tests load ONNX Runtime before gpuworker, which says why.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# How long inputs take to make says something of the machine, which is shared, and nothing of us.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
