"""SCENARIO.yaml: what it may say, what its runs are, and that every mistake is named."""

from pathlib import Path

import msgspec
import pytest

from loadtest.scenario import ScenarioError, load
from loadtest.scenario_setup import Profile, SpikeTimes
from loadtest.workloads import Poisson
from scheduler.spec import SchedulerConfig

MINIMAL = """
name: small
duration_s: 2
models: [{name: m, profile: v100/resnet50_v2}]
workload: [{kind: poisson, models: m, slo_ms: 50, rate_per_s: 100}]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    """What is said against a scenario, without the file's folder."""
    path = written(tmp_path, text)
    with pytest.raises(ScenarioError) as found:
        load(path)
    message = str(found.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    [case] = load(written(tmp_path, MINIMAL)).expand()
    assert (case.scenario, case.policy, case.seed, case.values) == ("small", "remontoir", 1, {})
    assert (case.duration_s, case.setup.warmup_s, case.setup.sample_ms) == (2.0, 0.0, 100.0)
    [devices] = case.setup.devices
    assert (devices.count, devices.pages, devices.page_mb, devices.resident) == (
        1,
        1376,
        16,
        "none",
    )
    assert case.setup.scheduler_config() == SchedulerConfig(reply_margin_ns=0)
    assert case.name == "policy=remontoir,seed=1"


def test_runs_are_the_product_of_variables_policies_and_seeds(tmp_path: Path) -> None:
    text = MINIMAL.replace("slo_ms: 50", "slo_ms: '${slo_ms}'").replace("100}", "'${rate}'}")
    text += "seeds: [1, 2]\npolicies: [remontoir, fifo]\n"
    text += "variables: {slo_ms: [10, 25.5], rate: 300}\n"
    cases = load(written(tmp_path, text)).expand()
    assert len(cases) == len({case.name for case in cases}) == 8
    assert cases[0].name == "slo_ms=10,rate=300,policy=remontoir,seed=1"
    assert [case.values["slo_ms"] for case in cases] == [10, 10, 25.5, 25.5] * 2
    [entry] = cases[2].setup.workload
    assert isinstance(entry, Poisson)
    assert (entry.slo_ms, entry.rate_per_s) == (25.5, 300)


def test_a_variable_may_be_part_of_a_text(tmp_path: Path) -> None:
    text = MINIMAL.replace("name: m,", 'name: "m${size}",').replace(
        "models: m,", "models: 'm${size}',"
    )
    text += "variables: {size: [7, huge]}\n"
    cases = load(written(tmp_path, text)).expand()
    assert [case.setup.models[0].name for case in cases] == ["m7", "mhuge"]


def test_a_variable_of_one_policy_does_not_repeat_the_runs_of_the_others(tmp_path: Path) -> None:
    text = MINIMAL + "variables: {rows: [4, 16], unused: [1, 2]}\n"
    text += 'policies: [remontoir, "fifo:size=${rows}"]\n'
    scenario = load(written(tmp_path, MINIMAL))
    assert len(scenario.expand(policies=["remontoir", "fifo"])) == 2
    assert "fifo" in refusal(tmp_path, text)  # it has no such option: policies are checked at once
    kept = text.replace("fifo:size=${rows}", "remontoir:schedule_ahead_ms=${rows}")
    cases = load(written(tmp_path, kept)).expand()
    assert [(case.policy, case.values) for case in cases] == [
        ("remontoir", {}),
        ("remontoir:schedule_ahead_ms=4", {"rows": 4}),
        ("remontoir:schedule_ahead_ms=16", {"rows": 16}),
    ]


def test_arguments_go_before_what_the_file_says(tmp_path: Path) -> None:
    text = MINIMAL.replace("slo_ms: 50", "slo_ms: '${slo_ms}'") + "full_duration_s: 60\n"
    text += "variables: {slo_ms: [10, 25]}\n"
    scenario = load(written(tmp_path, text))
    [case] = scenario.expand(
        policies=["fifo"], seeds=[9], variables={"slo_ms": [33]}, duration_s=0.5
    )
    assert case.name == "slo_ms=33,policy=fifo,seed=9"
    assert case.duration_s == 0.5
    assert {case.duration_s for case in scenario.expand()} == {2.0}
    assert {case.duration_s for case in scenario.expand(is_full=True)} == {60.0}
    with pytest.raises(ScenarioError, match="no variable 'slo'; there are slo_ms"):
        scenario.expand(variables={"slo": [1]})
    with pytest.raises(ScenarioError, match=r"^no policy is called 'best'"):
        scenario.expand(policies=["best"])  # not the file's fault


def test_everything_there_is_to_say(tmp_path: Path) -> None:
    [case] = load(
        written(
            tmp_path,
            """
name: all
description: every field
seeds: [3]
duration_s: 5
warmup_s: 1
models:
  - {name: a, profile: {first_ms: 1, each_ms: 0.5, load_ms: 3, weights_mb: 30}, pinned: true}
  - {name: b, profile: {catalogue: models.json, model: resnet}}
  - {name: "{profile}-", count: 3, profile: "v100/res*", without: ["*152*"], runs_exact_batch: true}
devices:
  - count: 2
    pages: 64
    page_mb: 2
    shares_exec_core: true
    resident: fit
    exec_noise: 0.05
    load_noise: 0.1
    spikes: {probability: 0.01, min_ms: 2, max_ms: 10}
    delay_ms: 0.5
    jitter_ms: 0.1
faults:
  - {kind: crash, worker: 1, at_s: 2, down_s: 1, detect_ms: 200}
  - {kind: stall, at_s: 1, stall_ms: 30, every_s: 2}
workload:
  - {kind: closed-loop, models: "a*", slo_ms: [{slo_ms: 10, weight: 1}], clients: 4}
scheduler: {reply_margin_ms: 0.25, max_queued_requests: 7}
client_delay_ms: 0.3
sample_ms: 50
""",
        )
    ).expand()
    setup = case.setup
    assert setup.models[0].profile == Profile(first_ms=1, each_ms=0.5, load_ms=3, weights_mb=30)
    assert setup.models[2].without == ("*152*",)
    assert setup.devices[0].spikes == SpikeTimes(probability=0.01, min_ms=2, max_ms=10)
    assert [type(fault).__name__ for fault in setup.faults] == ["Crash", "Stall"]
    config = setup.scheduler_config()
    assert (config.reply_margin_ns, config.max_queued_requests) == (250_000, 7)
    without = msgspec.structs.replace(setup, scheduler={}).scheduler_config()
    assert without.reply_margin_ns == 300_000  # the way to the client is known here


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("duration_s: 2", "", "missing required field `duration_s`"),
        ("duration_s: 2", "duration_s: two", "duration_s: Expected `float`, got `str`, in 'two'"),
        (
            "duration_s: 2",
            "durations_s: 2",
            "no key 'durations_s' (2), the nearest is 'duration_s'; there are name, description, "
            "seeds, policies, variables, duration_s, models, workload, devices, faults, warmup_s,",
        ),
        ("name: small", "title: small", "missing required field `name`"),
        (
            "name: m,",
            "nam: m,",
            "models[0]: no key 'nam' ('m'), the nearest is 'name'; there are name, profile, count,",
        ),
        (
            "v100/resnet50_v2",
            "{first: 1}",
            "models[0].profile: no key 'first' (1), the nearest is 'first_ms'; there are first_ms,",
        ),
        (
            "models: m,",
            "models: m, rate: 3,",
            "workload[0]: no key 'rate' (3), the nearest is 'rate_per_s'; there are kind, models,",
        ),
        (
            "slo_ms: 50",
            "slo_ms: [{slo_ms: 5, share: 1}]",
            "workload[0].slo_ms[0]: no key 'share' (1); there are slo_ms, weight",
        ),
        (
            "duration_s: 2",
            "duration_s: 2\nduration_s: 3",
            "duration_s is given twice, in line 3 and",
        ),
        ("name: m,", "name: m, name: n,", "models[0].name is given twice, in line 4 and in line 4"),
        ("profile: v100", "count: 0, profile: v100", "models[0]: count 0 is less than 1"),
        ("{name: m,", '{name: "m{profile}",', "name 'm{profile}' has {profile} in it if, and only"),
        ("resnet50_v2}", "resnet50_v2}, 7", "models[1]: Expected `object`, got `int`, in 7"),
        ("v100/resnet50_v2", "{first_ms: 1}", "models[0].profile: a profile is first_ms, each_ms"),
        ("models: m,", "", "workload[0]: missing required field `models`"),
        ("kind: poisson", "kind: fish", "workload[0].kind: 'fish' is none of azure-f"),
        (
            "rate_per_s: 100",
            "rate_per_s: 0",
            "workload[0]: workload entry poisson of 'm': rate_per_s 0.0 is not positive",
        ),
        ("slo_ms: 50", "slo_ms: '${slo}'", "workload[0].slo_ms: no variable 'slo' for '${slo}'"),
        ("duration_s: 2", "duration_s: 2\nwarmup_s: 2", "warmup_s 2 does not end before the run"),
        ("duration_s: 2", "duration_s: 2\nwarmup_s: -1", "warmup_s -1 does not end before"),
        ("duration_s: 2", "duration_s: 2\nseeds: []", "seeds is empty"),
        (
            "duration_s: 2",
            "duration_s: 2\nseeds: [a]",
            "seeds[0]: Expected `int`, got `str`, in 'a'",
        ),
        ("duration_s: 2", "duration_s: 2\npolicies: [x]", "policies: no policy is called 'x'"),
        ("duration_s: 2", "duration_s: 2\nvariables: {a: []}", "variables.a has no values"),
        ("duration_s: 2", "duration_s: .inf", "duration_s inf is no finite number"),
        ("duration_s: 2", "duration_s: 2\nwarmup_s: .nan", "warmup_s nan is no finite number"),
        (
            "v100/resnet50_v2",
            "{first_ms: .inf, each_ms: 1, load_ms: 1, weights_mb: 1}",
            "models[0].profile: first_ms inf is no finite number",
        ),
        ("rate_per_s: 100", "rate_per_s: .inf", "rate_per_s inf is no finite number"),
        (
            "duration_s: 2",
            "duration_s: 2\nscheduler: {reply_margin_ms: .nan}",
            "scheduler: reply_margin_ms nan is no finite number",
        ),
        ("duration_s: 2", "duration_s: 2\nsample_ms: 0", "sample_ms 0 is not positive"),
        ("duration_s: 2", "duration_s: 2\nclient_delay_ms: -1", "client_delay_ms -1 is negative"),
        ("duration_s: 2", "duration_s: 2\ndevices: []", "devices is empty"),
        (
            "duration_s: 2",
            "duration_s: 2\nscheduler: {margin_ms: 3}",
            "scheduler: no setting 'margin_ms' (3); there are",
        ),
        (
            "duration_s: 2",
            "duration_s: 2\nscheduler: {max_queued_requests: many}",
            "Expected `int`, got `str`",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MINIMAL
    assert message in refusal(tmp_path, MINIMAL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("resident: some", "devices[0]: resident 'some': all|none|fit"),
        ("pages: 0", "devices[0]: pages 0 is less than 1"),
        ("jitter_ms: -1", "devices[0]: jitter_ms -1 is negative"),
        ("spikes: {probability: 2, min_ms: 1, max_ms: 2}", "probability 2 is not in 0 ... 1"),
        ("spikes: {probability: 1, min_ms: 3, max_ms: 2}", "3 ... 2 ms is no range"),
        ("exec_noise: .nan", "devices[0]: exec_noise nan is no finite number"),
        ("spikes: {probability: .nan, min_ms: 1, max_ms: 2}", "probability nan is no finite"),
        ("gpus: 2", "devices[0]: no key 'gpus' (2); there are count, pages,"),
        ("spikes: {chance: 1}", "devices[0].spikes: no key 'chance' (1); there are probability,"),
    ],
)
def test_a_mistake_about_devices_is_named(tmp_path: Path, devices: str, message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL + f"devices: [{{{devices}}}]\n")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kind: crash, worker: 1, at_s: 1", "crash of worker 1, there are 0 ... 0"),
        ("kind: crash, worker: 0, at_s: -1", "faults[0]: at_s -1 is negative"),
        ("kind: crash, worker: 0, at_s: 1, down_s: 0", "faults[0]: down_s 0.0 is not positive"),
        ("kind: crash, worker: 0, at_s: 1, detect_ms: -1", "detect_ms -1 is negative"),
        ("kind: stall, at_s: -1, stall_ms: 5", "faults[0]: at_s -1 is negative"),
        ("kind: crash, worker: 0, at_s: 1, down_s: .inf", "down_s inf is no finite number"),
        ("kind: stall, at_s: .nan, stall_ms: 5", "faults[0]: at_s nan is no finite number"),
        ("kind: stall, at_s: 1, stall_ms: 0", "stall_ms 0 is not positive"),
        ("kind: stall, at_s: 1, stall_ms: 5, every_s: 0", "every_s 0.0 is not positive"),
        (
            "kind: stall, at: 1",
            "faults[0]: no key 'at' (1), the nearest is 'at_s'; there are kind,",
        ),
        ("kind: flood, at_s: 1", "faults[0].kind: 'flood' is none of crash, stall"),
    ],
)
def test_a_mistake_about_faults_is_named(tmp_path: Path, fault: str, message: str) -> None:
    assert message in refusal(tmp_path, MINIMAL + f"faults: [{{{fault}}}]\n")


def test_a_file_that_is_no_scenario_is_said_to_be_none(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[1, 2]").startswith("a scenario is a mapping of keys, this is [1, 2]")
    assert refusal(tmp_path, "name: [") == (
        "not YAML: expected the node content, but found '<stream end>', in line 1"
    )
    assert refusal(tmp_path, "name: \x01").startswith("not YAML: unacceptable character #x0001")
    with pytest.raises(ScenarioError, match=r"nowhere\.yaml: No such file or directory"):
        load(tmp_path / "nowhere.yaml")
