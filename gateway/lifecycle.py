"""Lifecycle: in which phase of its life the gateway is, and what it therefore refuses.

It owns that one fact. It must never know how the phases come about: the command line moves them.
`/readyz` fails from `drain()` on while requests are still served, so that load balancers turn away
first; `refuse()` then ends admission, and what was admitted is still answered.
"""

from typing import Literal

Phase = Literal["starting", "serving", "draining", "refusing"]


class Lifecycle:
    """starting → serving → draining → refusing; phases may be skipped but not taken back."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        # The `reason` with which inference is refused in this phase, or None. Read per request.
        self.refusal_reason: Literal["starting", "draining"] | None = "starting"
        # Whether answers say `connection: close`, so that clients go elsewhere in time.
        self.is_ending = False

    def serve(self) -> None:
        self._move("serving", from_phases=("starting",))
        self.refusal_reason = None

    def drain(self) -> None:
        self._move("draining", from_phases=("starting", "serving", "draining"))
        self.refusal_reason = "starting" if self.refusal_reason == "starting" else None
        self.is_ending = True

    def refuse(self) -> None:
        self._move("refusing", from_phases=("starting", "serving", "draining", "refusing"))
        self.refusal_reason = "draining"
        self.is_ending = True

    @property
    def unready_reason(self) -> Literal["starting", "draining"] | None:
        """Why a load balancer should look elsewhere, or None."""
        if self.phase == "starting":
            return "starting"
        return None if self.phase == "serving" else "draining"

    def _move(self, phase: Phase, *, from_phases: tuple[Phase, ...]) -> None:
        if self.phase not in from_phases:
            raise ValueError(f"lifecycle cannot go from {self.phase} to {phase}")
        self.phase = phase
