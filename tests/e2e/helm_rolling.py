"""Requests while the pods of a release are replaced one after the other, for `make helm-e2e`.

Owns the load: what a Service would do, a new connection for each request, to the next pod that the
API server calls ready. It says what became of each.
"""

import itertools
import threading
from collections import Counter
from typing import Self

import httpx

from tests.e2e.helm_cluster import ApiServer
from tests.e2e.helm_kubelet import address_of

PAUSE_S = 0.02
SLO_MS = (
    10_000  # what is asked is whether there is an answer, not how fast one of two busy cores is
)


class Load:
    """From `with` to its end; then `answers` has how often what was said."""

    def __init__(
        self, server: ApiServer, pods: str, selector: str, *, port: int, key: str, models: list[str]
    ) -> None:
        self._server = server
        self._where = (pods, selector)
        self._port = port
        self._headers = {"x-api-key": key}
        self._models = itertools.cycle(models)
        self._thread = threading.Thread(target=self._run, name="load")
        self._is_over = threading.Event()
        self._turn = 0
        self.answers: Counter[str] = Counter()
        self.pods_asked: set[str] = set()  # by uid

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        while not self._is_over.wait(PAUSE_S):
            ready = self._ready()
            if not ready:
                self.answers["no gateway is ready"] += 1
                continue
            self._turn += 1
            name, uid = ready[self._turn % len(ready)]
            self.pods_asked.add(uid)
            self.answers[self._ask(f"http://{address_of(name)}:{self._port}/infer")] += 1

    def _ready(self) -> list[tuple[str, str]]:
        """As Endpoints have them: ready, and not told to go."""
        found = []
        for pod in self._server.list(*self._where):
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                found.append((pod["metadata"]["name"], pod["metadata"]["uid"]))
        return sorted(found)

    def _ask(self, url: str) -> str:
        x = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
        body = {"model": next(self._models), "slo_ms": SLO_MS, "inputs": [x]}
        try:
            answer = httpx.post(url, json=body, headers=self._headers, timeout=30, trust_env=False)
        except httpx.HTTPError as error:
            return f"{url}: {type(error).__name__}"
        if answer.status_code == 200:
            return "200"
        return f"{url}: {answer.status_code} {answer.text[:200]}"
