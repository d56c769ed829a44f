"""Routes about one model, group or request, and lists, where models are on several replicas.

It owns who is asked: what reads goes to the first replica that has the model and answers, what
changes something goes to all that have it, lists are put together from all, and a request is known
to who served it. It must never be on the way of an inference, and a route that it does not know is
this replica's own.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from gateway.errors import JSON, PROBLEM_JSON, ErrorReplies, RequestError
from gateway.http.request_body import Message, Receive
from gateway.http.request_ids import REQUEST_ID, RequestIds
from gateway.inference.exchange import Send
from gateway.inference.target import is_v2
from gateway.replicas.connection import Call, PeerReply
from gateway.replicas.forwarding import NOT_RELAYED, NOT_SENT, REPLICA, Forwarding
from gateway.replicas.hop import HOP
from gateway.replicas.peer import Peer

App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

# Replicas whose part of a list, or of a change, is missing.
MISSING = b"x-remontoir-missing"
MAX_BODY_BYTES = 1 << 16  # of these routes, as gateway.http.small_body has it
LIST_TIMEOUT_S = 2.0
MODEL_TIMEOUT_S = 60.0  # loading waits for a worker, for twenty seconds at the most
_OF_MODEL = re.compile(r"/(?:(?:v2/)?(?:repository/)?models|groups)/([^/]+)(?:/.*)?", re.DOTALL)
_OF_REQUEST = re.compile(r"/requests/.+|/feedback", re.DOTALL)
_OWN_PATHS = frozenset({"/v2/models/stats"})
# Paths of lists, and under which member the list is; None: it is the whole.
_LISTS = {"/models": "models", "/groups": "groups", "/v2/repository/index": None}


class ReplicaRoutes:
    """ASGI 3, in front of the routes of this replica."""

    def __init__(
        self,
        app: App,
        forwarding: Forwarding,
        *,
        errors: ErrorReplies,
        request_ids: RequestIds,
    ) -> None:
        self._app = app
        self._forwarding = forwarding
        self._errors = errors
        self._request_ids = request_ids

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        found = None if path in _OWN_PATHS else _OF_MODEL.fullmatch(path)
        is_list = path in _LISTS
        is_of_request = _OF_REQUEST.fullmatch(path) is not None
        if scope["type"] != "http" or not (found or is_list or is_of_request):
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if any(name == HOP for name, _ in headers):
            await self._app(scope, receive, send)
            return
        messages, body = await _read(receive)
        replayed = _replay(messages, receive)
        if body is None:
            await self._app(scope, replayed, send)  # which says what is wrong with it
        elif is_of_request:
            await self._find_request(scope, replayed, send, body)
        elif found is None:
            await self._list(scope, replayed, send, body)
        elif scope["method"] in ("GET", "HEAD"):
            await self._read_model(scope, replayed, send, found[1], body)
        else:
            await self._change_model(scope, replayed, send, found[1], body)

    async def _read_model(
        self, scope: dict[str, Any], receive: Receive, send: Send, model: str, body: bytes
    ) -> None:
        own_name = self._forwarding.shards.own_name
        holders = self._forwarding.shards.holders(model)
        for name in holders:
            if name == own_name:
                await self._app(scope, receive, send)
                return
            peer = self._forwarding.peers[name]
            reply = None
            if peer.problem is None:
                reply = await _ask(peer, scope, body, timeout_s=MODEL_TIMEOUT_S)
            if reply is not None:
                await _relay(reply, send, [(REPLICA, name.encode())])
                return
        await self._refuse(scope, send, model)

    async def _change_model(
        self, scope: dict[str, Any], receive: Receive, send: Send, model: str, body: bytes
    ) -> None:
        """All that have it, at once. The answer is the first no, else the owner's."""
        holders = self._forwarding.shards.holders(model)
        replies = await asyncio.gather(
            *(self._reply_of(name, scope, receive, body, MODEL_TIMEOUT_S) for name in holders)
        )
        there = [(name, r) for name, r in zip(holders, replies, strict=True) if r is not None]
        if not there:
            await self._refuse(scope, send, model)
            return
        name, reply = next((pair for pair in there if pair[1].status >= 400), there[0])
        told = [(REPLICA, name.encode()), *_missing(holders, replies)]
        await _relay(reply, send, told)

    async def _list(self, scope: dict[str, Any], receive: Receive, send: Send, body: bytes) -> None:
        """Each model as its owner shows it; as who stands in does, where the owner is away."""
        shards = self._forwarding.shards
        names = [shards.own_name, *self._forwarding.peers]
        replies = await asyncio.gather(
            *(self._reply_of(name, scope, receive, body, LIST_TIMEOUT_S) for name in names)
        )
        own = replies[0]
        if own is None or own.status != 200:
            assert own is not None
            await _relay(own, send, [])
            return
        member = _LISTS[scope["path"]]
        best: dict[str, tuple[int, Any]] = {}
        for name, reply in zip(names, replies, strict=True):
            if reply is None or reply.status != 200:
                continue
            told = msgspec.json.decode(reply.body)
            for entry in told if member is None else told[member]:
                holders = shards.holders(entry["name"])
                rank = holders.index(name) if name in holders else len(holders)
                if entry["name"] not in best or rank < best[entry["name"]][0]:
                    best[entry["name"]] = rank, entry
        entries = [entry for _, (_, entry) in sorted(best.items())]
        merged = msgspec.json.encode(entries if member is None else {member: entries})
        await _relay(own._replace(body=merged), send, _missing(names, replies))

    async def _find_request(
        self, scope: dict[str, Any], receive: Receive, send: Send, body: bytes
    ) -> None:
        """By the first that knows it: whoever was asked, it was served by one."""
        own = await _captured(self._app, scope, receive)
        if own.status != 404:
            await _relay(own, send, [])
            return
        names = list(self._forwarding.peers)
        replies = await asyncio.gather(
            *(self._reply_of(name, scope, receive, body, LIST_TIMEOUT_S) for name in names)
        )
        for name, reply in zip(names, replies, strict=True):
            if reply is not None and reply.status < 400:
                await _relay(reply, send, [(REPLICA, name.encode())])
                return
        await _relay(own, send, _missing(names, replies))

    async def _reply_of(
        self,
        name: str,
        scope: dict[str, Any],
        receive: Receive,
        body: bytes,
        timeout_s: float,
    ) -> PeerReply | None:
        if name == self._forwarding.shards.own_name:
            return await _captured(self._app, scope, receive)
        peer = self._forwarding.peers[name]
        if peer.problem is not None:
            return None
        return await _ask(peer, scope, body, timeout_s=timeout_s)

    async def _refuse(self, scope: dict[str, Any], send: Send, model: str) -> None:
        peers = self._forwarding.peers
        holders = self._forwarding.shards.holders(model)
        why = "; ".join(f"{name}: {peers[name].problem or 'no answer'}" for name in holders)
        detail = f"no replica that has model {model[:200]} answers: {why}"
        reply = self._errors.of_error(
            RequestError("replica_unavailable", detail),
            request_id=self._request_ids.of(dict(scope["headers"]).get(REQUEST_ID)),
            media_type=JSON if is_v2(scope["path"]) else PROBLEM_JSON,
        )
        await _relay(PeerReply(reply.status, reply.headers, reply.body), send, [])


