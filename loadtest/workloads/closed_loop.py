"""Clients that ask again when they are answered.

Owns who is a client and how often it has asked. It owns no clock: whoever plays it, a simulation
or a live driver, tells the instant of every answer, of whatever outcome.
"""

import random
from collections.abc import Iterator, Sequence

from loadtest.workloads.ask import Ask
from loadtest.workloads.choice import slo_chooser
from loadtest.workloads.entries import Closed
from scheduler.spec import MILLISECOND_NS


class ClosedLoop:
    """All clients of one workload entry. Each has at most one request open."""

    def __init__(
        self,
        entry: Closed,
        *,
        stream: int,
        models: Sequence[str],
        start_ns: int,
        stop_ns: int,
        seed: str,
    ) -> None:
        self.entry = entry
        self.stream = stream
        self._models = models
        self._start_ns = start_ns
        self._stop_ns = stop_ns
        self._think_ns = max(1, round(entry.think_ms * MILLISECOND_NS))
        num_clients = entry.clients * len(models)
        self._num_asked = [0] * num_clients
        # A client's draws do not depend on the order of answers, so that policies can be compared.
        self._slos = (
            [slo_chooser(entry, random.Random(seed))] * num_clients
            if isinstance(entry.slo_ms, float | int)
            else [slo_chooser(entry, random.Random(f"{seed}/{i}")) for i in range(num_clients)]
        )

    def starts(self) -> Iterator[Ask]:
        """The first request of every client, all at the start, client by client over the models."""
        if self._start_ns >= self._stop_ns:
            return
        num_models = len(self._models)
        for client in range(len(self._num_asked)):
            yield self._ask(client, self._start_ns, self._models[client % num_models])

    def next_after(self, ask: Ask, answered_ns: int) -> Ask | None:
        """What the client asks after this answer; None once it is done or the stream is over."""
        at_ns = answered_ns + self._think_ns
        if at_ns >= self._stop_ns or self._num_asked[ask.client] == self.entry.requests:
            return None
        return self._ask(ask.client, at_ns, ask.model)

    def _ask(self, client: int, at_ns: int, model: str) -> Ask:
        self._num_asked[client] += 1
        slo = self._slos[client]
        slo_ns = slo if isinstance(slo, int) else slo()
        entry = self.entry
        return Ask(at_ns, model, slo_ns, self.stream, entry.tenant, client, entry.priority_class)
