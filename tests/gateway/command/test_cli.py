"""The `remontoir` command as a person meets it: help that teaches, one clear line when it fails."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.command import cli
from gateway.tenants.api_keys import matches, presented_key
from gateway.tenants.tenants_file import parse_tenants
from scheduler import __version__
from scheduler.build import describe
from scheduler.policies import POLICIES
from scheduler.spec import ModelSpec
from tests.gateway.running import (
    RunningGateway,
    doubling_model,
    magika_stand_in,
    running_gateway,
    write_model,
)

COMMANDS = [
    "serve",
    "worker",
    "compile",
    "models",
    "infer",
    "quote",
    "requests",
    "check",
    "reload",
    "rollback",
    "fetch",
    "policies",
    "simulate",
    "bound",
    "replay",
    "explain",
    "gpu-check",
    "bench",
    "keys",
    "version",
]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there

# (arguments...) → exit code, stdout, stderr
Remontoir = Callable[..., tuple[int, str, str]]


@pytest.fixture
def remontoir(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Remontoir:
    """Runs the command in this process."""
    for name in ("REMONTOIR_MODELS_DIR", "REMONTOIR_EMULATE", "REMONTOIR_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REMONTOIR_CACHE_DIR", str(tmp_path / "cache"))
    # Help is as wide as the terminal, and coloured where CI says it is one.
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["remontoir", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capfd.readouterr()
        code = exit_info.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Serves `double`, a stand-in for magika that is sure of Python, and a broken model."""
    scratch = tmp_path_factory.mktemp("gateway")
    models = scratch / "models"
    write_model(models / "double", doubling_model(), config="default_slo_ms: 5000\n")
    write_model(models / "magika", magika_stand_in("python", 0.99))
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"this is not an ONNX file")
    flags = ("--models", str(models), "--drain-s", "0", "--default-slo-ms", "5000")
    with running_gateway(*flags, scratch=scratch) as running:
        yield running


def words(text: str) -> str:
    """The text without line breaks and table borders."""
    return " ".join(text.replace("│", " ").split())


def test_help_names_every_command_and_how_to_start(remontoir: Remontoir) -> None:
    code, out, _ = remontoir("--help")
    assert code == 0
    for command in COMMANDS:
        assert f" {command} " in out
    assert "remontoir fetch && remontoir serve --models demo-models" in out


MODELS = ("register", "update", "search", "list", "delete")
BENCH = (
    "report", "leaderboard", "recommend", "roofline", "submit", "queue", "leader", "follower",
    "run", "ceiling", *(f"models {name}" for name in MODELS),
)  # fmt: skip


@pytest.mark.parametrize(
    "command", [*COMMANDS[:-3], "keys api", *(f"bench {name}" for name in BENCH)]
)
def test_the_help_of_each_command_has_an_example(remontoir: Remontoir, command: str) -> None:
    code, out, _ = remontoir(*command.split(), "-h")
    assert code == 0
    assert re.search(rf"Examples?:\s+remontoir {command}", words(out))


def test_serve_has_the_promised_flags_with_their_defaults(remontoir: Remontoir) -> None:
    text = words(remontoir("serve", "--help")[1])
    for flag, default in {
        "--host": "127.0.0.1",
        "--port": "8000",
        "--workers": "1",
        "--intra-op-threads": "1",
        "--device": "auto",
        "--cache-mb": "1024 on the CPU, all that is free on a GPU",
        "--page-mb": "16",
        "--default-slo-ms": "1000",
        "--drain-s": "5",
    }.items():
        assert re.search(rf"{flag} .*?\[default: \({re.escape(default)}\)\]", text), flag
    for flag in ("--models", "--groups", "--worker-bind", "--emulate"):
        assert flag in text


def test_a_new_api_key_is_shown_once_with_what_the_tenants_file_keeps(remontoir: Remontoir) -> None:
    code, out, err = remontoir("keys", "api", "--tenant", "shop")
    assert (code, err) == (0, "")
    [key] = re.findall(r"rmt_k[0-9a-f]{12}_[A-Za-z0-9_-]{43}", out)
    tenants = parse_tenants(out[out.index("tenants:") :], source="what was printed")
    [stored] = tenants["shop"].stored_keys()
    assert matches(presented_key({b"x-api-key": key.encode()}), stored.digest)


