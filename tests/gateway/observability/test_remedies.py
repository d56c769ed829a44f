"""What helps, by reason: for each of the error table one short sentence."""

import pytest

from gateway.errors import PROBLEMS
from gateway.observability.remedies import REMEDIES


def test_every_reason_of_the_error_table_has_one() -> None:
    assert REMEDIES.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("reason", REMEDIES)
def test_it_fits_beside_a_reason(reason: str) -> None:
    assert len(REMEDIES[reason]) <= 75
    assert REMEDIES[reason][-1] in ".?"
