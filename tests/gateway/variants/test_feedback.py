import pytest

from gateway.errors import RequestError
from gateway.variants.feedback import Choice, Feedback
from gateway.variants.groups import Group
from gateway.variants.groups_file import GroupSpec, MemberSpec
from scheduler.spec import SECOND_NS

NOW = 7_000_000_000_000_001


def group(**changes: object) -> Group:
    members = (MemberSpec("large"), MemberSpec("small"))
    return Group("g", GroupSpec(members=members, **changes))  # type: ignore[arg-type]


def judged(feedback: Feedback, request_id: str, *, tenant: str = "", at_s: float = 0) -> str:
    """The model, or the detail of the 404."""
    try:
        return feedback.judge(tenant, request_id, 0.5, NOW + round(at_s * SECOND_NS))[1]
    except RequestError as error:
        return error.detail


def test_an_answer_is_judged_once_and_by_its_tenant() -> None:
    feedback, judging = Feedback(), group()
    feedback.expect("shop", "a", judging, Choice(1, 0.5, (0, 1)), NOW)
    assert "no answer of a group to request 'a' waits" in judged(feedback, "a", tenant="other")
    assert judged(feedback, "a", tenant="shop") == "small"
    assert "it was judged already" in judged(feedback, "a", tenant="shop")
    member = judging.members[1]
    assert (member.num_feedback, member.loss) == (1, 0.5)
    assert (len(feedback), feedback.num_unknown) == (0, 2)


def test_an_answer_is_too_old_after_its_groups_time() -> None:
    feedback, judging = Feedback(), group(feedback_s=60)
    for request_id in ("a", "b"):
        feedback.expect("", request_id, judging, Choice(0, 1.0, (0, 1)), NOW)
    assert judged(feedback, "a", at_s=59.9) == "large"
    assert judged(feedback, "b", at_s=60) == "the answer to request 'b' is older than 60 s"
    assert judging.members[0].num_feedback == 1


def test_memory_is_bounded_and_the_oldest_go() -> None:
    feedback, judging = Feedback(max_waiting=2), group()
    for request_id in ("a", "b", "c"):
        feedback.expect("", request_id, judging, Choice(0, 1.0, (0, 1)), NOW)
    assert len(feedback) == 2
    assert "is not among the last 2" in judged(feedback, "a")
    assert judged(feedback, "c") == "large"


def test_of_several_with_one_id_the_latest_is_judged() -> None:
    feedback, judging = Feedback(), group()
    feedback.expect("", "a", judging, Choice(0, 1.0, (0, 1)), NOW)
    feedback.expect("", "a", judging, Choice(1, 1.0, (0, 1)), NOW)
    assert len(feedback) == 1
    assert judged(feedback, "a") == "small"


def test_exp3_learns_with_the_probability_of_the_choice() -> None:
    feedback, judging = Feedback(), group(selection="exp3", eta=0.5)
    assert judging.exp3 is not None
    feedback.expect("", "a", judging, Choice(0, 0.25, (0, 1)), NOW)
    feedback.judge("", "a", 0.8, NOW)
    expected = group(selection="exp3", eta=0.5).exp3
    assert expected is not None
    expected.learn(0, 0.8, 0.25, (0, 1))
    assert judging.exp3.probabilities((0, 1)) == expected.probabilities((0, 1))


def test_feedback_of_a_refused_kind_changes_nothing() -> None:
    feedback = Feedback()
    with pytest.raises(RequestError) as raised:
        feedback.judge("", "never heard of", 0.5, NOW)
    assert raised.value.reason == "not_found"
    assert feedback.num_unknown == 1
