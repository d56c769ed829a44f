"""`remontoir top`: the live page in a terminal.

Owns the reading of events and keys, and when the screen is drawn. It must never compute a figure:
those are gateway/command/top_figures.py's.
"""

import os
import queue
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live

from gateway.command.client import Client, ClientError, JsonObject
from gateway.command.top_figures import TopFigures
from gateway.command.top_screen import ORDERS, screen

EVENTS_PATH = "/ui/events"
KEY_WAIT_S = 0.05
# Frames that a single picture waits for, so that it has rates.
ONCE_FRAMES = 3

Event = tuple[str, JsonObject] | ClientError


def run(client: Client, url: str, console: Console, *, once: bool) -> None:
    """Until q is pressed, or, with `once` or into a pipe, for one picture. Raises ClientError."""
    figures = TopFigures()
    if once or not (console.is_terminal and sys.stdin.isatty()):
        _print_once(client, url, console, figures)
        return
    events: queue.Queue[Event] = queue.Queue(maxsize=64)  # a stopped terminal holds up the thread
    threading.Thread(target=_read, args=(client, events), daemon=True).start()
    order, is_paused, note = 0, False, "connecting"
    with _single_keys(sys.stdin), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            is_new = False
            for event in _waiting(events):
                if isinstance(event, ClientError):
                    raise event
                name, data = event
                note = f"the gateway ended this: {data['reason']}" if name == "end" else ""
                figures.on_event(name, data)
                is_new = True
            key = _key(sys.stdin)
            if key in ("q", "Q", "\x03", "\x04"):
                return
            if key == "s":
                order = (order + 1) % len(ORDERS)
            if key == "p":
                is_paused = not is_paused
            if (is_new and not is_paused) or key:
                size = console.size
                live.update(
                    screen(
                        figures,
                        url=url,
                        width=size.width,
                        height=size.height,
                        order=ORDERS[order],
                        note="paused" if is_paused else note,
                    ),
                    refresh=True,
                )


def _print_once(client: Client, url: str, console: Console, figures: TopFigures) -> None:
    for name, data in client.events(EVENTS_PATH):
        if name == "end":
            raise ClientError(f"{url} ended the stream: {data['reason']}")
        figures.on_event(name, data)
        if figures.num_frames == ONCE_FRAMES:
            break
    console.print(screen(figures, url=url, width=console.width, height=60, order=ORDERS[0]))


def _read(client: Client, events: queue.Queue[Event]) -> None:
    try:
        for event in client.events(EVENTS_PATH):
            events.put(event)
        events.put(ClientError("the gateway closed the stream"))
    except ClientError as error:
        events.put(error)


def _waiting(events: queue.Queue[Event]) -> Iterator[Event]:
    while True:
        try:
            yield events.get_nowait()
        except queue.Empty:
            return


def _key(source: TextIO) -> str:
    """What was pressed within KEY_WAIT_S; "" for nothing."""
    ready, _, _ = select.select([source], [], [], KEY_WAIT_S)
    return os.read(source.fileno(), 1).decode("ascii", "replace") if ready else ""


@contextmanager
def _single_keys(source: TextIO) -> Iterator[None]:
    """Keys come one by one and are not shown."""
    before = termios.tcgetattr(source)
    try:
        tty.setcbreak(source.fileno())
        yield
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
