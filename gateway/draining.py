"""The end of admission: until when a gateway that was told to stop serves, refuses and waits.

It owns the order of the three and their times. It must never end anything itself: what still waits
for an answer when it returns is given up by whoever closes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from gateway.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

# Clients that come when nothing is in flight any more still hear "draining", not a reset.
REFUSE_AT_LEAST_S = 0.5


class Unanswered(Protocol):
    """What was admitted and has no answer yet: gateway.dispatcher.Dispatcher, and what other
    replicas have, gateway.replicas.forwarding.Forwarding.
    """

    @property
    def num_open(self) -> int: ...
    async def wait_idle(self) -> None: ...


class InTurn:
    """Several as one: what one waits for may become the next one's."""

    def __init__(self, parts: Sequence[Unanswered]) -> None:
        self._parts = parts

    @property
    def num_open(self) -> int:
        return sum(part.num_open for part in self._parts)

    async def wait_idle(self) -> None:
        for part in self._parts:
            await part.wait_idle()


async def drain(
    lifecycle: Lifecycle,
    unanswered: Unanswered,
    *,
    drain_s: float,
    answer_grace_s: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Of a lifecycle that drains already: serves on for `drain_s`, refuses from then on, and waits
    at most `answer_grace_s` for the answers to what was admitted. Whether all were given.
    """
    await sleep(drain_s)
    lifecycle.refuse()
    await sleep(REFUSE_AT_LEAST_S)
    answered = asyncio.ensure_future(unanswered.wait_idle())
    patience = asyncio.ensure_future(sleep(answer_grace_s))
    try:
        await asyncio.wait((answered, patience), return_when=asyncio.FIRST_COMPLETED)
    finally:
        answered.cancel()
        patience.cancel()
    if not unanswered.num_open:
        return True
    logger.error(
        "%d requests still wait for an answer after %g s (answer_grace_s): given up",
        unanswered.num_open,
        answer_grace_s,
    )
    return False
