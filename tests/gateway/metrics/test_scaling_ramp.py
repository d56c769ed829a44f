"""Advice under a load that grows, with the scheduler that serves, in virtual time: an autoscaler
that follows it must have its device before promises are broken.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest

from scheduler.events import Event, Outcome, RequestArrived, Served
from scheduler.scaling import Sample, Scaling
from scheduler.scheduler import Scheduler
from scheduler.simulation import SimulatedWorker, Simulation
from scheduler.spec import (
    SECOND_NS,
    DeviceSpec,
    ModelProfile,
    ModelSpec,
    ShapeProfile,
    TensorSpec,
)
from tests.scheduler.story import ms

DEVICES = 2
PER_DEVICE = 10.0  # requests per second that keep one busy
HORIZON_S = 60
TARGET = 0.7
FLAT_S, RAMP_S, END_S = 180, 480, 180
MODEL = ModelSpec(
    name="m",
    version="1",
    content_hash="c0ffee",
    platform="stand-in",
    inputs=(TensorSpec("x", "UINT8", (-1, 1)),),
    outputs=(TensorSpec("y", "UINT8", (-1, 1)),),
    batch_sizes=(1,),
    runs_exact_batch=True,
    weights_bytes=1 << 20,
    profile=ModelProfile(ms(5), (ShapeProfile("", 1, {1: ms(100)}),)),
)
DEVICE = DeviceSpec(kind="cpu", page_bytes=16 << 20, total_pages=8, shares_exec_core=False)


def load_at(second: float) -> float:
    """In devices kept busy: a third of the fleet, then steadily more, to one and a half of it."""
    grown = min(1.0, max(0.0, (second - FLAT_S) / RAMP_S))
    return DEVICES * (0.35 + 1.15 * grown)


def arrivals() -> Iterator[tuple[int, Event]]:
    """Poisson, thinned to the load of the moment."""
    chance = random.Random(1)
    most = DEVICES * 1.5 * PER_DEVICE
    second, number = 0.0, 0
    while (second := second + chance.expovariate(most)) < FLAT_S + RAMP_S + END_S:
        if chance.random() * most < load_at(second) * PER_DEVICE:
            number += 1
            at_ns = round(second * SECOND_NS)
            yield at_ns, RequestArrived(number, "m", at_ns, at_ns + ms(800))


class Look(NamedTuple):
    """Of one window of ten seconds."""

    second: int
    recommended: int
    offered: float
    attainment: float


class Day:
    """A fleet under that load. With `is_scaled` it gets the devices that are advised, each one
    horizon after it was.
    """

    def __init__(self, *, is_scaled: bool) -> None:
        self.looks: list[Look] = []
        self.num_asked = self.num_met = self.num_devices = 0
        self._is_scaled = is_scaled
        self._seen = (0, 0)  # asked and met, at the last look
        self._scaling = Scaling(horizon_ns=HORIZON_S * SECOND_NS, target_utilisation=TARGET)
        self._scheduler = Scheduler(models=[MODEL])
        self._simulation = Simulation(
            self._scheduler,
            [self._device() for _ in range(DEVICES)],
            on_answer=self._on_answer,
            keeps_outcomes=False,
        )
        for second in range(1, FLAT_S + RAMP_S + END_S):
            self._simulation.call_at(second * SECOND_NS, partial(self._look, second))
        self._simulation.run(arrivals())

    @property
    def attainment(self) -> float:
        return self.num_met / self.num_asked

    def _device(self) -> SimulatedWorker:
        self.num_devices += 1
        worker_id = f"w{self.num_devices}#1"
        return SimulatedWorker(worker_id, DEVICE, [MODEL], noise=0.005, resident=("m",))

    def _on_answer(self, request_id: int, outcome: Outcome, now: int) -> None:
        self.num_asked += 1
        self.num_met += isinstance(outcome, Served)

    def _look(self, second: int) -> None:
        scheduler, advice = self._scheduler, self._scaling
        now = second * SECOND_NS
        refused = self.num_asked - self.num_met
        load = scheduler.offered_load(now)
        advice.observe(Sample(load, scheduler.num_serving, self.num_asked, refused), now)
        recommended, offered = advice.recommended_devices, advice.offered_load
        if second % 10 or recommended is None or offered is None:
            return
        asked, met = self.num_asked - self._seen[0], self.num_met - self._seen[1]
        self._seen = self.num_asked, self.num_met
        self.looks.append(Look(second, recommended, offered, met / asked))
        while self._is_scaled and self.num_devices < recommended:
            at_ns = now + HORIZON_S * SECOND_NS
            self._simulation.call_at(at_ns, partial(self._simulation.join, self._device()))


def test_more_devices_are_advised_before_promises_are_broken() -> None:
    day = Day(is_scaled=False)
    asked_for = next(look.second for look in day.looks if look.recommended > DEVICES)
    broken = next(look.second for look in day.looks if look.attainment < 0.99)
    assert asked_for > FLAT_S  # what there is is enough for a third of its load
    assert broken >= asked_for + HORIZON_S  # in time for a device to come up
    # Refused requests are in the load: a full fleet does not look as if it were enough.
    *_, last = day.looks
    assert last.attainment < 0.75
    assert last.offered == pytest.approx(load_at(last.second), rel=0.15)
    assert last.recommended >= last.offered / TARGET


def test_a_fleet_that_follows_the_advice_keeps_its_promises() -> None:
    day = Day(is_scaled=True)
    assert day.attainment > 0.995
    assert min(look.attainment for look in day.looks) > 0.95
    needed = load_at(FLAT_S + RAMP_S) / TARGET
    assert needed <= day.num_devices <= needed + 3  # and no fleet of idle ones
