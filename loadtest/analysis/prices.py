"""What a thousand requests cost: money, energy, carbon dioxide, from a table that users edit.

Owns the table's words and the sums. The table that comes along is prices.yaml.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import yaml

DEFAULT_PRICES = Path(__file__).with_name("prices.yaml")
JOULES_PER_KWH = 3.6e6
SECONDS_PER_HOUR = 3600.0


class PriceError(ValueError):
    """The table does not say what it should. The message names file and key."""


class Grid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pue: float = 1.0
    grams_co2_per_kwh: float

    def __post_init__(self) -> None:
        if self.pue < 1 or self.grams_co2_per_kwh < 0:
            raise ValueError(
                f"pue is at least 1 and grams_co2_per_kwh at least 0, not {self.pue:g} and "
                f"{self.grams_co2_per_kwh:g}"
            )


class DevicePrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    usd_per_hour: float
    idle_watts: float
    busy_watts: float

    def __post_init__(self) -> None:
        if self.usd_per_hour < 0 or not 0 <= self.idle_watts <= self.busy_watts:
            raise ValueError(
                "usd_per_hour is at least 0, and idle_watts between 0 and busy_watts, not "
                f"{self.usd_per_hour:g}, {self.idle_watts:g} and {self.busy_watts:g}"
            )


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of 1,000 requests that were served in time. `is_measured` is of the energy; else it is watts
    of the table, times how busy the device was.
    """

    usd: float
    energy_wh: float
    grams_co2: float
    is_measured: bool


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of when the figures are, and whether somebody has compared them with a price list, a contract
    or a meter.
    """

    as_of: str
    verified: bool = False


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grid: Grid
    devices: dict[str, DevicePrice]
    about: About | None = None
    file: str = ""  # as `load` has found it

    @property
    def origin(self) -> str:
        """Whose figures these are, for who reads a cost."""
        name = Path(self.file).name or "a table"
        if self.about is None:
            return f"{name}, which does not say of when it is"
        return f"{name}, as of {self.about.as_of}, {'' if self.about.verified else 'not '}verified"

    def of(self, device: str) -> DevicePrice | None:
        """The first line whose name fits, or None."""
        for name, price in self.devices.items():
            if fnmatchcase(device, name):
                return price
        return None

    def cost(
        self,
        device: str,
        *,
        devices: int,
        goodput_per_s: float,
        busy: float,
        energy_j_per_s: float | None = None,
    ) -> Cost | None:
        """None where the table does not know the device, or nothing was served in time.

        `busy` is the mean share of its devices that is used; `energy_j_per_s` what they were
        measured to draw together.
        """
        price = self.of(device)
        if price is None or goodput_per_s <= 0:
            return None
        seconds = 1000 / goodput_per_s
        share = min(1.0, max(0.0, busy))
        watts = devices * (price.idle_watts + share * (price.busy_watts - price.idle_watts))
        drawn = watts if energy_j_per_s is None else energy_j_per_s
        kwh = drawn * seconds * self.grid.pue / JOULES_PER_KWH
        return Cost(
            usd=devices * price.usd_per_hour * seconds / SECONDS_PER_HOUR,
            energy_wh=kwh * 1000,
            grams_co2=kwh * self.grid.grams_co2_per_kwh,
            is_measured=energy_j_per_s is not None,
        )


def load(path: Path | None = None) -> Prices:
    """The user's table, or the one that comes along. Raises PriceError."""
    file = path or DEFAULT_PRICES
    try:
        tree = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise PriceError(f"{file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PriceError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping):
        raise PriceError(f"{file}: it has no keys; it needs grid and devices")
    about = tree.get("about")
    if isinstance(about, Mapping) and "as_of" in about:  # YAML reads 2026 and 2026-05-04 as none
        tree = {**tree, "about": {**about, "as_of": str(about["as_of"])}}
    try:
        return msgspec.structs.replace(msgspec.convert(tree, Prices), file=str(file))
    except msgspec.ValidationError as error:
        raise PriceError(f"{file}: {error}") from error
