"""Asking the leader: what followers and the command send, and what its answers mean.

Owns retries: what may be said twice without harm is said until it is heard.
"""

from collections.abc import Sequence
from typing import TypeVar

import httpx
import msgspec

from loadtest.analysis.cell import Cell
from loadtest.job_queue.messages import Beat, End, Job, Overview, Rows, Submission, Told

TIMEOUT_S = 20.0

_Kind = TypeVar("_Kind")


class LeaderUnreachable(Exception):
    """The leader does not answer, or fails by its own fault. Another try may help."""


class LeaderRefused(Exception):
    """The leader said no, and will again. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LeaderClient:
    """One leader. `http` has its address and token (`connect`), or stands in for it in a test."""

    def __init__(self, http: httpx.Client, *, name: str) -> None:
        self._http = http
        self.name = name

    def submit(self, job_id: str, job: Submission) -> Job:
        return self._ask("PUT", f"/jobs/{job_id}", Job, msgspec.json.encode(job))

    def job(self, job_id: str) -> Job:
        return self._ask("GET", f"/jobs/{job_id}", Job)

    def cancel(self, job_id: str) -> Job:
        return self._ask("DELETE", f"/jobs/{job_id}", Job)

    def overview(self) -> Overview:
        return self._ask("GET", "/queue", Overview)

    def rows(self, job_id: str) -> list[bytes]:
        """One JSON document per row."""
        return self._answer("GET", f"/jobs/{job_id}/rows").splitlines()

    def beat(self, follower: str, beat: Beat) -> Told:
        return self._ask("POST", f"/followers/{follower}/beat", Told, msgspec.json.encode(beat))

    def add_rows(self, job_id: str, lease: str, rows: Sequence[Cell]) -> None:
        body = msgspec.json.encode(Rows(lease=lease, rows=list(rows)))
        self._answer("POST", f"/jobs/{job_id}/rows", body)

    def end(self, job_id: str, end: End) -> Job:
        return self._ask("POST", f"/jobs/{job_id}/end", Job, msgspec.json.encode(end))

    def _ask(self, method: str, path: str, kind: type[_Kind], body: bytes | None = None) -> _Kind:
        answer = self._answer(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise LeaderRefused(200, f"{self.name} is no leader: {error}") from error

    def _answer(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            response = self._http.request(method, path, content=body)
        except httpx.HTTPError as error:
            raise LeaderUnreachable(f"{self.name} does not answer: {error}") from error
        if response.status_code < 400:
            return response.content
        try:
            message = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            message = f"{response.status_code} {response.reason_phrase}"
        if response.status_code >= 500:
            raise LeaderUnreachable(f"{self.name}: {message}")
        raise LeaderRefused(response.status_code, f"{self.name}: {message}")


def connect(url: str, token: str | None) -> LeaderClient:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return LeaderClient(httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S), name=url)
