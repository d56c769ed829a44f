"""What shots amount to, requests and replies, ceilings, a server's use: without any server."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from loadtest.driver import ceiling, figures
from loadtest.driver.bare_loop import BareLoop, NoCapacity, resolved
from loadtest.driver.ceiling import Ceiling, KnownCeilings
from loadtest.driver.client_stages import NETWORKS, Stages, measure
from loadtest.driver.inputs import InputError, inputs_of_metadata
from loadtest.driver.job import Client, Network
from loadtest.driver.job_target import V2, Remontoir, Url
from loadtest.driver.limits import available_bytes
from loadtest.driver.multiples import Multiple
from loadtest.driver.protocols import Account, Reply, is_right, reader, request
from loadtest.http1 import Shot
from loadtest.server_use import use_of
from loadtest.workloads import Poisson, SloShare
from scheduler.priority import HIGH

MS = 1_000_000


def a_shot(*, at_ms=0.0, sent_ms=0.0, done_ms=1.0, status=200, body=b"", trouble="") -> Shot:
    shot = Shot(0, 0, round(at_ms * MS))
    shot.sent_ns, shot.done_ns = round(sent_ms * MS), round(done_ms * MS)
    shot.status, shot.body, shot.trouble = status, body, trouble
    return shot


def reply(*, slo=None, timing=None) -> bytes:
    body = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
    if slo:
        body |= {"slo": slo, "timing_ms": timing}
    return json.dumps(body).encode()


def part_of(shots, *, slo_ms=5.0, expected=(), before=None, after=None) -> figures.Part:
    return figures.part_of(
        shots,
        slo_ns=round(slo_ms * MS),
        read=reader(Remontoir()),
        expected=list(expected),
        before_ns=lambda _: before or {},
        after_ns=lambda _: after or {},
    )


RIGHT = ({"y": np.array([1.0, 2.0], np.float32)},)


def test_latency_counts_from_the_schedule_and_not_from_the_send():
    part = part_of([a_shot(at_ms=0, sent_ms=4, done_ms=6, body=reply())], expected=RIGHT)
    assert (part.good, part.late) == (0, 1)
    assert figures.quantile_ms(part.latency, 50) == pytest.approx(6.0, rel=1e-3)
    assert figures.quantile_ms(part.lateness, 50) == pytest.approx(1.0, rel=1e-3)
    assert figures.quantile_ms(part.driver_error, 99) == pytest.approx(4.0, rel=1e-3)


def test_every_end_is_counted_once_and_by_kind():
    shots = [
        a_shot(sent_ms=0.1, done_ms=2, body=reply()),
        a_shot(sent_ms=0.1, done_ms=2, body=b"<html>"),
        a_shot(sent_ms=0.1, done_ms=1, status=429, body=b'{"reason": "overload"}'),
        a_shot(sent_ms=0.1, done_ms=3, status=503),
        a_shot(sent_ms=0.1, done_ms=1, status=422, body=b'{"reason": "slo_infeasible_ever"}'),
        a_shot(sent_ms=0.1, done_ms=1, status=422, body=b'{"detail": "no field data"}'),
        a_shot(sent_ms=0.1, done_ms=5, status=504, body=b'{"reason": "deadline"}'),
        a_shot(sent_ms=0.1, done_ms=9, status=0, trouble="gave up"),
    ]
    wrong = a_shot(sent_ms=0.1, done_ms=2, body=reply().replace(b"2.0", b"2.5"))
    part = part_of([*shots, wrong], expected=RIGHT)
    assert (part.sent, part.good, part.late, part.refused, part.failed) == (9, 1, 0, 3, 5)
    assert part.errors == {
        "unreadable answer": 1, "429 overload": 1, "503": 1, "504 deadline": 1, "gave up": 1,
        "wrong output": 1, "422 slo_infeasible_ever": 1, "422": 1,
    }  # fmt: skip
    assert figures.quantile_ms(part.refusal, 100) == pytest.approx(3.0, rel=1e-3)


def test_stages_of_client_and_server_add_up_to_the_latency():
    slo = {"latency_ms": 5.0, "slack_ms": 4.0, "predicted_ms": 3.5, "cold_start": True}
    timing = {"queue": 1.0, "load": 0.0, "input": 0.5, "exec": 3.0, "output": 0.5}
    shot = a_shot(at_ms=0, sent_ms=10, done_ms=16, body=reply(slo=slo, timing=timing))
    part = part_of(
        [shot],
        slo_ms=20,
        before={"preprocess": 4 * MS, "upload": 6 * MS},
        after={"download": 2 * MS, "postprocess": MS},
    )
    assert part.stage_ms == pytest.approx(
        {"preprocess": 4, "upload": 6, **timing, "http": 1, "download": 2, "postprocess": 1}
    )
    assert sum(part.stage_ms.values()) == pytest.approx(19)
    assert figures.quantile_ms(part.latency, 50) == pytest.approx(19, rel=1e-3)
    assert figures.quantile_ms(part.driver_error, 50) == pytest.approx(0.001)  # none: HDR's least
    assert figures.quantile_ms(part.prediction_error, 50) == pytest.approx(1.5, rel=1e-3)
    assert part.cold == 1


def test_figures_of_processes_add_up_exactly():
    one = part_of([a_shot(done_ms=ms, sent_ms=0.1, body=reply()) for ms in (1, 2, 3)])
    two = part_of([a_shot(done_ms=ms, sent_ms=0.1, body=reply()) for ms in (4, 9)])
    both = figures.added([one, two])
    alone = part_of([a_shot(done_ms=ms, sent_ms=0.1, body=reply()) for ms in (1, 2, 3, 4, 9)])
    assert both == alone
    steps = figures.steps_ms(both.latency)
    assert steps[-1][1] == 5
    assert [count for _, count in steps] == sorted({count for _, count in steps})
    assert figures.quantile_ms("", 50) is None
    assert figures.steps_ms("") == ()


def test_a_link_takes_its_delay_and_the_bytes_time():
    stages = Stages(
        network=Network(up_mbit_s=8, down_mbit_s=80, delay_ms=5), preprocess=(0,), postprocess=(0,)
    )
    assert stages.upload_ns(10_000) == 5 * MS + 10 * MS
    assert stages.download_ns(10_000) == 5 * MS + 1 * MS
    assert stages.expected_ms(10_000, 10_000) == pytest.approx(21)
    assert measure(Client()).expected_ms(10**6, 10**6) == 0
    up = [network.up_mbit_s for name in ("lan", "wifi", "4g") if (network := NETWORKS[name])]
    assert up == sorted(up, reverse=True)


def test_jitter_comes_on_top_by_chance_and_the_same_for_a_seed():
    client = Client(network=Network(up_mbit_s=8, down_mbit_s=80, delay_ms=5, jitter_ms=2))
    stages, again, other = (measure(client, seed=seed) for seed in (1, 1, 2))
    assert stages == again != other
    ups = [before["upload"] for before in stages.before(10_000)]
    downs = [stages.after(10_000, turn)["download"] for turn in range(len(ups))]
    assert min(ups) >= 15 * MS
    assert min(downs) >= 6 * MS
    assert ups[:5] != [down + 9 * MS for down in downs[:5]]
    assert np.mean(ups) == pytest.approx(17 * MS, rel=0.02)
    assert np.mean(downs) == pytest.approx(8 * MS, rel=0.05)
    assert stages.expected_ms(10_000, 10_000) == pytest.approx(25)


def test_client_work_is_timed_by_the_clock_that_is_given():
    ticks = iter(range(0, 10_000_000, 1000))
    stages = measure(Client(preprocess="normalize", postprocess="top5"), lambda: next(ticks))
    assert set(stages.preprocess) == set(stages.postprocess) == {1000}


@pytest.mark.parametrize("protocol", ["infer-json", "infer-binary", "v2-json", "v2-binary"])
def test_a_request_has_its_model_its_slo_and_its_tensors(protocol):
    row = np.array([[0.25, -1.5]], np.float32)
    text = request(protocol, Remontoir(), host="h:1", model="m", inputs={"x": row}, slo_ms=12.5)
    head, _, body = text.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    is_v2 = protocol.startswith("v2")
    assert head.startswith(b"POST /v2/models/m/infer" if is_v2 else b"POST /infer")
    size = len(body) - (8 if protocol.endswith("binary") else 0)
    header = json.loads(body[:size])
    assert (header["parameters"] if is_v2 else header)["slo_ms"] == 12.5
    (tensor,) = header["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("x", [1, 2], "FP32")
    if protocol.endswith("binary"):
        assert body[size:] == row.tobytes()
        assert tensor["parameters"] == {"binary_data_size": 8}
        assert b"Inference-Header-Content-Length: %d" % size in head
    else:
        assert tensor["data"] == [0.25, -1.5]


def test_other_servers_get_the_protocols_timeout_or_nothing():
    def parameters(target: V2) -> object:
        inputs = {"x": np.zeros((1, 1), np.int64)}
        text = request("v2-json", target, host="h", model="m", inputs=inputs, slo_ms=12.5)
        return json.loads(text.partition(b"\r\n\r\n")[2]).get("parameters")

    assert parameters(V2(url="http://h:1")) == {"timeout": 12500}
    assert parameters(V2(url="http://h:1", slo="none")) is None


def test_headers_a_prefix_and_a_class_go_with_a_request():
    def sent(target, protocol) -> tuple[str, dict]:
        inputs = {"x": np.zeros((1, 1), np.float32)}
        text = request(
            protocol, target, host="h:1", model="m", inputs=inputs, slo_ms=5, priority=HIGH
        )
        head, _, body = text.partition(b"\r\n\r\n")
        return head.decode(), json.loads(body)

    headers = {"authorization": "Bearer k"}
    head, body = sent(V2(url="https://h:1/serving/", headers=headers), "v2-json")
    assert head.startswith("POST /serving/v2/models/m/infer HTTP/1.1\r\nHost: h:1\r\n")
    assert "\r\nauthorization: Bearer k\r\n" in head
    assert body["parameters"] == {"timeout": 5000, "priority": 1}
    head, body = sent(Remontoir(headers={"Host": "other"}), "infer-json")
    assert head.startswith("POST /infer HTTP/1.1\r\n")
    assert [line for line in head.splitlines() if line.lower().startswith("host")] == [
        "Host: other"
    ]
    assert body["parameters"] == {"priority": 1}


def test_a_template_has_bytes_as_base64_and_reads_them_anywhere_in_json():
    target = Url(url="http://h:1", path="/p", body='{"{input}": ["{base64}"]}', output="base64:a.0")
    inputs = {"x": np.array([[1, 2]], np.float32)}
    text = request("template", target, host="h:1", model="m", inputs=inputs, slo_ms=7)
    sent = json.loads(text.partition(b"\r\n\r\n")[2])["x"][0]
    assert base64.b64decode(sent) == inputs["x"].tobytes()
    read = reader(target)
    assert is_right(read(a_shot(body=json.dumps({"a": [sent]}).encode())).outputs, RIGHT[0])
    assert figures.read_or_none(a_shot(body=b'{"a": []}'), read) is None


def test_a_template_is_filled_in():
    target = Url(
        url="http://h:1", path="/p/{model}", headers={"x-slo": "{slo_ms}"},
        body='{"shape": {shape}, "rows": {data}}', output="json:a.b",
    )  # fmt: skip
    inputs = {"x": np.array([[1, 2]], np.float32)}
    text = request("template", target, host="h:1", model="m", inputs=inputs, slo_ms=7)
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /p/m HTTP/1.1")
    assert b"x-slo: 7\r\n" in head
    assert json.loads(body) == {"shape": [1, 2], "rows": [1.0, 2.0]}
    found = reader(target)(a_shot(body=b'{"a": {"b": [[1.0, 2.0]]}}'))
    assert is_right(found.outputs, RIGHT[0])
    assert not is_right(reader(target)(a_shot(body=b'{"a": 3}')).outputs, RIGHT[0])


def test_outputs_are_right_if_they_are_near_and_all_there():
    assert is_right({"y": np.array([1.0, 2.00001])}, RIGHT[0])
    assert not is_right({"y": np.array([1.0, 2.1])}, RIGHT[0])
    assert not is_right({"z": np.array([1.0, 2.0])}, RIGHT[0])
    assert not is_right({"y": np.array([1.0])}, RIGHT[0])
    assert is_right(None, RIGHT[0])
    assert Reply(None, Account()).outputs is None


def test_an_answer_may_say_null_for_what_it_has_not():
    """As KServe's model server does."""
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    body = {"id": "", "parameters": None, "outputs": [{**tensor, "parameters": None}]}
    found = reader(V2(url="http://h:1"))(a_shot(body=json.dumps(body).encode()))
    assert found.outputs is not None
    assert is_right(found.outputs, RIGHT[0])


