"""Simulated models: the V100 table, straight lines, and compiled catalogues."""

from pathlib import Path

import msgspec
import pytest

from loadtest.profiles import ProfileError, catalogue, linear, v100, v100_names
from scheduler.profile import ModelEstimates
from scheduler.spec import ModelProfile, ModelSpec, ShapeProfile

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20


def exec_ns(spec: ModelSpec) -> dict[int, int]:
    [shape] = spec.profile.shapes
    return shape.exec_ns


def test_the_table_is_the_emulated_workers() -> None:
    name = "data/clockwork_osdi20_table1_v100.csv"
    assert (ROOT / "loadtest" / name).read_bytes() == (ROOT / "gpuworker" / name).read_bytes()


def test_a_row_of_the_table_becomes_a_model() -> None:
    spec = v100("resnet50_v2")("resnet7")
    assert spec.name == "resnet7"
    assert spec.batch_sizes == (1, 2, 4, 8, 16)
    assert exec_ns(spec) == {
        1: 2_730_000,
        2: 4_050_000,
        4: 5_870_000,
        8: 9_930_000,
        16: 17_300_000,
    }
    assert spec.profile.load_ns == 8_320_000
    assert spec.weights_bytes == 102_200_000
    assert spec.num_pages(16 * MIB) == 7
    assert not spec.runs_exact_batch
    assert not spec.is_pinned


def test_every_row_of_the_table_becomes_a_model() -> None:
    names = v100_names()
    assert len(names) == len(set(names)) == 64
    specs = [v100(name)(name) for name in names]
    assert all(spec.num_pages(16 * MIB) >= 1 for spec in specs)
    for spec in specs:
        times = list(exec_ns(spec).values())
        assert times == sorted(times)


def test_copies_of_a_profile_are_models_of_their_own() -> None:
    make = v100("resnet50_v2")
    one, two = make("r0"), make("r1", is_pinned=True)
    assert one.content_hash != two.content_hash
    assert one == make("r0")
    assert two.is_pinned
    assert one.profile is two.profile


def test_the_largest_batch_may_be_smaller() -> None:
    assert v100("resnet50_v2", max_batch=4)("r").batch_sizes == (1, 2, 4)
    assert v100("resnet50_v2", max_batch=1)("r").batch_sizes == (1,)


def test_an_engine_of_exact_batches_takes_times_between_the_rows() -> None:
    exact = ModelEstimates(v100("resnet50_v2", runs_exact_batch=True)("r")).first
    padded = ModelEstimates(v100("resnet50_v2")("r")).first
    assert exact.plan[6] == 7_900_000  # half way from 5.87 to 9.93 ms
    assert padded.plan[6] == 9_930_000


def test_a_line_has_its_first_row_and_each_further_one() -> None:
    spec = linear(first_ms=2, each_ms=0.5, load_ms=8, weights_mb=33.6, max_batch=12)("line")
    assert exec_ns(spec) == {
        1: 2_000_000,
        2: 2_500_000,
        4: 3_500_000,
        8: 5_500_000,
        12: 7_500_000,
    }
    assert spec.profile.load_ns == 8_000_000
    assert spec.num_pages(16 * MIB) == 3


def test_a_line_of_one_row_and_no_weights_is_a_model() -> None:
    spec = linear(first_ms=2, each_ms=0, load_ms=1, weights_mb=0, max_batch=1)("one")
    assert spec.batch_sizes == (1,)
    assert spec.num_pages(16 * MIB) == 1


def test_a_compiled_model_keeps_what_was_measured(tmp_path: Path) -> None:
    compiled = ModelSpec(
        name="vad",
        version="3",
        content_hash="abc",
        platform="onnxruntime",
        inputs=(),
        outputs=(),
        batch_sizes=(1, 4),
        runs_exact_batch=True,
        weights_bytes=2_000_000,
        profile=ModelProfile(5_000, (ShapeProfile("576", 576, {1: 110_000, 4: 300_000}),)),
    )
    broken = msgspec.structs.replace(compiled, name="broken", unavailable_reason="opset 99")
    file = tmp_path / "catalogue.json"
    file.write_bytes(msgspec.json.encode([compiled, broken]))
    spec = catalogue(file, "vad")("vad3")
    assert (spec.name, spec.profile, spec.batch_sizes) == ("vad3", compiled.profile, (1, 4))
    with pytest.raises(ProfileError, match="no model 'vda', there is vad, broken"):
        catalogue(file, "vda")
    with pytest.raises(ProfileError, match="broken is unavailable: opset 99"):
        catalogue(file, "broken")
    with pytest.raises(ProfileError, match=r"nothing\.json: No such file"):
        catalogue(tmp_path / "nothing.json", "vad")
    file.write_text('{"a": 1}')
    with pytest.raises(ProfileError, match=r"catalogue\.json: Expected `array`"):
        catalogue(file, "vad")


def test_a_row_that_is_not_there_is_refused_with_those_near_it() -> None:
    with pytest.raises(ProfileError, match=r"v100/resnet50 is not one of .* 64 .*resnet50_v2"):
        v100("resnet50")
    with pytest.raises(ProfileError, match=r"v100/zzz is not one of the table's 64 models$"):
        v100("zzz")
    with pytest.raises(ProfileError, match="resnet50_v2: max_batch 12 is not one of 1, 2, 4"):
        v100("resnet50_v2", max_batch=12)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("first_ms", 0.0, "first_ms 0.0 is not positive"),
        ("each_ms", -1.0, "each_ms -1.0 is negative"),
        ("load_ms", 0.0, "load_ms 0.0 is not positive"),
        ("weights_mb", -1.0, "weights_mb -1.0 is negative"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(field: str, value: float, error: str) -> None:
    fields = {"first_ms": 1.0, "each_ms": 0.1, "load_ms": 1.0, "weights_mb": 1.0, field: value}
    with pytest.raises(ProfileError, match=error):
        linear(**fields)  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="max_batch 0 is not positive"):
        linear(first_ms=1, each_ms=1, load_ms=1, weights_mb=1, max_batch=0)