def test_policies_shows_each_with_its_options(remontoir: Remontoir) -> None:
    code, out, _ = remontoir("policies")
    assert code == 0
    for name in POLICIES:
        assert re.search(rf"^ *{name} ", out, re.MULTILINE), name
    assert "deadline_floor=false" in out


def test_version(remontoir: Remontoir) -> None:
    assert remontoir("version") == (0, f"{__version__}, {describe()}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["serve"],
            2,
            "which models? Give --models DIR (`remontoir fetch` makes one), or --emulate NAME:N",
        ),
        (["serve", "--models", "/no/such"], 2, "--models /no/such: no such directory"),
        (["serve", "--models", "/dev/null"], 2, "--models /dev/null: is not a directory"),
        (
            ["serve", "--emulate", "clockwork-v100:0"],
            2,
            "--emulate clockwork-v100:0: expected NAME:N with N from 1 to 1024,"
            " for instance clockwork-v100:4",
        ),
        (
            ["serve", "--emulate", "x:1", "--log-level", "loud"],
            2,
            "--log-level loud: not one of debug, info, warning, error",
        ),
        (
            ["serve", "--cache-mb", "0"],
            2,
            "command line: cache_mb is 0: Expected `int` >= 1",
        ),
        (["worker", "--connect", "tcp://h:1"], 2, "which models? Give --models DIR."),
        (
            ["worker", "--connect", "tcp://h:1", "--emulate", "x", "--groups", "/nowhere.yaml"],
            2,
            "groups file /nowhere.yaml: No such file or directory",
        ),
        (["compile"], 2, "which models? Give --models DIR."),
        (["explain", "r"], 2, "give one of REQUEST_ID and --list."),
        (["explain", "r", "1", "--late"], 2, "--refused, --late and --model go with --list."),
        (
            ["keys", "api", "--tenant", "a b"],
            2,
            "--tenant 'a b': a name is 1 to 64 letters, digits, '.', '_' and '-'",
        ),
        (
            ["keys", "kubernetes", "--tenants", "t"],
            2,
            "--tenants and --api-keys belong together.",
        ),
        (["check", "--json", "[1]"], 2, "--json TEXT is for which --model?"),
        (["infer", "m"], 2, "give the input as one of --file F and --json TEXT."),
        (["infer", "m", "--file", "/no/such"], 2, "/no/such: no such file"),
        (
            ["fetch", "cow"],
            1,
            "no demo model is named 'cow': there are"
            " magika, silero_vad, ppocr_cls, ppocr_rec, open_nsfw, minilm",
        ),
    ],
)
def test_what_was_asked_wrongly_is_one_line(
    remontoir: Remontoir, arguments: list[str], code: int, line: str
) -> None:
    assert remontoir(*arguments) == (code, "", f"remontoir: {line}\n")


def test_an_empty_repository_is_named(remontoir: Remontoir, tmp_path: Path) -> None:
    code, _, err = remontoir("serve", "--models", tmp_path)
    assert code == 2
    expected = f"--models {tmp_path}: no model in it; expected <model>/<version>/model.onnx"
    assert err == f"remontoir: {expected}\n"


