"""The leader: an HTTP server around the queue. `remontoir bench leader`.

Owns routes, the token, and how errors look. It holds nothing in memory that is not in the
database: kill it, start it again, and it goes on.
"""

import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loadtest.driver.results_db import ResultsError, short
from loadtest.job_queue.messages import Beat, End, Rows, Submission
from loadtest.job_queue.queue_schema import QueueError
from loadtest.job_queue.queue_tables import JobQueue

DEFAULT_PORT = 8700  # above the gateway's 8000, and nobody's by default
# A row with its histogram has some tens of kilobytes; a sweep has hundreds of them.
MAX_BODY_BYTES = 32 << 20
MAX_NAME_CHARACTERS = 100
JOB_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,35}")
JSON = "application/json"

Check = Callable[[str], str | None]


class LeaderError(Exception):
    """The leader cannot be started so. The message says what to change."""


def leader_app(
    queue: JobQueue,
    *,
    token: str | None,
    clock: Callable[[], float] = time.time,
    check_spec: Check = lambda _: None,
) -> Starlette:
    """`check_spec` says what is wrong with a YAML file, or None. Without a token all may ask."""

    async def submit(request: Request) -> Response:
        if not JOB_ID.fullmatch(request.path_params["job_id"]):
            return _error(400, "a job's id has 1 to 36 letters, digits and hyphens")
        job = msgspec.json.decode(await _body(request), type=Submission)
        if wrong := check_spec(job.spec):
            return _error(422, wrong)
        return _json(queue.submit(request.path_params["job_id"], job, clock()))

    async def beat(request: Request) -> Response:
        name = request.path_params["name"]
        if len(name) > MAX_NAME_CHARACTERS:
            return _error(400, f"a follower's name has at most {MAX_NAME_CHARACTERS} characters")
        return _json(
            queue.beat(name, msgspec.json.decode(await _body(request), type=Beat), clock())
        )

    async def add_rows(request: Request) -> Response:
        given = msgspec.json.decode(await _body(request), type=Rows)
        count = queue.add_rows(request.path_params["job_id"], given.lease, given.rows)
        return _json({"rows": count})

    async def end(request: Request) -> Response:
        given = msgspec.json.decode(await _body(request), type=End)
        return _json(queue.end(request.path_params["job_id"], given, clock()))

    async def job(request: Request) -> Response:
        return _json(queue.job(request.path_params["job_id"]))

    async def cancel(request: Request) -> Response:
        return _json(queue.cancel(request.path_params["job_id"], clock()))

    async def rows(request: Request) -> Response:
        """JSON lines."""
        lines = queue.rows(request.path_params["job_id"])
        return Response("".join(f"{line}\n" for line in lines), media_type="application/jsonl")

    async def overview(_: Request) -> Response:
        return _json(queue.overview(clock()))

    def guarded(serve: Any) -> Any:
        async def check(request: Request) -> Response:
            if token is not None and not _has(request, token):
                return _error(401, "a token is needed: Authorization: Bearer TOKEN")
            try:
                response: Response = await serve(request)
            except msgspec.DecodeError as error:
                return _error(400, str(error))
            except _TooLarge:
                return _error(413, f"a body has at most {MAX_BODY_BYTES:,} bytes")
            except ResultsError as error:
                return _error(500, str(error))
            except SQLAlchemyError as error:  # followers and `submit --wait` ask again
                return _error(503, f"the queue's database: {short(error)}")
            except QueueError as error:
                return _error(409 if error.is_conflict else 404, str(error))
            return response

        return check

    return Starlette(
        routes=[
            Route(path, guarded(serve), methods=[method])
            for method, path, serve in (
                ("GET", "/queue", overview),
                ("PUT", "/jobs/{job_id}", submit),
                ("GET", "/jobs/{job_id}", job),
                ("DELETE", "/jobs/{job_id}", cancel),
                ("GET", "/jobs/{job_id}/rows", rows),
                ("POST", "/jobs/{job_id}/rows", add_rows),
                ("POST", "/jobs/{job_id}/end", end),
                ("POST", "/followers/{name}/beat", beat),
            )
        ]
    )


def check_exposure(host: str, *, token: str | None) -> None:
    """Raises LeaderError for an address beyond this machine without a token: whoever can submit a
    job runs it on every follower.
    """
    if token is None and not is_loopback(host):
        raise LeaderError(
            f"--host {host} is reached from other machines, so a token is needed: "
            "--token-file FILE, or REMONTOIR_BENCH_TOKEN"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    queue: JobQueue,
    *,
    host: str,
    port: int,
    token: str | None,
    tls: Sequence[Path] = (),
    check_spec: Check = lambda _: None,
) -> None:
    """Until SIGINT or SIGTERM. `tls` is a certificate and its key. Raises LeaderError."""
    check_exposure(host, token=token)
    queue.resume(time.time())
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), map(str, tls), strict=False))
    app = leader_app(queue, token=token, check_spec=check_spec)
    uvicorn.run(app, host=host, port=port, log_level="warning", **files)  # type: ignore[arg-type]


class _TooLarge(Exception):
    pass


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _TooLarge
        parts.append(part)
    return b"".join(parts)


def _has(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)


def _error(status: int, message: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return Response(
        msgspec.json.encode({"error": message}), status, headers=headers, media_type=JSON
    )
