"""Does a peer start, and answer what ONNX Runtime answers? `remontoir bench peers check`.

Owns the comparison: every input of every model, one after the other, as well as all at once.
"""

from typing import NamedTuple

from loadtest.messages import Floats
from loadtest.openloop import drive
from loadtest.peers.launch import Running
from loadtest.peers.peer import Peer
from loadtest.peers.stage import Stage
from loadtest.peers.wires import reader, request
from loadtest.score import is_close, read_or_none
from loadtest.workloads import Ask
from scheduler.spec import MILLISECOND_NS

GIVE_UP_S = 30.0
GIVE_UP_NS = int(GIVE_UP_S * 1e9)
SPACING_NS = 5 * MILLISECOND_NS


class Checked(NamedTuple):
    """Of one server: how many answers were right, and what the first other one was."""

    right: int
    asked: int
    trouble: str

    @property
    def is_right(self) -> bool:
        return self.right == self.asked


def check(peer: Peer, running: Running, stage: Stage) -> Checked:
    port = running.server.port
    requests, expected = [], []
    for name, model in stage.models.items():
        requests.append(
            [
                request(
                    peer.wire,
                    peer.path,
                    model=name,
                    tensor=model.tensor,
                    row=row,
                    port=port,
                    slo_ms=GIVE_UP_S * 1e3,
                )
                for row in model.rows
            ]
        )
        expected.append(list(model.outputs))
    count = sum(map(len, requests))
    names = list(stage.models)
    arrivals = [
        Ask(index * SPACING_NS, names[index % len(names)], GIVE_UP_NS, index % len(names))
        for index in range(count)
    ]
    shots = drive(
        port=port, arrivals=arrivals, requests=requests, connections=count, give_up_s=GIVE_UP_S
    )
    right, trouble = 0, ""
    read = reader(peer.wire)
    for shot in shots:
        answer = read_or_none(shot, read) if shot.status == 200 else None
        wanted: Floats = expected[shot.stream][shot.variant]
        if answer is not None and is_close(answer.output, wanted):
            right += 1
        elif not trouble:
            trouble = f"status {shot.status} {shot.trouble} {shot.body[:200]!r}"
    return Checked(right, count, trouble)
