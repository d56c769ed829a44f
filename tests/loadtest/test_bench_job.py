"""Jobs from YAML: what they expand to, and errors that name file, line and key."""

from pathlib import Path

import pytest

from loadtest.driver.job import Canonical
from loadtest.driver.job_file import JobError, load, parse
from loadtest.driver.job_target import PeerServer, Remontoir, Url
from loadtest.driver.multiples import Multiple
from loadtest.workloads import Poisson

JOBS = Path(__file__).parents[2] / "loadtest" / "jobs"

SMALL = """\
job: small
target: {kind: remontoir}
models:
  - name: mlp
    canonical: {family: fully-connected}
workload:
  - {kind: poisson, models: mlp, rate_per_s: 10, slo_ms: 50}
duration_s: 1
"""


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_jobs_that_come_with_it_can_be_run(path: Path):
    job = load(path)
    assert job.cases
    assert job.description
    assert job.estimated_s() < 300


def test_the_example_has_a_measurement_for_each_combination_and_repeat():
    job = load(JOBS / "example.yaml")
    assert len(job.cases) == 2 * 2 * 3
    first, second = job.cases[:2]
    assert first.values == {"load": 0.5, "protocol": "infer-json"}
    assert (first.repeat, first.seed, second.repeat, second.seed) == (0, 1, 1, 2)
    assert first.multiples == (
        Multiple(entry=0, field="rate_per_s", factor=0.5, unit="capacity"),
        Multiple(entry=0, field="slo_ms", factor=10, unit="execution"),
    )
    assert first.config == (
        ("target", "remontoir"), ("policy", "remontoir"), ("device", "cpu"), ("cache_mb", "256"),
        ("protocol", "infer-json"), ("threads", "1"), ("network", "lan"),
    )  # fmt: skip


def test_defaults_are_filled_in():
    (case,) = parse(SMALL, "small.yaml").cases
    assert case.job.spoken == "infer-binary"
    assert case.job.models[0].canonical == Canonical(family="fully-connected", depth=4, width=64)
    assert isinstance(case.job.target, Remontoir)
    assert case.multiples == ()


def test_measurements_of_one_server_stand_together():
    text = SMALL.replace("{kind: remontoir}", "{kind: remontoir, policy: '${policy}'}").replace(
        "rate_per_s: 10", "rate_per_s: '${rate}'"
    )
    text += "variables: {rate: [10, 20], policy: [fifo, edf]}\n"
    policies = [case.values["policy"] for case in parse(text, "p.yaml").cases]
    assert policies == ["fifo", "fifo", "edf", "edf"]


