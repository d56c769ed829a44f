"""Key files of the workers' door: what is made, for whom, and what is not believed."""

import stat
from pathlib import Path

import pytest

from gateway.workers import curve_keys
from gateway.workers.curve_keys import KeysError
from gpuworker import curve_keys as worker_keys
from gpuworker.config import ConfigError


def files_below(directory: Path) -> list[str]:
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())


def test_each_side_gets_a_directory_with_what_it_needs(tmp_path: Path) -> None:
    made = curve_keys.make(tmp_path / "keys", ["rack-1"])
    assert made == [tmp_path / "keys" / "rack-1"]
    assert files_below(tmp_path / "keys") == [
        "gateway/gateway.key_secret",
        "gateway/workers/rack-1.key",
        "rack-1/gateway.key",
        "rack-1/worker.key_secret",
    ]
    gateway = curve_keys.read(tmp_path / "keys" / "gateway")
    worker = worker_keys.read(tmp_path / "keys" / "rack-1")
    assert worker.gateway_public == gateway.public
    assert gateway.workers == {worker.public: "rack-1"}
    assert gateway.secret.decode() not in (tmp_path / "keys/rack-1/gateway.key").read_text()


def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    curve_keys.make(tmp_path / "keys", ["worker"])
    for path in (tmp_path / "keys").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_further_worker_keeps_the_gateways_pair_and_nothing_is_overwritten(
    tmp_path: Path,
) -> None:
    curve_keys.make(tmp_path, ["a"])
    before = curve_keys.read(tmp_path / "gateway")
    curve_keys.make(tmp_path, ["b"])
    after = curve_keys.read(tmp_path / "gateway")
    assert (after.public, after.secret) == (before.public, before.secret)
    assert sorted(after.workers.values()) == ["a", "b"]
    contents = {file: (tmp_path / file).read_bytes() for file in files_below(tmp_path)}
    with pytest.raises(KeysError, match=r"/a exists, and keys are never overwritten"):
        curve_keys.make(tmp_path, ["c", "a"])
    (tmp_path / "b" / "worker.key_secret").unlink()
    (tmp_path / "b" / "gateway.key").unlink()
    (tmp_path / "b").rmdir()
    with pytest.raises(KeysError, match=r"workers/b\.key exists"):
        curve_keys.make(tmp_path, ["b"])
    assert all((tmp_path / f).read_bytes() == c for f, c in contents.items() if f[0] != "b")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["gateway", "../up", "", ".hidden", "a b", "x" * 65])
def test_names_that_would_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="a name is 1 to 64"):
        curve_keys.make(tmp_path, [name])
    assert files_below(tmp_path) == []


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"gateway\.key_secret: no such file; `remontoir keys"):
        curve_keys.read(tmp_path)
    with pytest.raises(ConfigError, match=r"worker\.key_secret: no such file; give"):
        worker_keys.read(tmp_path)
    curve_keys.make(tmp_path, ["worker"])
    other = tmp_path / "other"
    curve_keys.make(other, ["worker"])
    secret = tmp_path / "gateway" / "gateway.key_secret"
    mixed = secret.read_text().splitlines()
    mixed[-1] = (other / "gateway" / "gateway.key_secret").read_text().splitlines()[-1]
    for content in ("\n".join(mixed), mixed[2], 'public-key = "short"\nsecret-key = "short"'):
        secret.write_text(content)
        with pytest.raises(KeysError, match="not a secret CURVE key") as caught:
            curve_keys.read(tmp_path / "gateway")
        assert mixed[-1].split('"')[1] not in str(caught.value)
    theirs = tmp_path / "worker" / "worker.key_secret"
    theirs.write_text("nothing")
    with pytest.raises(ConfigError, match="no CURVE key in it"):
        worker_keys.read(tmp_path / "worker")
    theirs.write_text('public-key = "short"\nsecret-key = "short"')
    with pytest.raises(ConfigError, match="no secret key with its public key"):
        worker_keys.read(tmp_path / "worker")
    theirs.write_text((other / "worker" / "worker.key_secret").read_text())
    (tmp_path / "worker" / "gateway.key").write_text('public-key = "short"')
    with pytest.raises(ConfigError, match="no public key of 40 characters"):
        worker_keys.read(tmp_path / "worker")
    (other / "gateway" / "workers" / "bad.key").write_text('public-key = "short"')
    with pytest.raises(KeysError, match=r"bad\.key: a public key has 40 characters, this one 5"):
        curve_keys.read(other / "gateway")


def test_a_secret_that_others_can_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curve_keys.make(tmp_path, ["worker"])
    curve_keys.read(tmp_path / "gateway")
    worker_keys.read(tmp_path / "worker")
    assert caplog.text == ""
    (tmp_path / "gateway" / "gateway.key_secret").chmod(0o644)
    (tmp_path / "worker" / "worker.key_secret").chmod(0o640)
    curve_keys.read(tmp_path / "gateway")
    worker_keys.read(tmp_path / "worker")
    assert caplog.text.count("can be read by other users") == 2
