"""What the metrics page says of groups of variants.

It owns these names and labels. Groups and members are of the groups file, so there are as many
labels as it has names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gateway.metrics.text import escaped, family
from gateway.variants.feedback import Feedback
from gateway.variants.groups import Group, Member

_OF_MEMBERS: Sequence[tuple[str, str, Callable[[Member], float]]] = (
    ("group_requests_total", "Requests to groups that were answered.", lambda m: m.num_served),
    ("group_feedback_total", "Judgements of answers of groups.", lambda m: m.num_feedback),
    ("group_feedback_loss_total", "Sum of the losses of those.", lambda m: m.loss),
)


def group_parts(groups: Mapping[str, Group], feedback: Feedback) -> Iterator[str]:
    told = [
        (f'group="{escaped(group.name)}",model="{escaped(member.model)}"', member)
        for group in groups.values()
        for member in group.members
    ]
    for name, text, value_of in _OF_MEMBERS:
        yield family(name, "counter", text, [(labels, value_of(member)) for labels, member in told])
    chances = [
        chance
        for group in groups.values()
        for chance in (
            [None] * len(group.members)
            if group.exp3 is None
            else group.exp3.probabilities(range(len(group.members)))
        )
    ]
    yield family(
        "group_probability",
        "gauge",
        "With which exp3 chooses the member, were all in time.",
        [
            (labels, chance)
            for (labels, _), chance in zip(told, chances, strict=True)
            if chance is not None
        ],
    )
    waiting = "Answers of groups that may still be judged."
    yield family("feedback_waiting", "gauge", waiting, [("", len(feedback))])
    unknown = "Feedback to requests that are unknown, judged or too old."
    yield family("feedback_unknown_total", "counter", unknown, [("", feedback.num_unknown)])
