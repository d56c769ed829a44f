from pathlib import Path

import pytest

from gateway.variants.groups_file import (
    GroupsError,
    GroupSpec,
    MemberSpec,
    parse_groups,
    read_groups,
)


def parse(text: str) -> dict[str, GroupSpec]:
    return dict(parse_groups(text, source="groups file g.yaml"))


def test_members_are_in_order_of_preference_or_of_accuracy(tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text(
        "groups:\n"
        "  listed: {members: [large, small]}\n"
        "  measured:\n"
        "    members:\n"
        "      - {model: small, accuracy: 0.69}\n"
        "      - {model: large, accuracy: 0.78}\n"
        "      - {model: twin, accuracy: 0.78}\n"
        "    selection: exp3\n"
        "    eta: 0.2\n"
        "    seed: 7\n"
        "    default_slo_ms: 50\n"
        "    feedback_s: 60\n"
    )
    assert read_groups(file) == {
        "listed": GroupSpec(members=(MemberSpec("large"), MemberSpec("small"))),
        "measured": GroupSpec(
            members=(
                MemberSpec("large", 0.78),
                MemberSpec("twin", 0.78),
                MemberSpec("small", 0.69),
            ),
            selection="exp3",
            eta=0.2,
            seed=7,
            default_slo_ms=50,
            feedback_s=60,
        ),
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("groups: [", "is not YAML"),
        ("g: {}", "expected one key at the top level, `groups:`"),
        ("groups: {}", "`groups:` names none"),
        ("groups: {a: {members: [x, y]}, a: {members: [x, y]}}", "a key is there twice"),
        ("groups: {1: {members: [x, y]}}", "group 1: a name is a text"),
        ("groups: {a/b: {members: [x, y]}}", "group 'a/b': a name is a text without '/'"),
        ("groups: {a: }", "group a: Expected `object`, got `null`"),
        ("groups: {a: {}}", "group a: Object missing required field `members`"),
        ("groups: {a: {members: [x]}}", "group a: 1 members, expected 2 to 16"),
        ("groups: {a: {members: [x, x]}}", "group a: a member is there twice: x, x"),
        ("groups: {a: {members: [x, 7]}}", "group a: Expected `object`, got `int`"),
        ("groups: {a: {members: [x, y], policy: best}}", "unknown field `policy`"),
        ("groups: {a: {members: [x, y], selection: worst}}", "Invalid enum value 'worst'"),
        ("groups: {a: {members: [x, y], eta: 0}}", "Expected `float` > 0"),
        ("groups: {a: {members: [x, y], feedback_s: 0}}", "Expected `float` > 0"),
        (
            "groups: {a: {members: [x, {model: y, accuracy: 78}]}}",
            "Expected `float` <= 1.0 - at `$.members[1].accuracy`",
        ),
        (
            "groups: {a: {members: [x, {model: y, accuracy: 0.78}, z]}}",
            "no accuracy is given for x, z; give it for all members, or for none",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, why: str) -> None:
    with pytest.raises(GroupsError) as raised:
        parse(text)
    assert str(raised.value).startswith("groups file g.yaml")
    assert why in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(GroupsError, match=r"nowhere\.yaml: No such file"):
        read_groups(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"groups: \xe9")
    with pytest.raises(GroupsError, match="is not UTF-8"):
        read_groups(tmp_path / "latin.yaml")
