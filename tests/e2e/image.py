"""The image of gateway and CPU workers, really built and run: `make e2e-image`.

hadolint reads both Dockerfiles. Then buildah builds the first one on a base made of Debian's own
packages, since images of registries may not be at hand, and its entrypoint serves two models with
the root file system read-only, as the user that the image names, and answers an inference. As root,
on Debian; buildah and mmdebstrap are installed where they are missing. Five minutes, network.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e import kubernetes_tools as tools
from tests.e2e.tools import LeftOut, run
from tests.gateway.running import ROOT
from tests.gpuworker import onnx_models
from tests.system.test_joining import free_port

BASE, IMAGE = "localhost/remontoir-base", "localhost/remontoir:e2e"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# What a build sees of this machine: whom it trusts, and where pip looks for packages.
SEEN = ("/etc/ssl/certs", "/etc/pip.conf")
BUILD_TIMEOUT_S = 1800
START_S = 120
MODELS = ("mlp", "other")


class Buildah:
    """With a storage of its own, and no daemon."""

    def __init__(self, home: Path) -> None:
        self._storage = ["--root", str(home / "storage"), "--runroot", str(home / "run")]
        self._storage += ["--storage-driver", "vfs"]

    def __call__(self, *arguments: object) -> str:
        done = subprocess.run(
            ["nice", "buildah", *self._storage, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        assert done.returncode == 0, f"buildah {arguments[0]}:\n{done.stdout[-4000:]}"
        return done.stdout


def main() -> int:
    try:
        lint()
        need_programs()
        with tempfile.TemporaryDirectory(prefix="remontoir-image-") as scratch:
            build_and_run(Path(scratch))
    except LeftOut as why:
        print(f"e2e-image: left out: {why}")
        return 1
    except (AssertionError, subprocess.CalledProcessError) as error:
        print(f"e2e-image: FAILED: {error}\n{getattr(error, 'stdout', None) or ''}")
        return 1
    return 0


def lint() -> None:
    program = tools.checker("hadolint") / "hadolint"
    for name in ("Dockerfile", "Dockerfile.gpu"):
        run(program, ROOT / name)
        print(f"e2e-image: hadolint: {name} is clean")


def need_programs() -> None:
    """Raises LeftOut."""
    if os.geteuid() != 0:
        raise LeftOut("images are built as root here")
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    if missing and shutil.which("apt-get"):
        settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "-qq", "install", "--no-install-recommends", "-y", *missing]
        for command in (["apt-get", "-qq", "update"], install):
            subprocess.run(command, env=settings, check=True, stdout=subprocess.DEVNULL)
    elif missing:
        raise LeftOut(f"{', '.join(missing)} not installed, and this is no Debian")


def base_tarball() -> Path:
    """Debian with Python, as the official image of Python has it; kept between runs."""
    tarball = tools.tools_directory() / f"{SUITE}-python.tar"
    if not tarball.exists():
        print(f"e2e-image: making a base of Debian's packages once, in {tarball}", flush=True)
        partial = tarball.with_suffix(".partial.tar")
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, partial)
        partial.rename(tarball)
    return tarball


def build_and_run(home: Path) -> None:
    buildah = Buildah(home)
    context = home / "base"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    os.link(base_tarball(), context / "base.tar") if _same_disk(home) else shutil.copy(
        base_tarball(), context / "base.tar"
    )
    buildah("bud", "-q", "-t", BASE, context)
    begin_s = time.monotonic()
    seen = [f"--volume={path}:{path}:ro" for path in SEEN if Path(path).exists()]
    seen += [f"--volume={path}:{path}:ro" for path in local_indexes()]
    told = buildah("bud", "--network=host", *seen, f"--build-arg=BASE={BASE}", "-t", IMAGE, ".")
    said = re.search(r"^\S+, compiled core$", told, re.MULTILINE)
    assert said, f"`remontoir version` while it was built:\n{told[-2000:]}"
    print(f"e2e-image: built in {time.monotonic() - begin_s:.0f} s: {said[0]}")
    config = json.loads(buildah("inspect", "--type=image", IMAGE))["OCIv1"]["config"]
    container = buildah("from", IMAGE).strip().splitlines()[-1]
    root = Path(buildah("mount", container).strip().splitlines()[-1])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    models = home / "models"
    for name in MODELS:
        onnx_models.write_model(models, name, onnx_models.mlp())
    with serving(home, root, config, models, port) as log:
        wait_until_ready(root, config, url, log)
        said_all = in_image(root, config, "check", "--url", url, "--model", MODELS[0])
        assert said_all.count("ok  ") == 4, said_all
        print("e2e-image: read-only, as uid 10001, its entrypoint serves and its `check` says:")
        print("           " + "\n           ".join(said_all.strip().splitlines()))


def local_indexes() -> list[str]:
    """Directories on this machine that pip was told to look into."""
    config = Path("/etc/pip.conf")
    text = config.read_text() if config.exists() else ""
    found = set(re.findall(r"file://(/[^\s/]+/[^\s/]+)", text)) | set(
        re.findall(r"find-links\s*=\s*(/\S+)", text)
    )
    return sorted(path for path in found if Path(path).is_dir())


def in_image(root: Path, config: dict[str, Any], *arguments: str) -> str:
    """What the image's entrypoint says to these."""
    return run("chroot", *user_of(config), root, *environment_of(config, root), *arguments)


@contextmanager
def serving(
    home: Path, root: Path, config: dict[str, Any], models: Path, port: int
) -> Iterator[Path]:
    """In mounts of its own: the root read-only, /tmp and /cache empty, /proc and /dev there."""
    for name in ("models", "cache"):
        (root / name).mkdir(exist_ok=True)
    cache = home / "cache"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    command = ["serve", "--models", "/models", "--port", str(port), "--drain-s", "0"]
    told = " ".join([*environment_of(config, root), *command])
    script = f"""
        set -e
        mount --bind {root} {root}
        mount -t proc proc {root}/proc
        mount --rbind /dev {root}/dev
        mount -t tmpfs -o mode=1777 tmpfs {root}/tmp
        mount --bind {models} {root}/models
        mount --bind {cache} {root}/cache
        mount -o remount,ro,bind {root}
        ! touch {root}/here 2>/dev/null
        exec chroot {" ".join(user_of(config))} {root} {told}
    """
    log = home / "serve.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=stream,
            stderr=stream,
        )
    try:
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
        print("e2e-image: on SIGTERM it ends with exit code 0")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def user_of(config: dict[str, Any]) -> list[str]:
    assert config["User"] == "10001:10001"
    return [f"--userspec={config['User']}"]


def environment_of(config: dict[str, Any], root: Path) -> list[str]:
    """env, the image's variables and its entrypoint, which is looked for on the image's path."""
    assert config["Entrypoint"] == ["remontoir"], config
    assert (root / "opt/remontoir/bin/remontoir").exists()
    return ["/usr/bin/env", "-i", *config["Env"], *config["Entrypoint"]]


def wait_until_ready(root: Path, config: dict[str, Any], url: str, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        try:
            in_image(root, config, "check", "--url", url, "--model", MODELS[0])
            return
        except subprocess.CalledProcessError:
            time.sleep(0.5)
    raise AssertionError(f"not ready within {START_S} s:\n{log.read_text()}")


def _same_disk(home: Path) -> bool:
    return home.stat().st_dev == tools.tools_directory().stat().st_dev


if __name__ == "__main__":
    sys.exit(main())
