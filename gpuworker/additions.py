"""Models that come and go while the worker serves: made ready beside the lanes, one at a time.

Owns what the gateway calls each model, which models it wants that are not ready yet, and the thread
that makes them ready, at the lowest priority. It never decides what serves: it offers, and forgets
what it is told to.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from gpuworker import linux
from gpuworker.backend import Backend, Prepared
from scheduler import wire
from scheduler.actions import Action
from scheduler.spec import ModelSpec

_log = logging.getLogger("gpuworker")

# Below everything that serves: on a busy core, a twentieth of an ordinary thread's time.
NICE = 19
# How often one whose content is not here yet is looked for. A copy of a repository takes seconds.
LOOK_AGAIN_S = 5.0
# A name of our own has this much of the content's hash, as the gateway's log shows.
_HASH_LENGTH = 12


class NotHereError(Exception):
    """This machine has not the wanted content of the model, yet."""


Provide = Callable[[ModelSpec], None]


class _Done(NamedTuple):
    """What came of the model that we call `name`."""

    name: str
    prepared: Prepared | None = None
    reason: str = ""
    is_final: bool = False


class Additions:
    """All but `ring`, which any thread calls, is for the main thread.

    `provide` has the compiled artifact of a model made if that is possible; it raises NotHereError,
    or any other exception where it is not and will not be.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        provide: Provide,
        ring: Callable[[], None],
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._backend = backend
        self._ring = ring
        self._done: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._preparation = _Preparation(backend, provide, self._on_done, look_again_s)
        # The gateway's names of models → ours, where they differ.
        self._names: Mapping[str, str] = {}
        # All and only models that are wanted and not ready: our name → the gateway's.
        self._wanted: dict[str, str] = {}

    def welcome(self, names: Mapping[str, str]) -> None:
        """A session begins, in which the gateway calls our models so."""
        self._names = names

    def own_name(self, name: str) -> str:
        """What we call what the gateway calls so."""
        return self._names.get(name, name)

    def own(self, action: Action) -> Action:
        """The action with our name of its model."""
        name = self._names.get(action.model)
        return action if name is None else msgspec.structs.replace(action, model=name)

    def is_added(self, name: str) -> bool:
        """Whether it came while we served."""
        return "/" in name

    def add(self, spec: ModelSpec) -> wire.Offer | None:
        """The gateway wants this. What is ready already is offered at once."""
        name = self._ready_name(spec)
        if name is not None:
            return self._offer(spec.name, name)
        name = f"{spec.public_name}/{spec.version}/{spec.content_hash[:_HASH_LENGTH]}"
        is_under_way = name in self._wanted
        self._wanted[name] = spec.name
        if not is_under_way:
            self._preparation.want(msgspec.structs.replace(spec, name=name))
        return None

    def drop(self, name: str) -> str:
        """The gateway wants it no more; what we call it. Its pages are gone, if it had any."""
        for own, wanted in list(self._wanted.items()):
            if wanted == name:
                del self._wanted[own]
                self._preparation.forget(own)
        own = self.own_name(name)
        self._names = {theirs: ours for theirs, ours in self._names.items() if theirs != name}
        return own

    def take(self) -> list[wire.Offer | wire.CannotOffer]:
        """What has come of the wanted ones since the last time."""
        told: list[wire.Offer | wire.CannotOffer] = []
        while not self._done.empty():
            done = self._done.get()
            theirs = self._wanted.get(done.name)
            if done.prepared is not None:
                self._backend.add(done.prepared)
                if theirs is None:  # dropped while it was made ready
                    self._backend.remove(done.name)
                    continue
                del self._wanted[done.name]
                told.append(self._offer(theirs, done.name))
            elif theirs is not None:
                if done.is_final:
                    del self._wanted[done.name]
                _log.warning("model %s cannot be offered: %s", theirs, done.reason)
                told.append(wire.CannotOffer(theirs, done.reason, done.is_final))
        return told

    def close(self, timeout_s: float) -> bool:
        """Whether the thread has ended: else the backend is still in use."""
        return self._preparation.close(timeout_s)

    def _offer(self, theirs: str, own: str) -> wire.Offer:
        if theirs != own:
            self._names = {**self._names, theirs: own}
        return wire.Offer(msgspec.structs.replace(self._backend.models[own], name=theirs))

    def _ready_name(self, wanted: ModelSpec) -> str | None:
        for name, spec in self._backend.models.items():
            if (
                spec.public_name == wanted.public_name
                and spec.content_hash == wanted.content_hash
                and spec.unavailable_reason is None
            ):
                return name
        return None

    def _on_done(self, done: _Done) -> None:
        self._done.put(done)
        self._ring()


class _Stop:
    pass


class _Preparation:
    """The thread, started by the first model that is wanted."""

    def __init__(
        self,
        backend: Backend,
        provide: Provide,
        on_done: Callable[[_Done], None],
        look_again_s: float,
    ) -> None:
        self._look_again_s = look_again_s
        self._backend = backend
        self._provide = provide
        self._on_done = on_done
        self._inbox: queue.SimpleQueue[ModelSpec | str | _Stop] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # All and only models that are looked for, with what was said of them last. The thread's.
        self._missing: dict[str, tuple[ModelSpec, str]] = {}

    def want(self, spec: ModelSpec) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="additions", daemon=True)
            self._thread.start()
        self._inbox.put(spec)

    def forget(self, name: str) -> None:
        self._inbox.put(name)

    def close(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._inbox.put(_Stop())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        linux.set_thread_nice(NICE)  # the processes that compile inherit it
        self._backend.bind_thread()
        while True:
            try:
                item = self._inbox.get(timeout=self._look_again_s if self._missing else None)
            except queue.Empty:
                for spec, _ in list(self._missing.values()):
                    self._look_at(spec)
                continue
            if isinstance(item, _Stop):
                return
            if isinstance(item, ModelSpec):
                self._look_at(item)
            else:
                self._missing.pop(item, None)

    def _look_at(self, spec: ModelSpec) -> None:
        _, said = self._missing.pop(spec.name, (spec, ""))
        try:
            self._provide(spec)
            prepared = self._backend.prepare(spec)
        except NotHereError as error:
            self._missing[spec.name] = spec, str(error)
            if str(error) != said:
                self._on_done(_Done(spec.name, reason=str(error)))
        except Exception as error:  # one model's failure, of whatever kind, is not the worker's
            text = " ".join(str(error).split()) or type(error).__name__
            self._on_done(_Done(spec.name, reason=text, is_final=True))
        else:
            self._on_done(_Done(spec.name, prepared))
