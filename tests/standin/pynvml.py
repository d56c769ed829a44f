"""What stands in for nvidia-ml-py's `pynvml` in tests: cards by their bus ids, which say what they
are told to say.

`Nvml(...)` is the module, as far as the product uses it. A figure that is None is one that the card
does not support, a name in `missing` is a function that this version does not have at all.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# nvmlReturn_t
NOT_SUPPORTED = 3
NOT_FOUND = 6


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Card:
    """An H100 at work; whatever a test changes is told from then on."""

    def __init__(self) -> None:
        self.energy_mj: int | None = 1_000_000
        self.power_mw: int | None = 299_000
        self.clocks_mhz: dict[int, int] | None = {0: 1980, 1: 1410, 2: 2619}  # graphics, SM, memory
        self.use: SimpleNamespace | None = SimpleNamespace(gpu=93, memory=41)
        self.memory: SimpleNamespace | None = SimpleNamespace(
            total=80 << 30, free=30 << 30, used=50 << 30
        )
        self.temperatures_c: dict[int, int] | None = {0: 67}
        self.reasons: int | None = 0


class Nvml:
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVMLError = NVMLError

    def __init__(self, *missing: str, **cards: Card) -> None:
        """A card by its bus: `b01` is at 0000:01:00.0."""
        self._missing = missing
        self._cards = {f"0000:{bus[1:]}:00.0".encode(): card for bus, card in cards.items()}
        self._figures: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetTotalEnergyConsumption": lambda card: card.energy_mj,
            "nvmlDeviceGetPowerUsage": lambda card: card.power_mw,
            "nvmlDeviceGetClockInfo": lambda card, kind: card.clocks_mhz and card.clocks_mhz[kind],
            "nvmlDeviceGetUtilizationRates": lambda card: card.use,
            "nvmlDeviceGetMemoryInfo": lambda card: card.memory,
            "nvmlDeviceGetTemperature": lambda card, sensor: (
                card.temperatures_c and card.temperatures_c[sensor]
            ),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda card: card.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda card: card.reasons,
        }
        self.is_up = False
        self.breaks_with: BaseException | None = None  # what every figure raises from now on

    def nvmlInit(self) -> None:
        if self.breaks_with is not None:
            raise self.breaks_with
        self.is_up = True

    def nvmlShutdown(self) -> None:
        self.is_up = False

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: bytes) -> Card:
        card = self._cards.get(bus_id)
        if card is None:
            raise NVMLError(NOT_FOUND)
        return card

    def __getattr__(self, name: str) -> Any:
        """The functions that tell a figure."""
        if name not in self._figures or name in self._missing:
            raise AttributeError(name)

        def ask(card: Card, *arguments: int) -> Any:
            if self.breaks_with is not None:
                raise self.breaks_with
            figure = self._figures[name](card, *arguments)
            if figure is None:
                raise NVMLError(NOT_SUPPORTED)
            return figure

        return ask
