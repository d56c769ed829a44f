from pathlib import Path

import msgspec
import pytest

from gateway.config import ConfigError, GatewayConfig, load_config


def test_defaults_need_no_source() -> None:
    assert load_config(environ={}) == GatewayConfig()


def test_command_line_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\ncache_mb: 2\npage_mb: 3\n")
    config = load_config(
        environ={"REMONTOIR_PORT": "4", "REMONTOIR_CACHE_MB": "5", "HOME": "/root"},
        file=file,
        overrides={"port": 6, "host": None},
    )
    assert (config.port, config.cache_mb, config.page_mb) == (6, 5, 3)
    assert config.host == "127.0.0.1"  # None is a flag that was not given


def test_environment_may_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("drain_s: 1.5\n")
    assert load_config(environ={"REMONTOIR_CONFIG_FILE": str(file)}).drain_s == 1.5


@pytest.mark.parametrize(
    ("environ", "overrides", "message"),
    [
        ({"REMONTOIR_PROT": "1"}, {}, "environment: unknown setting REMONTOIR_PROT; known are"),
        ({}, {"prot": 1}, "command line: unknown setting prot; known are"),
        ({"REMONTOIR_PORT": "eight"}, {}, "environment: REMONTOIR_PORT is 'eight'"),
        ({"REMONTOIR_PORT": "65536"}, {}, "REMONTOIR_PORT is '65536': Expected `int` <= 65535"),
        ({}, {"default_slo_ms": 0.0}, "default_slo_ms is 0.0: Expected `float` > 0.0"),
        ({}, {"default_slo_ms": float("nan")}, "default_slo_ms is nan"),
        ({}, {"drain_s": float("nan")}, "drain_s is nan"),
        ({}, {"shed_status": 500}, "shed_status is 500: Invalid enum value 500"),
        ({}, {"page_mb": 0}, "page_mb is 0: Expected `int` >= 1"),
    ],
)
def test_a_bad_setting_stops_with_its_name(
    environ: dict[str, str], overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(environ=environ, overrides=overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot: 1", "config.yaml: unknown setting prot"),
        ("port: '1'", "config.yaml: port is '1': Expected `int`, got `str`"),
        ("- port", "expected `key: value` lines"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_file_stops_with_its_key(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_config(environ={}, file=file)
    assert message in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(environ={}, file=tmp_path / "none.yaml")


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing yet\n")
    assert load_config(environ={}, file=file) == GatewayConfig()


def test_every_default_is_one_that_could_be_given() -> None:
    for field in msgspec.structs.fields(GatewayConfig):
        msgspec.convert(field.default, type=field.type)


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        GatewayConfig().port = 1  # type: ignore[misc]


def test_what_kubernetes_says_of_a_service_of_that_name_is_no_setting() -> None:
    environ = {
        "REMONTOIR_PORT": "tcp://10.0.0.7:8000",
        "REMONTOIR_PORT_8000_TCP_ADDR": "10.0.0.7",
        "REMONTOIR_SERVICE_HOST": "10.0.0.7",
        "REMONTOIR_WORKER_BIND": "tcp://127.0.0.1:7000",
    }
    config = load_config(environ=environ)
    assert (config.port, config.worker_bind) == (GatewayConfig().port, "tcp://127.0.0.1:7000")
