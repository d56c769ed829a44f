from pathlib import Path

import pytest

from gateway.tenants.api_keys import new_key
from gateway.tenants.tenants_file import TenantsError, TenantSpec, parse_tenants, read_tenants

KEY = new_key()
OTHER = new_key()
FULL = f"""
tenants:
  shop:
    keys: ["{KEY.line}", "{OTHER.line}"]
    models: ["resnet*", magika]
    default_slo_ms: 50
    min_slo_ms: 10
    weight: 2
    requests_per_s: 100
    requests_burst: 20
    gpu_ms_per_s: 250.5
    gpu_ms_burst: 500
    max_concurrent: 64
  ops: {{admin: true, metrics: true}}
"""


def test_a_full_file_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(FULL)
    tenants = read_tenants(file)
    assert list(tenants) == ["shop", "ops"]
    assert tenants["shop"] == TenantSpec(
        keys=(KEY.line, OTHER.line),
        models=("resnet*", "magika"),
        default_slo_ms=50,
        min_slo_ms=10,
        weight=2,
        requests_per_s=100,
        requests_burst=20,
        gpu_ms_per_s=250.5,
        gpu_ms_burst=500,
        max_concurrent=64,
    )
    assert [key.key_id.decode() for key in tenants["shop"].stored_keys()] == [
        line.partition(":")[0] for line in (KEY.line, OTHER.line)
    ]
    assert (tenants["ops"].admin, tenants["ops"].models) == (True, ("*",))


def test_yaml_anchors_share_what_tenants_have_in_common() -> None:
    tenants = parse_tenants(
        f"""
tenants:
  a: &usual {{keys: ["{KEY.line}"], weight: 3}}
  b: {{<<: *usual, keys: ["{OTHER.line}"]}}
""",
        source="here",
    )
    assert tenants["b"] == TenantSpec(keys=(OTHER.line,), weight=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "here: expected one key at the top level, `tenants:`"),
        ("tenants: {}", "here: `tenants:` names none"),
        ("tenants: [a]", "here: `tenants:` names none"),
        ("tenants: {a: {}}\nkeys: 1", "here: expected one key at the top level"),
        ("tenants: {'a b': {}}", "here: tenant 'a b': a name is 1 to 64 letters"),
        ("tenants: {7: {}}", "here: tenant '7': a name is 1 to 64 letters"),
        ("tenants: {a: }", "here: tenant a: expected `key: value` lines"),
        ("tenants: {a: {priority: urgent}}", "tenant a: priority: Invalid enum value 'urgent'"),
        ("tenants: {a: {modles: []}}", "here: tenant a: unknown 'modles'; known are keys, models"),
        ("tenants: {a: {weight: -1}}", "here: tenant a: weight: Expected `float` >= 0"),
        ("tenants: {a: {weight: .nan}}", "here: tenant a: weight: Expected"),
        ("tenants: {a: {requests_per_s: 0}}", "here: tenant a: requests_per_s: Expected"),
        ("tenants: {a: {requests_burst: 5}}", "here: tenant a: requests_burst without requests_p"),
        ("tenants: {a: {gpu_ms_burst: 5}}", "here: tenant a: gpu_ms_burst without gpu_ms_per_s"),
        (
            "tenants: {a: {requests_per_s: 5, requests_burst: 0.5}}",
            "here: tenant a: requests_burst is 0.5, at least 1",
        ),
        (
            "tenants: {a: {default_slo_ms: 5, min_slo_ms: 10}}",
            "here: tenant a: default_slo_ms 5 is under min_slo_ms 10",
        ),
        ("tenants: {a: {keys: [abc]}}", "here: tenant a: key 1 is not ID:SHA256"),
        ("tenants: {a: {keys: abc}}", "here: tenant a: keys: Expected `array`"),
        (f"tenants: {{a: {{keys: [{KEY.text}]}}}}", "it looks like the key itself"),
        ("tenants: {a: {}}", "here: no tenant has a key, so nobody could ask anything"),
        (
            f"tenants: {{a: {{keys: ['{KEY.line}']}}, b: {{keys: ['{KEY.line}']}}}}",
            "is there twice: of a, and of b",
        ),
        (f"tenants: {{a: {{keys: ['{KEY.line}', '{KEY.line}']}}}}", "is there twice: of a, and"),
        ("tenants:\n  a: {}\n  a: {}", "here is not YAML: a key is there twice in one mapping"),
        ("tenants: [", "here is not YAML: "),
        (f"tenants: {{a: {{keys: [{KEY.text}, *x]}}}}", "here is not YAML: "),
    ],
)  # fmt: skip
def test_a_bad_file_says_where_and_what_and_shows_no_key(text: str, message: str) -> None:
    with pytest.raises(TenantsError) as raised:
        parse_tenants(text, source="here")
    assert message in str(raised.value)
    assert KEY.text[20:] not in str(raised.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TenantsError, match=r"no\.yaml: No such file or directory"):
        read_tenants(tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    with pytest.raises(TenantsError, match="is not UTF-8"):
        read_tenants(tmp_path / "latin.yaml")


def test_too_many_weights_are_refused_and_zero_is_none() -> None:
    others = [f"  t{number}: {{weight: {number % 2}}}\n" for number in range(200)]
    text = f'tenants:\n  a: {{keys: ["{KEY.line}"], weight: %d}}\n' + "".join(others)
    assert len(parse_tenants(text % 0, source="here")) == 201
    with pytest.raises(TenantsError, match="101 tenants have a weight, the most is 100"):
        parse_tenants(text % 2, source="here")


def test_too_many_tenants_are_refused() -> None:
    text = "tenants:\n" + "".join(f"  t{number}: {{}}\n" for number in range(1001))
    with pytest.raises(TenantsError, match="1001 tenants, the most is 1000"):
        parse_tenants(text, source="here")
