"""What the metrics page says of the other replicas of a sharded deployment.

It owns these names and labels. Replicas are those of the settings, so there are as many labels.
"""

from collections.abc import Iterator

from gateway.metrics.text import escaped, family
from gateway.views import ReplicasView
from scheduler.spec import SECOND_NS


def replica_parts(replicas: ReplicasView) -> Iterator[str]:
    peers = [(f'replica="{escaped(name)}"', peer) for name, peer in replicas.peers.items()]
    yield family(
        "forwarded_requests_total",
        "counter",
        "Requests sent on to another replica, by what became of that: answered; failed (the next "
        "was asked); late (no answer within the SLO); abandoned (its client went away).",
        [
            (f'replica="{escaped(name)}",result="{result}"', count)
            for (name, result), count in replicas.results.items()
        ],
    )
    text = "1 while requests are sent there, 0 while it does not answer or is not ready."
    yield family(
        "replica_up", "gauge", text, [(labels, int(peer.problem is None)) for labels, peer in peers]
    )
    yield family(
        "replica_hop_seconds",
        "gauge",
        "Time that a request loses on its way there and back: 90 of 100 lose less.",
        [(labels, peer.hop_ns / SECOND_NS) for labels, peer in peers],
    )
