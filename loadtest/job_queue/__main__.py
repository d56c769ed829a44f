"""`python -m loadtest.job_queue`: what `remontoir bench submit`, `queue`, `leader` and `follower`
run.

Owns their arguments, the token, and what people are told. Exit codes: 0 done, 1 it failed, 2 it was
asked wrongly, 3 the job ended with a part of its results.
"""

import argparse
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.driver.job_file import JobError
from loadtest.job_queue import client, follower, leader
from loadtest.job_queue.host import MAX_BUSY, HostUse
from loadtest.job_queue.messages import ENDED_STATES, Job, Submission
from loadtest.job_queue.queue_schema import QueueError
from loadtest.job_queue.spec import checked

TOKEN_VARIABLE = "REMONTOIR_BENCH_TOKEN"
FOLLOWER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
POLL_S = 2.0
PIPE_WIDTH = 200
SHOWN_CHARACTERS = 80
EXPECTED = (
    client.LeaderRefused, client.LeaderUnreachable, follower.FolderInUse, leader.LeaderError,
    QueueError,
)  # fmt: skip

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


class _Usage(Exception):
    """It was asked wrongly; the message says what to change."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except (*EXPECTED, _Usage) as error:
        errors.print(f"remontoir bench: {error}", style="red", markup=False, soft_wrap=True)
        return 2 if isinstance(error, _Usage | leader.LeaderError) else 1
    except KeyboardInterrupt:
        return 130


def check_spec(text: str) -> str | None:
    """What is wrong with a job's YAML, or None."""
    try:
        checked(text, "the job")
    except JobError as error:
        return str(error)
    return None


def _leader(options: argparse.Namespace) -> int:
    from loadtest.job_queue.queue_tables import JobQueue

    token = _token(options)
    leader.check_exposure(options.host, token=token)
    if (options.tls_cert is None) != (options.tls_key is None):
        raise _Usage("--tls-cert and --tls-key go together")
    tls = () if options.tls_cert is None else (options.tls_cert, options.tls_key)
    if not leader.is_loopback(options.host) and not tls:
        errors.print("without --tls-cert the token travels readable", style="yellow")
    queue = JobQueue(options.database)
    scheme = "https" if tls else "http"
    console.print(
        f"leader on {scheme}://{options.host}:{options.port}, queue in {queue.name}",
        markup=False,
    )
    leader.serve(
        queue, host=options.host, port=options.port, token=token, tls=tls, check_spec=check_spec
    )
    queue.close()
    return 0


def _follower(options: argparse.Namespace) -> int:
    if not FOLLOWER_NAME.fullmatch(options.name):
        raise _Usage(
            f"--name {options.name!r} is not 1 to 100 letters, digits, '.', '_', '-', a letter or "
            "digit first"
        )
    folder = (options.folder or Path("bench-follower") / options.name).resolve()
    instance, lock = follower.claim(folder)
    own = follower.Follower(
        client.connect(options.leader, _token(options)),
        name=options.name,
        instance=instance,
        folder=folder,
        labels={"host": socket.gethostname(), **dict(options.label)},
        host=HostUse(),
        run=follower.run_program(options.command),
        rows_of=follower.rows_of_results,
        say=lambda text: console.print(text, markup=False),
        max_busy=options.max_busy,
    )
    console.print(f"{options.name} follows {options.leader}, works in {folder}", markup=False)
    signal.signal(signal.SIGTERM, _stop)
    with lock:
        follower.follow(own)
    return 0


def _stop(signal_number: int, _: FrameType | None) -> None:
    """Leave by the way that ends what runs, and gives it back."""
    sys.exit(128 + signal_number)


def _submit(options: argparse.Namespace) -> int:
    try:
        text = options.job.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Usage(f"{options.job}: {error}") from error
    try:
        spec = checked(text, str(options.job))
    except JobError as error:
        raise _Usage(str(error)) from error
    asked = client.connect(options.leader, _token(options))
    try:
        submission = Submission(
            name=options.name or spec.name,
            spec=text,
            submitter=f"{os.environ.get('USER', 'somebody')}@{socket.gethostname()}",
            on=dict(options.on),
            estimated_s=options.estimate_s or spec.estimated_s(),
        )
    except ValueError as error:  # of a flag: the file was checked
        raise _Usage(str(error)) from error
    job = asked.submit(options.job_id or str(uuid.uuid4()), submission)
    where = job.follower or "the first follower that fits"
    console.print(
        f"{job.name} is {job.state} ({job.job_id}), for {where}, about {job.estimated_s:.0f} s",
        markup=False,
    )
    if not options.wait:
        return 0
    return _wait(asked, job, options.out)


