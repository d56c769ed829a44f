from gateway.costs.door_cost import measure


def test_each_step_is_served_and_told() -> None:
    steps = measure(num_rounds=2, num_requests=3)
    assert [step.name for step in steps] == [
        "nothing counted",
        "metrics",
        "recent requests",
        "authentication",
        "tenants' device time",
        "quotas",
        "traces of 1 %",
        "traces of all",
    ]
    assert all(step.quartile_us > 0 for step in steps)
    assert [step.added_us is None for step in steps] == [True] + [False] * 7
