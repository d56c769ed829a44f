"""A mean over seeds, and how sure it is: Student's t at 95 %."""

from collections.abc import Sequence
from typing import NamedTuple

# Two-sided 95 % quantile of Student's t for 2 to 30 degrees of freedom (any table of statistics).
_FIRST_FREEDOM = 2
_T_95 = (
    4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024,
    2.085963, 2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407,
    2.045230, 2.042272,
)  # fmt: skip


class Interval(NamedTuple):
    """`mean` ± `half_width`, in the unit of the values."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half_width:.2g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % half width of independent runs, one value each.

    Raises ValueError for fewer than three values: two say nothing about spread worth printing.
    Beyond 31 values the table's last entry is used, which is wider than needed by under 5 %.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"an interval needs at least 3 seeds, not {count}")
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    t = _T_95[min(count - 1, _FIRST_FREEDOM + len(_T_95) - 1) - _FIRST_FREEDOM]
    return Interval(mean, t * (variance / count) ** 0.5)
