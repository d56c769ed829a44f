"""One process per device: it carries out actions in their windows and reports what happened.

It owns the pages, weights and engines of one device. It must never decide: no batching, eviction,
retry or reordering by choice (adr/0005). It shares only `scheduler`'s vocabulary with the gateway.
"""

import os

# Official builds of ONNX Runtime from 1.29 on report to their maker over the network, keep a
# device id and a database in the home directory, and run a thread for it. Nobody here was asked.
# It must be set before the library is loaded; who sets it to 0 has chosen.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
