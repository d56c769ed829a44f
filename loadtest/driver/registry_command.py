"""`remontoir bench models`: the registry in a terminal.

Owns its arguments and its tables.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.driver.registry import TEXTS, RegisteredModel, Registry
from loadtest.driver.results_db import ResultsDatabase


def add_to(commands: Any, results: str, console: Console) -> None:
    """Adds `models ACTION`; `commands` are argparse's subparsers."""
    actions = commands.add_parser("models").add_subparsers(required=True)
    for action in ("register", "update"):
        parser = actions.add_parser(action)
        parser.add_argument("name")
        parser.add_argument("--path", type=Path, required=action == "register")
        for field in TEXTS:
            parser.add_argument(f"--{field}")
        parser.add_argument("--shape", type=_shape, action="append", default=[])
        parser.set_defaults(run=lambda options: _with(options, console, _write))
    for action, number in (("search", "*"), ("list", 0), ("delete", "+")):
        parser = actions.add_parser(action)
        if number:
            parser.add_argument("words", nargs=number)
        else:
            parser.set_defaults(words=[])
        parser.set_defaults(
            run=lambda options, doing=_delete if action == "delete" else _search: _with(
                options, console, doing
            )
        )
    for action in actions.choices:
        actions.choices[action].add_argument("--results", default=results)
        actions.choices[action].set_defaults(action=action)


def _with(options: argparse.Namespace, console: Console, doing: Any) -> int:
    database = ResultsDatabase(options.results)
    try:
        code: int = doing(options, Registry(database), console)
        return code
    finally:
        database.close()


def _write(options: argparse.Namespace, registry: Registry, console: Console) -> int:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    texts = {field: getattr(options, field) for field in TEXTS}
    shapes = dict(options.shape)
    if options.action == "register":
        given = {field: text for field, text in texts.items() if text is not None}
        model = registry.register(options.name, options.path, now=now, shapes=shapes, **given)
    else:
        model = registry.update(options.name, now=now, path=options.path, shapes=shapes, **texts)
    console.print(_table([model]))
    return 0


def _search(options: argparse.Namespace, registry: Registry, console: Console) -> int:
    models = registry.search(" ".join(options.words))
    if not models:
        console.print("no models" + (f" have {' '.join(options.words)!r}" if options.words else ""))
        return 1
    console.print(_table(models))
    return 0


def _delete(options: argparse.Namespace, registry: Registry, console: Console) -> int:
    for name in options.words:
        registry.delete(name)
        console.print(f"{name} is no longer registered; its file is where it was", markup=False)
    return 0


def _table(models: Sequence[RegisteredModel]) -> Table:
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    texts = [field for field in TEXTS if any(getattr(model, field) for model in models)]
    for heading in ("model", *texts, "MB", "SHA-256", "path"):
        shown.add_column(heading, overflow="fold")
    for model in models:
        shown.add_row(
            model.name,
            *(getattr(model, field) for field in texts),
            f"{model.size_bytes / 1e6:.1f}",
            model.sha256[:12],
            model.path,
        )
    return shown


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """x=3,48,320: the shape of one row."""
    name, sign, numbers = text.partition("=")
    parts = numbers.split(",")
    if not name or not sign or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not INPUT=N,N,...")
    return name, tuple(int(part) for part in parts)
