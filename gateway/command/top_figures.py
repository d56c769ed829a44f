"""TopFigures: what `remontoir top` knows of a gateway, from the events of its live page.

It owns every figure that is computed on this side: rates over the last WINDOW_S seconds, shares of
lanes. It must never draw, and never ask the gateway anything.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from gateway.command.client import JsonObject

WINDOW_S = 30.0
MAX_BARS = 4000  # kept of each lane
MAX_WORST = 400  # requests, of which the worst half is kept
EXEC, LOAD = 0, 1
RESIDENT = 2  # of the numbers that stand for states of weights


class Counted(NamedTuple):
    """Of a model, since the gateway started, at an instant."""

    at_us: int
    served: int
    missed: int
    latency_ms: int
    reasons: dict[str, int]


class ModelLine(NamedTuple):
    name: str
    state: str
    goodput: float  # requests per second in time
    attainment: float | None  # None where no promise was made
    missed: int
    latency_ms: float | None
    queued: int
    pages: int


class DeviceLine(NamedTuple):
    worker: str
    kind: str
    exec_share: float
    load_share: float
    exec_slices: list[float]  # shares, oldest first
    load_slices: list[float]
    pages_free: int
    total_pages: int
    outstanding: int


class WorstLine(NamedTuple):
    request_id: str
    model: str
    slack_ms: float | None
    slo_ms: float
    why: str


class Advice(NamedTuple):
    """How many devices there should be, and how many there are."""

    recommended: int
    devices: int


class _Device:
    def __init__(self, told: JsonObject) -> None:
        self.told = told
        self.bars: tuple[deque[tuple[int, int, int]], ...] = (
            deque(maxlen=MAX_BARS),
            deque(maxlen=MAX_BARS),
        )
        holds = told["holds"]
        # All and only models with pages: index → state.
        self.holds: dict[int, int] = dict(zip(holds[::3], holds[1::3], strict=True))
        self.figures: list[float | None] = []


class TopFigures:
    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.version = self.phase = ""
        self.at_us = 0
        self.num_frames = 0
        self.lost: list[str] = []
        self._opened_us = 0
        self._epoch = -1
        self._clients_own: frozenset[str] = frozenset()
        self._models: list[JsonObject] = []
        self._queued: dict[str, int] = {}
        self._history: dict[str, deque[Counted]] = {}
        self._devices: list[_Device] = []
        self._worst: dict[str, JsonObject] = {}  # of the last minute, by id
        self.remedies: dict[str, str] = {}  # by reason
        self.advice: Advice | None = None

    def on_event(self, name: str, data: JsonObject) -> None:
        if name == "snapshot":
            self._on_snapshot(data)
        elif name == "frame" and data["epoch"] == self._epoch:
            self._on_frame(data)

    @property
    def window_s(self) -> float:
        return max(0.1, min(WINDOW_S, (self.at_us - self._opened_us) / 1e6))

    def models(self) -> Iterator[ModelLine]:
        for index, model in enumerate(self._models):
            name = model["name"]
            first, last = self._ends(name)
            served, missed = last.served - first.served, last.missed - first.missed
            yield ModelLine(
                name=name,
                state=self._state(index, model),
                goodput=served / self.window_s,
                attainment=served / (served + missed) if served + missed else None,
                missed=missed,
                latency_ms=(last.latency_ms - first.latency_ms) / served if served else None,
                queued=self._queued.get(name, 0),
                pages=model["pages"],
            )

    def devices(self, num_slices: int, slices_s: float = 10.0) -> Iterator[DeviceLine]:
        """Shares are of the last ten seconds, slices of `slices_s`."""
        for device in sorted(self._devices, key=_natural):
            figures = device.figures or [0, 0, 0]
            exec_bars, load_bars = device.bars
            from_us = self.at_us - 10_000_000
            width_us = round(slices_s * 1e6) // max(1, num_slices)
            begin_us = self.at_us - width_us * num_slices
            yield DeviceLine(
                worker=device.told["worker"],
                kind=device.told["kind"],
                exec_share=_share(exec_bars, from_us, self.at_us),
                load_share=_share(load_bars, from_us, self.at_us),
                exec_slices=_slices(exec_bars, begin_us, width_us, num_slices),
                load_slices=_slices(load_bars, begin_us, width_us, num_slices),
                pages_free=int(figures[1] or 0),
                total_pages=device.told["total_pages"],
                outstanding=int(figures[2] or 0),
            )

    def reasons(self) -> list[tuple[str, int, int]]:
        """("outcome:reason", lately, since the start), the most frequent lately first."""
        lately: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for name in self._history:
            first, last = self._ends(name)
            total.update(last.reasons)
            for reason, count in last.reasons.items():
                lately[reason] += count - first.reasons.get(reason, 0)
        rows = [(reason, lately[reason], count) for reason, count in total.items()]
        return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))

    def worst(self) -> list[WorstLine]:
        """Of the last WINDOW_S, the least slack first; what was not served goes before."""
        after_us = self.at_us - WINDOW_S * 1e6
        told = [request for request in self._worst.values() if request["at_us"] > after_us]
        return [
            WorstLine(
                request["request_id"],
                request["model"],
                request["slack_ms"],
                request["slo_ms"],
                "served"
                if request["reason"] is None
                else f"{request['reason']}: {request['detail']}",
            )
            for request in sorted(told, key=_badness)
        ]

    def _on_snapshot(self, data: JsonObject) -> None:
        if data["at_us"] < self.at_us:
            self._forget()  # another process answers at this address
        if not self._opened_us:
            self._opened_us = data["at_us"]
        self._epoch, self.version, self.phase = data["epoch"], data["version"], data["phase"]
        self._clients_own = frozenset(data["clients_own"])
        self.remedies = data["remedies"]
        self._models, self.lost = data["models"], data["lost"]
        bars = {device.told["worker"]: device.bars for device in self._devices}
        self._devices = [_Device(told) for told in data["devices"]]
        for device in self._devices:
            device.bars = bars.get(device.told["worker"], device.bars)
        self._history = {
            model["name"]: self._history.get(model["name"]) or deque() for model in self._models
        }
        self._merge(data)
        for history in self._history.values():
            if not history:
                history.append(Counted(self.at_us, 0, 0, 0, {}))

    def _on_frame(self, data: JsonObject) -> None:
        self.num_frames += 1
        for device, lane, _, begin_us, end_us, busy_us, *_ in data["bars"]:
            self._devices[device].bars[lane].append((begin_us, end_us, busy_us))
        holds = data["holds"]
        for device, model, state in zip(holds[::4], holds[1::4], holds[2::4], strict=True):
            self._devices[device].holds[model] = state
        self._merge(data)

    def _merge(self, data: JsonObject) -> None:
        self.at_us = data["at_us"]
        for model, served, _, _, queued, latency_ms, *_, reasons in data["counts"]:
            name = self._models[model]["name"]
            broken = sum(
                count
                for reason, count in reasons.items()
                if reason.partition(":")[2] not in self._clients_own
            )
            history = self._history[name]
            history.append(Counted(self.at_us, served, broken, latency_ms, reasons))
            while len(history) > 1 and history[1].at_us <= self.at_us - WINDOW_S * 1e6:
                history.popleft()
            self._queued[name] = queued
        for request in data["worst"]:
            self._worst[request["request_id"]] = request
        if len(self._worst) > MAX_WORST:
            after_us = self.at_us - WINDOW_S * 1e6
            recent = [r for r in self._worst.values() if r["at_us"] > after_us]
            kept = sorted(recent, key=_badness)[: MAX_WORST // 2]
            self._worst = {request["request_id"]: request for request in kept}
        advice = data["scaling"]
        self.advice = advice and Advice(advice["recommended"], advice["devices"])
        for index, *figures in data["figures"]:
            self._devices[index].figures = [index, *figures]

    def _ends(self, name: str) -> tuple[Counted, Counted]:
        history = self._history[name]
        from_us = self.at_us - WINDOW_S * 1e6
        first = history[0]
        for point in history:
            if point.at_us > from_us:
                break
            first = point
        return first, history[-1]

    def _state(self, index: int, model: JsonObject) -> str:
        if model["unavailable_reason"] is not None:
            return "unavailable"
        states = [device.holds.get(index, 0) for device in self._devices]
        if RESIDENT in states:
            return f"resident on {states.count(RESIDENT)}"
        return "loading" if 1 in states else "absent"


def _badness(request: JsonObject) -> float:
    """Of requests that were not served, without a prediction: as bad as just missed."""
    slack_ms: float = request["slack_ms"] or 0.0
    return slack_ms if request["outcome"] == "served" else min(0.0, slack_ms)


def _natural(device: _Device) -> list[tuple[int, str]]:
    """gpu-10 comes after gpu-9."""
    parts = re.split(r"(\d+)", device.told["worker"])
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _share(bars: deque[tuple[int, int, int]], from_us: int, to_us: int) -> float:
    return sum(_busy_between(bar, from_us, to_us) for bar in bars) / max(1, to_us - from_us)


def _slices(
    bars: deque[tuple[int, int, int]], begin_us: int, width_us: int, num_slices: int
) -> list[float]:
    busy = [0.0] * num_slices
    for bar in bars:
        first = max(0, (bar[0] - begin_us) // width_us)
        last = min(num_slices - 1, (bar[1] - begin_us) // width_us)
        for place in range(first, last + 1):
            from_us = begin_us + place * width_us
            busy[place] += _busy_between(bar, from_us, from_us + width_us)
    return [min(1.0, us / width_us) for us in busy]


def _busy_between(bar: tuple[int, int, int], from_us: int, to_us: int) -> float:
    begin_us, end_us, busy_us = bar
    inside_us = min(end_us, to_us) - max(begin_us, from_us)
    return busy_us * inside_us / (end_us - begin_us) if inside_us > 0 else 0.0
