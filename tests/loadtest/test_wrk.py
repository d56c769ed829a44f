from pathlib import Path

import pytest

from loadtest import wrk


def test_a_missing_wrk_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(wrk.WrkError, match="apt install wrk"):
        wrk.require()


def test_the_script_posts_the_bytes_of_its_body_file(tmp_path: Path):
    path = wrk.write_script(
        tmp_path / "scripts" / "json.lua", body=b"\x00\xff", headers={"Content-Type": "a/b"}
    )
    text = path.read_text()
    body_path = tmp_path / "scripts" / "json.body"
    assert body_path.read_bytes() == b"\x00\xff"
    assert f'io.open("{body_path}", "rb")' in text
    assert 'wrk.headers["Content-Type"] = "a/b"' in text


def test_the_rate_is_of_the_time_it_really_took():
    figures = wrk.Figures(300, 2_000_000, 1, 1, 0, 0)
    assert figures.requests_per_s == 150