async def _ask(
    peer: Peer, scope: dict[str, Any], body: bytes, *, timeout_s: float
) -> PeerReply | None:
    """None where it did not answer."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    target = path + b"?" + query if query else path
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (scope["method"].encode(), target, peer.authority)]
    for name, value in scope["headers"]:
        if (name not in NOT_SENT or name == REQUEST_ID) and name != b"accept-encoding":
            lines += (name, b": ", value, b"\r\n")
    lines.append(b"content-length: %d\r\n%b: 0\r\n\r\n" % (len(body), HOP))
    answered: asyncio.Future[PeerReply | None] = asyncio.get_running_loop().create_future()
    call = Call(
        b"".join(lines),
        body,
        on_reply=answered.set_result,
        on_trouble=lambda why: answered.set_result(None),
    )
    peer.send(call)
    try:
        return await asyncio.wait_for(answered, timeout_s)
    except TimeoutError:
        return None
    finally:
        if not call.is_over:
            call.abandon()


async def _captured(app: App, scope: dict[str, Any], receive: Receive) -> PeerReply:
    """This replica's own answer."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in messages[1:])
    return PeerReply(messages[0]["status"], list(messages[0]["headers"]), body)


async def _relay(reply: PeerReply, send: Send, more: Headers) -> None:
    headers = [header for header in reply.headers if header[0] not in NOT_RELAYED]
    headers += [(b"content-length", b"%d" % len(reply.body)), *more]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _missing(names: Sequence[str], replies: Sequence[PeerReply | None]) -> Headers:
    missing = [name for name, reply in zip(names, replies, strict=True) if reply is None]
    return [(MISSING, ",".join(missing).encode())] if missing else []


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """What came, and the body; None of one that is too long here, or whose client went away."""
    messages: list[Message] = []
    num_bytes = 0
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_BODY_BYTES:
            return messages, None
        if not message.get("more_body", False):
            return messages, b"".join(part.get("body", b"") for part in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    left = list(messages)

    async def replayed() -> Message:
        return left.pop(0) if left else await receive()

    return replayed