def test_a_taken_port_is_known_before_anything_is_compiled(
    remontoir: Remontoir, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = remontoir("serve", "--emulate", "clockwork-v100:1", "--port", port)
    expected = f"port {port} of 127.0.0.1 is in use: give another with --port, or 0 for a free one"
    assert (code, out, err) == (1, "", f"remontoir: {expected}\n")


def test_an_unknown_emulation_lists_the_known_ones(remontoir: Remontoir) -> None:
    code, out, err = remontoir("serve", "--port", 0, "--emulate", "abacus:2")
    assert code == 2
    assert "abacus" in err
    assert "clockwork-v100" in err
    assert "Traceback" not in out + err


def test_a_repository_of_broken_models_only_is_not_served(
    remontoir: Remontoir, tmp_path: Path
) -> None:
    (tmp_path / "models" / "bad" / "1").mkdir(parents=True)
    (tmp_path / "models" / "bad" / "1" / "model.onnx").write_bytes(b"no")
    code, out, err = remontoir("serve", "--port", 0, "--models", tmp_path / "models")
    assert code == 1
    assert err.splitlines()[-1].startswith("remontoir: no model can be served: bad: ")
    assert "Traceback" not in out + err


def test_compile_of_a_missing_directory_fails_with_the_workers_line(remontoir: Remontoir) -> None:
    code, out, err = remontoir("compile", "--models", "/no/such")
    assert (code, out) == (2, "")
    assert "/no/such" in err
    assert len(err.splitlines()) == 1


def test_compile_writes_what_it_measured_where_it_is_told(
    remontoir: Remontoir, tmp_path: Path
) -> None:
    write_model(tmp_path / "models" / "double", doubling_model())
    catalogue = tmp_path / "mine.json"
    code, out, _ = remontoir("compile", "--models", tmp_path / "models", "--catalog-out", catalogue)
    assert code == 0
    assert "double" in out
    (spec,) = msgspec.json.decode(catalogue.read_bytes(), type=list[ModelSpec])
    assert (spec.name, spec.profile.shapes[0].exec_ns.keys()) == ("double", {1, 2, 4, 8, 16})


@pytest.mark.parametrize("command", [["models"], ["infer", "m", "--json", "[1]"]])
def test_no_server_is_said_with_what_to_do(remontoir: Remontoir, command: list[str]) -> None:
    code, _, err = remontoir(*command, "--url", NOBODY)
    assert code == 1
    assert err.startswith(f"remontoir: no server answers at {NOBODY} (")
    assert "`remontoir serve --models DIR`" in err
    assert len(err.splitlines()) == 1


def test_models_shows_pages_batch_sizes_profile_and_state(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("models", "--url", gateway.url)
    assert code == 0
    _, head, double, magika, broken = out.splitlines()
    assert " ".join(head.split()) == "model weights pages MB load ms shape 1 2 4 8 16"
    name, state, pages, megabytes, load_ms, *exec_ms = double.split()
    assert (name, pages, megabytes) == ("double", "1", "0.0")
    assert state in ("absent", "loading", "resident")
    assert len([load_ms, *map(float, exec_ms)]) == 6
    assert magika.split()[0] == "magika"
    assert broken.startswith("broken is unavailable: ")


def test_infer_shows_outputs_latency_slack_and_phases(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("infer", "double", "--json", "[1, 2, 3, 4.5]", "--url", gateway.url)
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["y FP32 [1, 4]", "[[2., 4., 6., 9.]]"]
    assert [line.split()[0] for line in lines[4:9]] == ["queue", "load", "input", "exec", "output"]
    assert re.fullmatch(
        r"answered in [\d.]+ ms of 5000 ms, slack [\d.]+ ms, predicted [\d.]+ ms(, cold start)?",
        lines[-1],
    )


def test_reload_and_rollback_say_what_serves_or_why_nothing_changes(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("reload", "double", "--url", gateway.url)
    assert code == 0
    words = r"double: version 1 serves, and is what the repository has, after \d+\.\d s\n"
    assert re.fullmatch(words, out)
    code, _, err = remontoir("rollback", "double", "--url", gateway.url)
    assert code == 1
    assert "model double has no version to go back to" in err


def test_quote_says_yes_or_no_with_the_figures_and_sends_nothing(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("quote", "double", "--slo-ms", "5000", "--url", gateway.url)
    assert (code, out.splitlines()[0]) == (0, "yes: it would be met")
    names = ("SLO", "predicted", "slack", "least SLO now", "least SLO ever", "where")
    figures = zip(out.splitlines()[1:], names, strict=True)
    assert all(line.startswith(name) for line, name in figures)
    assert "local-0" in out.splitlines()[-1]

    code, out, _ = remontoir("quote", "double", "--slo-ms", "0.0001", "--url", gateway.url)
    assert (code, out.startswith("no: 422 slo_infeasible_ever, SLO 0.000 ms")) == (1, True)
    code, out, _ = remontoir(
        "quote", "double", "--slo-ms", "0.0001", "--count", "9", "--url", gateway.url
    )
    assert (code, out.startswith("no: 0 of 9 would be met, then: 422 slo_inf")) == (1, True)
    code, _, err = remontoir("quote", "nope", "--url", gateway.url)
    assert (code, "404 not_found" in err) == (1, True)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json"])
def test_infer_reads_files(
    remontoir: Remontoir, gateway: RunningGateway, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"input{suffix}"
    rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    if suffix == ".npy":
        np.save(file, rows)
    elif suffix == ".npz":
        np.savez(file, x=rows)
    else:
        file.write_text(json.dumps({"x": rows.tolist()}))
    code, out, _ = remontoir("infer", "double", "--file", file, "--url", gateway.url)
    assert code == 0
    assert out.startswith("y FP32 [2, 4]\n[[ 2.,  4.,  6.,  8.],\n [10., 12., 14., 16.]]\n")


def test_infer_magika_names_the_type_of_a_file(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("infer", "magika", "--file", __file__, "--url", gateway.url)
    assert code == 0
    assert out.startswith(f"{__file__}: python, score 0.990: Python source, text/x-python\n")
    assert "answered in " in out


def test_infer_magika_needs_no_request_for_an_empty_file(
    remontoir: Remontoir, gateway: RunningGateway, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    code, out, _ = remontoir("infer", "magika", "--file", tmp_path / "empty", "--url", gateway.url)
    assert code == 0
    assert "empty: empty, score 1.000: Empty file, inode/x-empty (the file is empty)" in out
    assert "No request was sent." in out


def test_check_asks_for_life_readiness_an_answer_and_a_refusal(
    remontoir: Remontoir, gateway: RunningGateway
) -> None:
    code, out, _ = remontoir("check", "--url", gateway.url)
    assert code == 0
    begins = ["ok  live", "ok  ready", "ok  answers", "ok  refuses"]
    assert [line[: len(b)] for line, b in zip(out.splitlines(), begins, strict=True)] == begins
    assert " double in " in out  # the one with the shortest answer
    assert "an SLO of 0.001 ms: 422 slo_infeasible_ever in " in out
    ask = ("check", "--url", gateway.url, "--model", "double", "--json")
    assert remontoir(*ask, "[1, 2, 3, 4]")[0] == 0
    code, out, err = remontoir(*ask, "[1, 2, 3]")
    assert (code, len(out.splitlines())) == (1, 2)
    assert err.startswith("remontoir: 400 bad_request: ")
    code, out, err = remontoir("check", "--url", gateway.url, "--model", "broken")
    assert (code, len(out.splitlines())) == (1, 2)
    assert err.startswith("remontoir: broken: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["infer", "nope", "--json", "[1]"], "404 not_found: no model 'nope' is served here"),
        (["infer", "double", "--json", "[1"], "not JSON: "),
        (["infer", "double", "--json", "[[1, 2], [3]]"], "input x: lists of unequal length"),
        (
            ["infer", "double", "--json", '{"z": [1]}'],
            "double has the inputs x: x missing, z unknown",
        ),
        (["infer", "double", "--json", "[1, 2, 3]"], "400 bad_request: "),
        (
            ["infer", "double", "--json", "[1, 2, 3, 4]", "--slo-ms", "0.0001"],
            "422 slo_infeasible_ever: ",
        ),
        (["infer", "double", "--json", "[1, 2, 3, 4]", "--slo-ms", "-5"], "400 bad_request: "),
        (["infer", "broken", "--json", "[1]"], "broken is unavailable: "),
        (["infer", "double", "--file", __file__], f"{__file__}: double takes .npy, .npz or .json"),
    ],
)
def test_a_no_is_one_line_and_exit_code_1(
    remontoir: Remontoir, gateway: RunningGateway, arguments: list[str], line: str
) -> None:
    code, out, err = remontoir(*arguments, "--url", gateway.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"remontoir: {line}")
    assert len(err.splitlines()) == 1
