"""Which gateway replica owns which models: rendezvous hashing on the model's name.

Owns the words in which replicas are told to gateways and workers, the order in which replicas stand
for a model, and which models stay together. It must never depend on who is alive: every process
that was told the same list says the same, at any time, without asking anybody (docs/adr/0015).
"""

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

# As in a DNS name, which it is in Kubernetes.
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
_URL = re.compile(r"https?://[^\s/,;=?#@]+")
_WEIGHT = "weight="
# Fractions of a hash: as many bits as a float has.
_HASH_BITS = 53
# Models whose order is remembered: any name a client sends is asked for, and takes room.
_NUM_REMEMBERED = 1 << 16


class ReplicasError(ValueError):
    """A list of replicas that cannot be used; the message quotes what is wrong."""


class Replica(NamedTuple):
    """One gateway process. `url` is where its peers send requests. Twice the weight, twice the
    models.
    """

    name: str
    url: str
    weight: float = 1.0


def parse_replicas(text: str) -> tuple[Replica, ...]:
    """`NAME=URL[;weight=W],...` → replicas, in that order. Raises ReplicasError."""
    replicas: dict[str, Replica] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        replica = _parse(part)
        if replica.name in replicas:
            raise ReplicasError(f"replica {replica.name} is there twice")
        replicas[replica.name] = replica
    if not replicas:
        raise ReplicasError("no replica in it: expected NAME=URL,...")
    return tuple(replicas.values())


def _parse(part: str) -> Replica:
    address, _, option = part.partition(";")
    name, _, url = address.partition("=")
    url = url.rstrip("/")
    if _NAME.fullmatch(name) is None or not _is_url(url):
        raise ReplicasError(f"{part!r} is not NAME=http://HOST:PORT, or https")
    if not option:
        return Replica(name, url)
    try:
        weight = float(option.removeprefix(_WEIGHT))
    except ValueError:
        weight = 0.0
    if not (option.startswith(_WEIGHT) and 0 < weight < math.inf):
        raise ReplicasError(f"{part!r}: expected ;weight=W with a positive number, or nothing")
    return Replica(name, url, weight)


def _is_url(url: str) -> bool:
    if _URL.fullmatch(url) is None:
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535 or no number, brackets around what is no address
        return False


def told_together(groups: Mapping[str, Iterable[str]]) -> list[str]:
    """Groups and their models as `parse_together` reads them. No name has a slash in it."""
    return ["/".join((group, *models)) for group, models in groups.items()]


def parse_together(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`GROUP/MODEL/MODEL/...` each → models by group. Raises ReplicasError."""
    groups: dict[str, tuple[str, ...]] = {}
    for text in texts:
        group, *models = text.split("/")
        if not (group and models and all(models)):
            raise ReplicasError(f"{text!r} is not GROUP/MODEL/MODEL/...")
        groups[group] = tuple(models)
    return groups


def names_drawn_for(groups: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Models and groups that are on one replica → the name that is drawn for all of them: their
    group's, or where groups share models, the first of theirs in the alphabet.
    """
    drawn: dict[str, str] = {}
    for group in sorted(groups):
        names = {group, *groups[group]}
        shared = {drawn[name] for name in names if name in drawn}
        first = min(shared, default=group)
        names |= {name for name, of in drawn.items() if of in shared}
        drawn |= dict.fromkeys(names, first)
    return drawn


class Shards:
    """The models of all replicas, as one of them sees it. Raises ReplicasError."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        own_name: str,
        *,
        copies: int,
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """`groups` are models by the name that they are asked for under; they stay together."""
        self.replicas = {replica.name: replica for replica in replicas}
        if own_name not in self.replicas:
            names = ", ".join(self.replicas)
            raise ReplicasError(f"replica {own_name!r} is not among the replicas: {names}")
        self.own_name = own_name
        self.copies = min(copies, len(replicas))
        self._drawn = names_drawn_for(groups or {})
        self.holders = functools.lru_cache(_NUM_REMEMBERED)(self._holders)

    def _holders(self, model: str) -> tuple[str, ...]:
        """Who has the model ready: its owner, then who stands in for it, in that order."""
        drawn = self._drawn.get(model, model)
        return rendezvous_order(tuple(self.replicas.values()), drawn)[: self.copies]

    def has(self, model: str) -> bool:
        """Whether we make the model ready."""
        return self.own_name in self.holders(model)


def rendezvous_order(replicas: Sequence[Replica], model: str) -> tuple[str, ...]:
    """Names of replicas, the model's owner first. Equal for equal arguments, everywhere.

    Each replica draws a number from the model's name and its own, and the highest wins: one more
    replica takes from each other its share of models, and moves none between them (Thaler and
    Ravishankar 1998; the weights are of Schindelhauer and Schomaker 2005).
    """
    drawn = sorted(((_score(replica, model), replica.name) for replica in replicas), reverse=True)
    return tuple([name for _, name in drawn])


def _score(replica: Replica, model: str) -> float:
    digest = hashlib.blake2b(f"{replica.name}\0{model}".encode(), digest_size=8).digest()
    fraction = ((int.from_bytes(digest, "big") >> (64 - _HASH_BITS)) + 0.5) / (1 << _HASH_BITS)
    return -replica.weight / math.log(fraction)