def test_a_url_with_a_template():
    text = """\
job: plain
target:
  kind: url
  url: http://127.0.0.1:9000
  path: /predict/{model}
  headers: {content-type: application/json}
  body: '{"data": {data}}'
  output: json:predictions
models: [{name: mlp, path: mlp.onnx}]
workload: [{kind: closed-loop, models: mlp, clients: 4, slo_ms: 50}]
duration_s: 1
"""
    (case,) = parse(text, "plain.yaml").cases
    assert isinstance(case.job.target, Url)
    assert case.job.spoken == "template"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("duration_s", "duration", "small.yaml, line 8: duration: no key 'duration' (1), the "
         "nearest is 'duration_s'"),
        ("rate_per_s: 10", "rate_per_s: fast", "small.yaml, line 7: workload[0].rate_per_s: 'fast' "
         "is no number, and not as in '0.9 x capacity'"),
        ("rate_per_s: 10", "rate_per_s: 3 x execution", "line 7: workload[0].rate_per_s: rate_per_s"
         " is a multiple of capacity, not of execution"),
        ("rate_per_s: 10", "rate_per_s: -1", "line 7: workload[0]: workload entry poisson of 'mlp':"
         " rate_per_s -1.0 is not positive"),
        ("family: fully-connected", "family: rnn", "small.yaml, line 5: models[0].canonical.family:"
         " Invalid enum value 'rnn'"),
        ("family: fully-connected", "family: lstm, widht: 3", "line 5: models[0].canonical.widht: "
         "no key 'widht' (3), the nearest is 'width'"),
        ("kind: poisson", "kind: poison", "line 7: workload[0].kind: 'poison' is none of"),
        ("kind: remontoir", "kind: triton", "line 2: target.kind: 'triton' is none of peer, "
         "remontoir, url, v2"),
        ("kind: remontoir", "kind: v2", "line 2: target: give one of url"),
        ("{kind: remontoir}", "{kind: v2, url: 'localhost:80'}", "line 2: target: url "
         "'localhost:80' is not http://HOST:PORT"),
        ("  - name: mlp", "  - name: mlp\n    path: x.onnx", "line 4: models[0]: model 'mlp' has "
         "path and canonical: give one of them"),
        ("    canonical: {family: fully-connected}\n", "", "small.yaml, line 4: models[0]: 'mlp' "
         "has none of path, canonical and registered"),
        ("duration_s: 1", "duration_s: 1\nseed: 1\nseed: 2", "seed is given twice, in line 9 and in"
         " line 10"),
        ("duration_s: 1", "duration_s: 4000", "line 8: duration_s 4000.0 is not 0.1 to 3600"),
        ("duration_s: 1", "duration_s: '${x}'", "line 8: duration_s: no variable 'x' for '${x}'; "
         "there are none"),
        ("duration_s: 1", "duration_s: 1\nvariables: {x: [1]}", "line 9: variables.x: no key uses "
         "${x}"),
        ("duration_s: 1", "duration_s: 1\nrepeats: 0", "repeats 0 is not 1 to 1000"),
        ("duration_s: 1", "duration_s: [1", "small.yaml, line 9: not YAML"),
        ("duration_s: 1", "duration_s: 1\nseed: \x00", "small.yaml, line 9: not YAML: special "
         "characters"),
        ("duration_s: 1", "duration_s: 1\nseed: -1", "line 9: seed -1 is negative"),
        ("job: small", "job: ''", "line 1: job has 1 to 100 printable characters"),
        ("name: mlp", f"name: {'m' * 101}", "line 4: models[0]: name mmmmmmmmmmmmmmmmmmmm..."),
        ("models: mlp", "models: 'cnn*'", "line 7: workload[0]: workload entry poisson of 'cnn*':"
         " models 'cnn*' matches none of 1: mlp"),
        ("slo_ms: 50", "slo_ms: 50, tenant: a", "line 7: workload[0]: workload entry poisson of "
         "'mlp': tenant 'a' is for scenarios"),
        ("{kind: remontoir}", "{kind: v2, url: 'http://h:1/?a=1'}", "line 2: target: url "
         "'http://h:1/?a=1' is not http://HOST:PORT"),
        ("{kind: remontoir}", "{kind: v2, url: 'http://h:x'}", "line 2: target: url 'http://h:x' "
         "is not"),
        ("{kind: remontoir}", "{kind: remontoir, headers: {'a b': c}}", "line 2: target: headers: "
         "'a b' is no header's name"),
        ("{kind: remontoir}", "{kind: peer, peer: moses}", "line 2: target: no peer 'moses'; "
         "there are triton, "),
        ("{kind: remontoir}", "{kind: peer, peer: kserve, tuned_for: 5}", "line 2: target: "
         "tuned_for 5.0: KServe: its model server has neither batching nor limits"),
        ("{kind: remontoir}", "{kind: peer, peer: mosec}\nprotocol: v2-json", "line 3: protocol "
         "'v2-json': a peer is asked in its own form"),
        ("family: fully-connected}", "family: fully-connected}\n    batch: 4\n"
         "labels: {}", "line 7: labels: no key 'labels'"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_line_and_the_key(old: str, new: str, message: str):
    assert old in SMALL
    with pytest.raises(JobError) as caught:
        parse(SMALL.replace(old, new), "small.yaml")
    assert message in str(caught.value)
    assert "small.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(JobError, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "picture.yaml").write_bytes(b"job: \xff\xd8")
    with pytest.raises(JobError, match=r"picture\.yaml: not YAML: byte 5 is not UTF-8"):
        load(tmp_path / "picture.yaml")


def test_numbers_may_have_an_exponent():
    (case,) = parse(SMALL.replace("rate_per_s: 10", "rate_per_s: 1e3"), "small.yaml").cases
    (entry,) = case.job.workload
    assert isinstance(entry, Poisson)
    assert entry.rate_per_s == 1000.0


def test_a_peer_is_a_target_as_any_other():
    text = SMALL.replace("{kind: remontoir}", "{kind: peer, peer: mosec, tuned_for: '${slo}'}")
    text = text.replace("slo_ms: 50", "slo_ms: '${slo} x execution'") + "variables: {slo: [2, 5]}\n"
    two, five = parse(text, "peer.yaml").cases
    assert isinstance(two.job.target, PeerServer)
    assert dict(five.config) == {
        "target": "peer", "peer": "mosec", "settings": "tuned for 5 x execution"
    }  # fmt: skip
    batches = SMALL.replace("{kind: remontoir}", "{kind: peer, peer: mosec}")
    batches = batches.replace("  - name: mlp", "  - name: mlp\n    batch: 4")
    with pytest.raises(JobError, match=r"line 5: models\[0\]\.batch: 4: peers are sent one row"):
        parse(batches, "peer.yaml")
