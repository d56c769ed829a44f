"""What every part of the benchmark is given: where to report, where files go, how long to measure.

Owns nothing but the names.
"""

from pathlib import Path
from typing import NamedTuple

from loadtest.report import Report


class Bench(NamedTuple):
    report: Report
    out_dir: Path
    is_quick: bool
    seed: int

    @property
    def models_dir(self) -> Path:
        return self.out_dir / "models"

    @property
    def cache_dir(self) -> Path:
        return self.out_dir / "compiled"

    @property
    def log_dir(self) -> Path:
        return self.out_dir / "logs"

    def seconds(self, full_s: float, quick_s: float) -> float:
        return quick_s if self.is_quick else full_s
