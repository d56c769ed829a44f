"""The sums of docs/scale.md."""

import pytest

from loadtest.sharding import deal, main, popularity


def test_popularity_is_zipfs_and_whole() -> None:
    assert popularity(4, 1.0) == pytest.approx([0.48, 0.24, 0.16, 0.12])
    assert popularity(4, 0.0) == [0.25] * 4


def test_of_two_the_next_has_it_all_while_the_fullest_is_away() -> None:
    dealt = deal(200, 2, skew=0.0)
    assert dealt.models == 100
    assert dealt.fullest_models == pytest.approx(dealt.fullest_load)
    assert 1 <= dealt.fullest_load < 1.3
    assert dealt.gone_load == pytest.approx(2.0)
    assert 0.2 < dealt.moved < 0.45  # a third, of 200


def test_the_table_has_a_row_for_each_number_of_replicas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--models", "100", "--gpus", "8", "--rate", "1000", "--skew", "0"]
    assert main([*command, "--replicas", "2", "--replicas", "4"]) == 0
    printed = capsys.readouterr().out
    assert "1,000 requests/s" in printed
    for number, gpus, models in (("2", "4", "50"), ("4", "2", "25")):
        assert any(line.split()[1::2][:3] == [number, gpus, models] for line in printed.split("\n"))
