"""The comparison of autoscalers: every policy is played, and a page is made of what came of it."""

from loadtest.planning.autoscaling import POLICIES, page, rows


def test_a_short_day_makes_a_page() -> None:
    found = rows(seeds=(1,), launches_s=(30.0,), duration_s=120.0)
    assert [row.policy for row in found] == list(POLICIES)
    assert len({row.episodes[0].requests for row in found}) == 1  # all are asked the same
    text = page(found, "the command")
    assert text.count("\n| 30 s |") == len(POLICIES)
    [oracle] = [line for line in text.splitlines() if line.startswith("| 30 s | oracle")]
    assert "| 1.00 x |" in oracle
    [reactive] = [line for line in text.splitlines() if line.startswith("| 30 s | reactive")]
    assert reactive.endswith("| 0.00 % |")