def _wait(asked: client.LeaderClient, job: Job, out: Path | None) -> int:
    """Until it has ended; its results go into a file."""
    with errors.status(f"{job.name} is {job.state}") as status:
        while job.state not in ENDED_STATES:
            time.sleep(POLL_S)
            try:
                job = asked.job(job.job_id)
            except client.LeaderUnreachable as error:
                status.update(f"{error}; asking again")
                continue
            status.update(f"{job.name} is {job.state}" + f" on {job.follower}" * bool(job.follower))
    if out is not None and job.num_rows:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(b"".join(row + b"\n" for row in asked.rows(job.job_id)))
        console.print(f"{job.num_rows} rows are in {out}", markup=False)
    why = f": {job.message}" if job.message else ""
    console.print(f"{job.name} is {job.state}{why}", markup=False)
    return {"done": 0, "partial": 3}.get(job.state, 1)


def _queue(options: argparse.Namespace) -> int:
    asked = client.connect(options.leader, _token(options))
    if options.cancel is not None:
        job = asked.cancel(options.cancel)
        console.print(f"{job.name} is {job.state}", markup=False)
        return 0
    found = asked.overview()
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("job", "name", "state", "follower", "estimate", "since", "tries", "rows", ""):
        shown.add_column(heading)
    for job in found.jobs:
        since_s = found.now_s - (job.ended_s or job.started_s or job.submitted_s)
        shown.add_row(
            job.job_id, job.name, job.state, job.follower or "-", f"{job.estimated_s:.0f} s",
            f"{since_s:.0f} s", str(job.attempts), str(job.num_rows),
            _short(job.message or _needs(job)),
        )  # fmt: skip
    console.print(shown)
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("follower", "is", "others use", "backlog", "labels"):
        shown.add_column(heading)
    for one in found.followers:
        state = "runs" if one.runs else "idle" if one.is_idle else "in use by others"
        shown.add_row(
            one.name,
            state if one.is_alive else f"not heard of for {found.now_s - one.seen_s:.0f} s",
            f"{one.busy * 100:.0f} %",
            f"{one.backlog_s:.0f} s",
            ", ".join(f"{key}={value}" for key, value in one.labels.items()),
        )
    console.print(shown)
    return 0


def _needs(job: Job) -> str:
    """Of one that nobody has taken yet: which labels a follower must have."""
    labels = ", ".join(f"{key}={value}" for key, value in job.on.items())
    return f"needs {labels}" if labels and job.follower is None else ""


def _short(message: str) -> str:
    """For a cell of a table; `submit --wait` and GET /jobs/ID have all of it."""
    return message if len(message) <= SHOWN_CHARACTERS else f"{message[:SHOWN_CHARACTERS]} ..."


def _token(options: argparse.Namespace) -> str | None:
    if options.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token: str = options.token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _Usage(f"--token-file {options.token_file}: {error}") from error
    if not token:
        raise _Usage(f"--token-file {options.token_file} is empty")
    return token


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.job_queue")
    commands = parser.add_subparsers(required=True)

    lead = _with_token(commands.add_parser("leader"))
    lead.add_argument("--host", default="127.0.0.1")
    lead.add_argument("--port", type=int, default=leader.DEFAULT_PORT)
    lead.add_argument("--database", default="bench-leader")
    lead.add_argument("--tls-cert", type=Path)
    lead.add_argument("--tls-key", type=Path)
    lead.set_defaults(run=_leader)

    run = _with_leader(commands.add_parser("follower"))
    run.add_argument("--name", default=socket.gethostname())
    run.add_argument("--folder", type=Path)
    run.add_argument("--label", type=_label, action="append", default=[])
    run.add_argument("--max-busy", type=float, default=MAX_BUSY)
    run.add_argument("--command", nargs=argparse.REMAINDER, required=True)
    run.set_defaults(run=_follower)

    give = _with_leader(commands.add_parser("submit"))
    give.add_argument("job", type=Path)
    give.add_argument("--name")
    give.add_argument("--on", type=_label, action="append", default=[])
    give.add_argument("--estimate-s", type=float)
    give.add_argument("--job-id")
    give.add_argument("--wait", action="store_true")
    give.add_argument("--out", type=Path)
    give.set_defaults(run=_submit)

    show = _with_leader(commands.add_parser("queue"))
    show.add_argument("--cancel")
    show.set_defaults(run=_queue)
    return parser


def _with_token(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--token-file", type=Path)
    return parser


def _with_leader(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--leader", default=f"http://127.0.0.1:{leader.DEFAULT_PORT}")
    return _with_token(parser)


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
