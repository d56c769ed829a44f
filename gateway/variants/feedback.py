"""Feedback: which answers of groups may still be judged, and what judgements come to.

It owns the answers that wait, by tenant and request id, and forgets them: the oldest over a number,
and each after its group's time. It must never know how a judgement came; `now` is an argument.
"""

from collections import OrderedDict
from typing import NamedTuple

from gateway.errors import RequestError
from gateway.variants.groups import Group
from scheduler.spec import SECOND_NS

# 35 MB at most, with ids of the longest; at 1,000 answers a second the latest 100 s of them.
MAX_WAITING = 100_000


class Choice(NamedTuple):
    """A member of a group, and with which probability it was chosen among which."""

    member: int
    probability: float
    among: tuple[int, ...]


class _Answered(NamedTuple):
    group: Group
    choice: Choice
    expires_ns: int


class Feedback:
    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self.num_unknown = 0
        self._max_waiting = max_waiting
        # All and only answers that may be judged, or are too old by now, oldest first.
        self._waiting: OrderedDict[tuple[str, str], _Answered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self,
        tenant: str,
        request_id: str,
        group: Group,
        choice: Choice,
        now: int,
    ) -> None:
        """The chosen member has answered. A client that gives the same id to several requests
        judges the latest.
        """
        key = tenant, request_id
        self._waiting.pop(key, None)
        self._waiting[key] = _Answered(group, choice, now + group.feedback_ns)
        if len(self._waiting) > self._max_waiting:
            self._waiting.popitem(last=False)

    def judge(self, tenant: str, request_id: str, loss: float, now: int) -> tuple[Group, str]:
        """`loss` in [0, 1]; once. Returns which group and model it was of.

        Raises RequestError(not_found) where no answer to such a request of this tenant waits.
        """
        answered = self._waiting.pop((tenant, request_id), None)
        if answered is None or answered.expires_ns <= now:
            self.num_unknown += 1
            raise RequestError("not_found", _why_not(request_id, answered, self._max_waiting))
        group = answered.group
        member = group.members[answered.choice.member]
        member.num_feedback += 1
        member.loss += loss
        if group.exp3 is not None:
            chosen, probability, among = answered.choice
            group.exp3.learn(chosen, loss, probability, among)
        return group, member.model


def _why_not(request_id: str, answered: _Answered | None, max_waiting: int) -> str:
    if answered is not None:
        limit_s = answered.group.feedback_ns / SECOND_NS
        return f"the answer to request {request_id[:128]!r} is older than {limit_s:g} s"
    return (
        f"no answer of a group to request {request_id[:128]!r} waits for feedback: it was judged "
        f"already, is not among the last {max_waiting}, or never was"
    )