def test_metadata_name_inputs_or_the_model_cannot_be_asked():
    metadata = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]}]}
    (found,) = inputs_of_metadata(metadata, "m")
    assert found.shape == (3, None)
    with pytest.raises(InputError, match="'m': input 'x' is BYTES: not random"):
        inputs_of_metadata({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]}, "m")
    with pytest.raises(InputError, match="'m': the server's metadata name no inputs"):
        inputs_of_metadata({"error": "gone"}, "m")


def test_multiples_become_the_same_numbers_for_the_same_loop():
    loop = BareLoop(model="m", exec_ms={1: 2.0, 2: 3.0, 4: 5.0, 8: 12.0})
    mix = (SloShare(slo_ms=1, weight=1), SloShare(slo_ms=100, weight=1))
    entries = [
        Poisson(models="m", slo_ms=1, rate_per_s=1), Poisson(models="m", slo_ms=mix, rate_per_s=7)
    ]  # fmt: skip
    one, two = resolved(
        entries,
        [
            Multiple(entry=0, field="rate_per_s", factor=0.5, unit="capacity"),
            Multiple(entry=0, field="slo_ms", factor=3, unit="execution"),
            Multiple(entry=1, field="slo_ms", factor=5, unit="execution", share=0),
        ],
        lambda _: loop,
    )
    assert isinstance(one, Poisson)
    assert (one.slo_ms, one.rate_per_s) == (6.0, 400.0)  # 4 requests in 5 ms, half of them
    assert [share.slo_ms for share in two.slo_ms] == [10.0, 100.0]
    with pytest.raises(NoCapacity, match="'m': one execution takes 2 ms here, its SLO is 1 ms"):
        loop.capacity(1.0)


