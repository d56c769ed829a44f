from gateway.costs.sharing_cost import SIZES, measure


def test_each_case_is_what_it_is_called() -> None:
    cases = measure(num_rounds=2)
    assert [case.input_bytes for case in cases] == list(SIZES)
    assert all(min(case.plain_us, case.hit_us, case.miss_us) > 0 for case in cases)
