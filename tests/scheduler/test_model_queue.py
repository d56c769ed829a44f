"""Deadline order, with the cheap ways out of it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.events import RequestArrived
from scheduler.model_queue import ModelQueue
from scheduler.priority import HIGH, LOW, NORMAL
from scheduler.request import Request


def request(request_id: int, deadline_ns: int, rows: int = 1) -> Request:
    return Request(RequestArrived(request_id, "m", 0, deadline_ns, rows))


def queue_of(*requests: Request) -> ModelQueue:
    queue = ModelQueue("m", "", "", 0)
    for each in requests:
        queue.push(each)
    return queue


def ids(queue: ModelQueue) -> list[int]:
    return [each.request_id for each in queue]


def test_the_earliest_deadline_is_the_head() -> None:
    queue = queue_of(request(1, 30), request(2, 10), request(3, 20))
    assert ids(queue) == [2, 3, 1]
    assert queue.last_deadline_ns == 30


def test_equal_deadlines_keep_the_order_of_arrival() -> None:
    queue = queue_of(request(1, 10), request(2, 20), request(3, 10), request(4, 10))
    assert ids(queue) == [1, 3, 4, 2]


def test_push_says_whether_the_head_is_new() -> None:
    queue = ModelQueue("m", "", "", 0)
    assert queue.push(request(1, 20))
    assert not queue.push(request(2, 20))
    assert not queue.push(request(3, 30))
    assert queue.push(request(4, 10))


def test_push_after_everything_was_popped_makes_a_head() -> None:
    queue = queue_of(request(1, 20))
    queue.pop_head()
    assert queue.head is None
    assert len(queue) == 0
    assert queue.push(request(2, 10))
    assert ids(queue) == [2]


def test_rows_are_counted() -> None:
    first, second = request(1, 10, rows=3), request(2, 20, rows=4)
    queue = queue_of(first, second, request(3, 30))
    assert queue.num_rows == 8
    queue.remove(second)
    assert queue.num_rows == 4
    assert queue.pop_head() is first
    assert queue.num_rows == 1


def test_a_request_is_removed_from_among_equals() -> None:
    equals = [request(i, 10) for i in range(5)]
    queue = queue_of(*equals)
    queue.remove(equals[3])
    assert ids(queue) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("instant", "num_by", "first_after"),
    [(9, 0, 1), (10, 1, 2), (19, 1, 2), (20, 3, 4), (40, 4, None)],
)
def test_counting_by_deadline(instant: int, num_by: int, first_after: int | None) -> None:
    queue = queue_of(request(0, 1), request(1, 10), request(2, 20), request(3, 20), request(4, 40))
    queue.pop_head()
    assert queue.num_due_by(instant) == num_by
    assert queue.num_due_after(instant) == 4 - num_by
    found = queue.first_due_after(instant)
    assert (found.request_id if found else None) == first_after


def test_a_run_begins_at_the_head_or_past_it() -> None:
    requests = [request(i, 10 * i) for i in range(5)]
    queue = queue_of(*requests)
    assert queue.run_from(requests[0], 2) == requests[:2]
    assert queue.run_from(requests[3], 9) == requests[3:]


def test_a_long_life_matches_a_sorted_list() -> None:
    chance = random.Random(7)
    queue = ModelQueue("m", "", "", 0)
    expected: list[tuple[int, int, Request]] = []
    for step in range(2_000):
        if expected and chance.random() < 0.45:
            if chance.random() < 0.8:
                assert queue.pop_head() is expected.pop(0)[2]
            else:
                queue.remove(expected.pop(chance.randrange(len(expected)))[2])
        else:
            new = request(step, chance.randrange(50))
            queue.push(new)
            expected.append((new.deadline_ns, step, new))
            expected.sort(key=lambda entry: entry[:2])
        assert list(queue) == [entry[2] for entry in expected]
        assert queue.head is (expected[0][2] if expected else None)


def of(priority: int, request_id: int, deadline_ns: int) -> Request:
    return Request(RequestArrived(request_id, "m", 0, deadline_ns, priority=priority))


def test_classes_are_kept_apart_while_there_is_more_than_the_usual() -> None:
    high, low, usual = of(HIGH, 1, 10), of(LOW, 2, 20), of(NORMAL, 3, 30)
    queue = queue_of(usual)
    assert queue.only_class == NORMAL
    assert queue.of_class(HIGH) is None
    assert queue.of_class(NORMAL) is queue
    queue.push(high)
    queue.push(low)
    assert queue.only_class is None
    assert [ids(queue.of_class(p) or queue) for p in (HIGH, NORMAL, LOW)] == [[1], [3], [2]]
    assert queue.pop_head() is high
    assert queue.of_class(HIGH) is None
    queue.remove(usual)
    assert queue.only_class == LOW
    queue.remove(low)
    assert queue.only_class == NORMAL
    assert queue.of_class(NORMAL) is None


def test_only_the_high_are_a_class_too() -> None:
    assert queue_of(of(HIGH, 1, 10), of(HIGH, 2, 20)).only_class == HIGH


@given(
    st.lists(st.tuples(st.sampled_from([HIGH, NORMAL, LOW]), st.integers(1, 9), st.integers(1, 3))),
    st.sampled_from([HIGH, NORMAL, LOW]),
    st.integers(0, 10),
)
def test_who_is_before_a_newcomer_is_all_of_higher_classes_and_the_due_of_its_own(
    waiting: list[tuple[int, int, int]], priority: int, deadline_ns: int
) -> None:
    """Of a class with requests of several rows, all: a sum by deadline is not kept."""
    queue = ModelQueue("m", "", "", 0)
    for number, (of_class, due_ns, rows) in enumerate(waiting):
        queue.push(Request(RequestArrived(number, "m", 0, due_ns, rows, priority=of_class)))
    own = [(due_ns, rows) for of_class, due_ns, rows in waiting if of_class == priority]
    is_single = all(rows == 1 for _, rows in own)
    expected = sum(rows for of_class, _, rows in waiting if of_class < priority)
    expected += sum(rows for due_ns, rows in own if due_ns <= deadline_ns or not is_single)
    assert queue.rows_before(deadline_ns, priority) == expected
