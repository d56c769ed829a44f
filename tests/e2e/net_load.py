"""Requests at a steady rate against a gateway of this host: `python tests/e2e/net_load.py ...`.

Run inside a namespace by net.py, which reads what became of each: a JSON list of [scheduled at ns,
answered at ns, status, trouble], on CLOCK_MONOTONIC, which all namespaces share. Status 0: no
answer, and why.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loadtest.openloop import drive
from loadtest.workloads import Ask
from scheduler.spec import MILLISECOND_NS, SECOND_NS

GIVE_UP_S = 5.0  # twenty SLOs


def main() -> int:
    port, rate, duration_s, models = sys.argv[1:5]
    slo_ms, out = sys.argv[5:]
    chance = random.Random(1)
    names = models.split(",")
    arrivals = []
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(float(rate))) < float(duration_s):
        stream = chance.randrange(len(names))
        at_ns, slo_ns = int(at_s * SECOND_NS), int(slo_ms) * MILLISECOND_NS
        arrivals.append(Ask(at_ns=at_ns, model=names[stream], slo_ns=slo_ns, stream=stream))
    shots = drive(
        port=int(port),
        arrivals=arrivals,
        requests=[[request(name, slo_ms)] for name in names],
        connections=16,
        give_up_s=GIVE_UP_S,
    )
    told = [[shot.at_ns, shot.done_ns, shot.status, shot.trouble] for shot in shots]
    Path(out).write_text(json.dumps(told))
    return 0


def request(model: str, slo_ms: str) -> bytes:
    x = {"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [0]}
    y = {"name": "y", "parameters": {"binary_data": True}}
    body = json.dumps({"model": model, "inputs": [x], "outputs": [y]}).encode()
    head = f"POST /infer HTTP/1.1\r\nhost: x\r\nx-slo-ms: {slo_ms}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    sys.exit(main())