def test_the_ceiling_is_searched_between_the_last_kept_and_the_first_missed_rate():
    tried = []

    def attempt(rate: float) -> tuple[bool, float]:
        tried.append(rate)
        return rate <= 5200, rate / 10_000

    kept, error, missed = ceiling.search(attempt)
    assert tried == [500, 1000, 2000, 4000, 8000, 8000, 6000, 6000, 5000, 5500, 5500]
    assert (kept, error, missed) == (5000, 0.5, 5500)
    assert ceiling.search(lambda _: (False, 9.0)) == (0.0, 0.0, 500.0)


def test_ceilings_are_kept_by_size_processes_and_cpus(tmp_path: Path):
    known = KnownCeilings(tmp_path / "kept" / "ceilings.json")
    assert known.find(1000, 1, (1,)) is None
    found = Ceiling(
        rate_per_s=9000, error_p99_ms=0.3, next_rate_per_s=9500, request_bytes=1024, processes=1,
        cpus=(1,), machine="m",
    )  # fmt: skip
    known.keep(found)
    assert known.find(600, 1, (1,)) == found  # alike in size
    assert known.find(5000, 1, (1,)) is None
    assert known.find(1000, 2, (1,)) is None
    (tmp_path / "kept" / "ceilings.json").write_text("{")
    assert known.find(1000, 1, (1,)) is None


