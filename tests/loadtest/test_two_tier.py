"""Two-tier scheduling of benchmark jobs: decisions by hand, the gain in virtual time."""

import pytest

from loadtest.job_queue import experiment
from loadtest.job_queue.two_tier import (
    Follower,
    Order,
    Placement,
    Waiting,
    choose,
    patience_s,
    place,
    steal,
)
from loadtest.job_queue.virtual import PlayedJob, Rules, play


def waiting(number, estimated_s, submitted_s=0.0):
    return Waiting(
        job_id=f"j{number}", number=number, submitted_s=submitted_s, estimated_s=estimated_s
    )


FOLLOWERS = [
    Follower(name="a", backlog_s=50),
    Follower(name="b", backlog_s=20),
    Follower(name="c", backlog_s=0, is_idle_host=False),
]


def test_the_least_backlog_of_the_idle_hosts_gets_the_job():
    assert place(FOLLOWERS, Placement.LEAST_BACKLOG, 7) == "b"


def test_without_an_idle_host_the_least_backlog_of_all_gets_it():
    busy = [Follower(name=f.name, backlog_s=f.backlog_s, is_idle_host=False) for f in FOLLOWERS]
    assert place(busy, Placement.LEAST_BACKLOG, 7) == "c"


def test_round_robin_goes_by_the_number_alone():
    assert [place(FOLLOWERS, Placement.ROUND_ROBIN, n) for n in range(4)] == ["a", "b", "c", "a"]


def test_no_follower_gets_nothing():
    assert place([], Placement.LEAST_BACKLOG, 0) is None


def test_the_shortest_goes_first_and_the_first_of_equals():
    jobs = [waiting(0, 60), waiting(1, 10), waiting(2, 10)]
    assert choose(jobs, Order.SHORTEST_FIRST, 0).number == 1
    assert choose(jobs, Order.FIRST_COME, 0).number == 0
    assert choose([], Order.SHORTEST_FIRST, 0) is None


def test_who_has_waited_too_long_lets_nobody_more_pass():
    jobs = [waiting(0, 600), waiting(1, 10, submitted_s=11_995)]
    assert patience_s(600) == 12_000
    assert choose(jobs, Order.SHORTEST_FIRST, 11_999).number == 1
    assert choose(jobs, Order.SHORTEST_FIRST, 12_001).number == 0


def test_a_follower_with_nothing_to_do_takes_from_the_longest_queue():
    queues = {"a": [waiting(0, 30)], "b": [waiting(1, 50), waiting(2, 5)], "c": []}
    assert steal(queues, Order.SHORTEST_FIRST, 0).number == 2
    assert steal({"a": []}, Order.SHORTEST_FIRST, 0) is None


def test_one_follower_plays_the_shortest_first():
    jobs = [PlayedJob(0, 10, 10), PlayedJob(1, 30, 30), PlayedJob(2, 5, 5)]
    assert play(jobs, followers=1, rules=Rules()).completion_s == (10, 44, 13)
    first_come = Rules(placement=Placement.ROUND_ROBIN, order=Order.FIRST_COME)
    assert play(jobs, followers=1, rules=first_come).completion_s == (10, 39, 43)


def test_stealing_repairs_what_a_wrong_estimate_did():
    # The first is believed to be short, so that the third waits behind it; it is not.
    jobs = [PlayedJob(0, 100, 1), PlayedJob(0, 10, 10), PlayedJob(0, 10, 10)]
    assert play(jobs, followers=2, rules=Rules()).completion_s == (100, 10, 110)
    assert play(jobs, followers=2, rules=Rules(steals=True)).completion_s == (100, 10, 20)


def test_the_papers_gain_is_reached_with_as_many_jobs_at_once():
    setting = experiment.Setting("uniform up to 5 min", 160, None)
    found = experiment.ratios(setting, "exact", experiment.TWO_TIER, range(1, 6))
    assert sum(found) / len(found) == pytest.approx(experiment.PAPER_RATIO, abs=0.05)


def test_the_page_says_every_setting_and_estimate():
    text = experiment.page(range(1, 4), "command")
    for name in (*experiment.DURATIONS, *experiment.ESTIMATES):
        assert name in text


def test_wrong_estimates_change_no_job():
    setting = experiment.SETTINGS[0]
    exact = experiment.jobs_of(setting, "exact", 3)
    wrong = experiment.jobs_of(setting, "off by 2.7x, typically", 3)
    assert [job[:2] for job in exact] == [job[:2] for job in wrong]
    assert [job.estimated_s for job in exact] != [job.estimated_s for job in wrong]
