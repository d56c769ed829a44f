"""Whose weights to LOAD onto a device, and whose to EVICT for them."""

from typing import NamedTuple


class LoadPlan(NamedTuple):
    """Evict these, in this order, then load that."""

    model: str
    evict: tuple[str, ...]