def test_a_servers_use_is_that_of_its_whole_family(tmp_path: Path):
    def process(pid: int, parent: int, group: int, ticks: int, pages: int) -> None:
        (tmp_path / str(pid)).mkdir()
        rest = ["S", parent, group, *[0] * 8, ticks, 0, 0, 0, *[0] * 6, pages, 0]
        text = f"{pid} (a) b) {' '.join(map(str, rest))}"
        (tmp_path / str(pid) / "stat").write_text(text)

    process(10, 1, 10, 100, 3)
    process(11, 10, 11, 200, 4)  # a child in a group of its own
    process(12, 1, 10, 400, 5)  # of the group, its parent gone
    process(13, 1, 13, 800, 6)  # somebody else
    use = use_of(10, proc=tmp_path)
    assert use.pids == (10, 11, 12)
    assert use.cpu_s == pytest.approx(7.0)
    assert use.rss_bytes == 12 * 4096
    assert use_of(10, 13, proc=tmp_path).pids == (10, 11, 12, 13)  # a daemon that left them
    assert use_of(99, proc=tmp_path) == (0.0, 0, ())


def test_memory_that_is_left_is_what_the_kernel_says(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4 kB\n")
    assert available_bytes(tmp_path / "meminfo") == 4096
    assert available_bytes(tmp_path / "none") == float("inf")
