from typing import Any

import pytest

from gateway.tenants.api_keys import new_key
from gateway.tenants.device_time import DeviceTime
from gateway.tenants.keyring import Keyring
from gateway.tenants.tenants_file import TenantSpec
from scheduler.actions import Code, Infer, InferResult, LoadResult, Span
from scheduler.events import (
    ActionFinished,
    Cancelled,
    Command,
    Event,
    Reply,
    RequestArrived,
    RequestsArrived,
    Send,
    Tick,
    WorkerLost,
)
from scheduler.spec import ModelProfile, ShapeProfile
from tests.gateway.http_doubles import START_NS, Clock, model_spec, ms

# 1 ms for one row, 3 ms for four
MLP = model_spec()
FREE = model_spec(
    "free",
    profile=ModelProfile(
        ms(1), (ShapeProfile("3x10", 30, {1: ms(2)}), ShapeProfile("3x40", 120, {1: ms(7)}))
    ),
)


class Story:
    def __init__(self) -> None:
        tenants = {name: TenantSpec(keys=(new_key().line,)) for name in ("a", "b")}
        self.keyring = Keyring(tenants, clock=Clock())
        self.time = DeviceTime(self.keyring, {"mlp": MLP, "free": FREE})

    def event(self, event: Event, *commands: Command) -> None:
        self.time.on_event(event, START_NS)
        self.time.on_commands(event, commands, START_NS)

    def arrived(self, request_id: int, tenant: str, *, rows: int = 1) -> RequestArrived:
        return RequestArrived(
            request_id, "mlp", START_NS, START_NS + ms(50), rows, elements=4, tenant=tenant
        )

    def sent(self, action_id: int, *rows_of: tuple[int, int], worker_id: str = "w") -> None:
        ids, rows = zip(*rows_of, strict=True)
        infer = Infer(action_id, "mlp", sum(rows), ids, rows, 0, 0, ms(1))
        self.event(Tick(), Send(worker_id, infer))

    def finished(self, action_id: int, *replied: int, worker_id: str = "w", **figures: Any) -> None:
        spans = {
            "input": Span(0, 0, ms(0.5)),
            "exec": Span(0, 0, ms(3)),
            "output": Span(0, 0, ms(0.5)),
        }
        result = InferResult(action_id, **{"code": Code.OK, **spans, **figures})
        replies = [Reply(request_id, Cancelled()) for request_id in replied]
        self.event(ActionFinished(worker_id, result), *replies)

    def used_ms(self) -> tuple[float, ...]:
        return tuple(tenant.device_ns / ms(1) for tenant in self.keyring.tenants.values())


def test_a_batch_is_divided_by_rows() -> None:
    story = Story()
    story.event(RequestsArrived((story.arrived(1, "a", rows=3), story.arrived(2, "b"))))
    story.sent(7, (1, 3), (2, 1))
    story.finished(7, 1, 2)
    assert story.used_ms() == (3.0, 1.0)


def test_who_went_away_while_it_executed_still_pays() -> None:
    story = Story()
    story.event(story.arrived(1, "a"))
    story.sent(7, (1, 1))
    story.event(Tick(), Reply(1, Cancelled()))
    assert story.used_ms() == (0.0, 0.0)
    story.finished(7)
    assert story.used_ms() == (4.0, 0.0)


def test_what_never_executed_costs_nothing() -> None:
    story = Story()
    story.event(story.arrived(1, "a"), Reply(1, Cancelled()))
    story.event(story.arrived(2, "a"))
    story.sent(7, (2, 1))
    story.finished(7, code=Code.TOO_LATE)
    story.sent(8, (2, 1))
    story.event(WorkerLost("w", "gone"))
    story.finished(8)  # of a worker nobody knows any more
    story.event(ActionFinished("w", LoadResult(9, Code.OK)))
    assert story.used_ms() == (0.0, 0.0)


def test_of_a_batch_that_failed_nobody_pays_and_of_one_alone_its_own() -> None:
    story = Story()
    story.event(RequestsArrived((story.arrived(1, "a"), story.arrived(2, "b"))))
    story.sent(7, (1, 1), (2, 1))
    story.finished(7, code=Code.ENGINE_ERROR)
    assert story.used_ms() == (0.0, 0.0)
    story.sent(8, (1, 1))
    story.finished(8, 1, code=Code.ENGINE_ERROR)
    assert story.used_ms() == (4.0, 0.0)


def test_requests_of_no_tenant_or_of_one_that_is_gone_are_nobodys() -> None:
    story = Story()
    story.event(RequestsArrived((story.arrived(1, ""), story.arrived(2, "gone"))))
    story.event(story.arrived(3, "b"))
    story.sent(7, (1, 1), (2, 1), (3, 2))
    story.finished(7, 1, 2, 3)
    assert story.used_ms() == (0.0, 2.0)


def test_nothing_is_left_of_what_is_over() -> None:
    story = Story()
    for number in range(10):
        story.event(story.arrived(number, "a"))
        story.sent(number, (number, 1))
        story.finished(number, number)
    story.event(WorkerLost("w", "gone"))
    assert (story.time._open, story.time._sent) == ({}, {})


@pytest.mark.parametrize(
    ("rows", "shape_key", "elements", "expected_ms"),
    [
        (1, "3x10", 30, 2.0),
        (2, "3x10", 30, 4.0),  # beyond what was measured: in proportion
        (1, "3x40", 120, 7.0),
        (1, "3x20", 60, 4.0),  # of the nearest in size
        (1, "3x100", 300, 17.5),
        (1, "3x100", 0, 2.0),
    ],
)
def test_first_the_profile_is_believed(
    rows: int, shape_key: str, elements: int, expected_ms: float
) -> None:
    predicted_ns = Story().time.predict_ns(FREE, rows=rows, shape_key=shape_key, elements=elements)
    assert predicted_ns == ms(expected_ms)


def test_a_model_without_a_profile_is_predicted_to_cost_nothing() -> None:
    bare = model_spec("bare", profile=ModelProfile(0, ()))
    assert Story().time.predict_ns(bare, rows=1, shape_key="", elements=1) == 0


def test_then_what_batches_made_of_it() -> None:
    story = Story()

    def predicted_ms() -> float:
        return story.time.predict_ns(MLP, rows=1, shape_key="", elements=4) / ms(1)

    assert predicted_ms() == 1.0
    for number in range(100):
        story.event(story.arrived(number, "a", rows=4))
        story.sent(number, (number, 4))
        story.finished(number, number, input=Span(0, 0, 0), output=Span(0, 0, 0),
                       exec=Span(0, 0, ms(1.5)))  # fmt: skip
    assert 0.5 <= predicted_ms() < 0.51  # half of the 3 ms that were profiled
