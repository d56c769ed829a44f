"""The registry of models: what a name stands for, for jobs and for people.

Owns its words and checks. It lies in the results' database, so that whoever shares results shares
models; the files stay where they are, and a job refuses one whose hash has changed.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadtest.driver.results_db import ResultsDatabase

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What `update` may change by name; the path brings the hash with it.
TEXTS = ("family", "task", "dataset", "input", "accuracy", "notes", "source")


class RegistryError(ValueError):
    """The registry cannot do that. The message names the model."""


class RegisteredModel(msgspec.Struct, frozen=True, kw_only=True):
    """One entry (InferBench, section 4.2.2). `shapes`: one row of an input with free dimensions."""

    name: str
    path: str
    sha256: str
    size_bytes: int
    family: str = ""
    task: str = ""
    dataset: str = ""
    input: str = ""
    accuracy: str = ""
    notes: str = ""
    source: str = ""
    shapes: dict[str, tuple[int, ...]] = {}
    registered_at: str
    updated_at: str

    def checked_path(self) -> Path:
        """Where the file is. Raises RegistryError if it is gone or another one."""
        path = Path(self.path)
        found = _hash(path, self.name)
        if found != self.sha256:
            raise RegistryError(
                f"model {self.name!r}: {path} has changed since {self.updated_at}: SHA-256 "
                f"{found[:12]}..., registered {self.sha256[:12]}...; `remontoir bench models "
                f"update {self.name} --path {path}` takes the new one"
            )
        return path


class Registry:
    """The models of a database. Instants are ISO 8601 texts that the caller gives."""

    def __init__(self, database: ResultsDatabase) -> None:
        self._database = database

    def register(
        self, name: str, path: Path, *, now: str, shapes: Mapping[str, Any] = {}, **texts: str
    ) -> RegisteredModel:
        """Raises RegistryError for a name that is taken, and a file that is not there."""
        if not _NAME.fullmatch(name):
            raise RegistryError(
                f"{name!r} is no name: 1 to 100 letters, digits, '.', '_', '-', a letter or digit "
                "first"
            )
        if self.find(name) is not None:
            raise RegistryError(f"model {name!r} is registered already: update or delete it")
        model = RegisteredModel(
            name=name,
            path=str(path.resolve()),
            sha256=_hash(path, name),
            size_bytes=path.stat().st_size,
            shapes=dict(shapes),
            registered_at=now,
            updated_at=now,
            **texts,
        )
        self._put(model)
        return model

    def update(
        self,
        name: str,
        *,
        now: str,
        path: Path | None = None,
        shapes: Mapping[str, Any] | None = None,
        **texts: str | None,
    ) -> RegisteredModel:
        """Changes what is given. Raises RegistryError."""
        model = self.get(name)
        changes: dict[str, Any] = {key: text for key, text in texts.items() if text is not None}
        if path is not None:
            changes |= {
                "path": str(path.resolve()),
                "sha256": _hash(path, name),
                "size_bytes": path.stat().st_size,
            }
        if shapes:
            changes["shapes"] = dict(shapes)
        if not changes:
            raise RegistryError(f"model {name!r}: nothing to change was given")
        model = msgspec.structs.replace(model, **changes, updated_at=now)
        self._put(model)
        return model

    def delete(self, name: str) -> None:
        """The entry alone; the file stays. Raises RegistryError."""
        self.get(name)
        self._database.delete_model(name)

    def find(self, name: str) -> RegisteredModel | None:
        line = self._database.model_line(name)
        return None if line is None else msgspec.json.decode(line, type=RegisteredModel)

    def get(self, name: str) -> RegisteredModel:
        """Raises RegistryError, naming the models that there are."""
        model = self.find(name)
        if model is None:
            names = ", ".join(model.name for model in self.search("")) or "none"
            raise RegistryError(
                f"no model {name!r} in the registry of {self._database.name}; there are {names}"
            )
        return model

    def search(self, words: str) -> list[RegisteredModel]:
        """Models that have every word in one of their texts, by name; all for no word."""
        wanted = words.lower().split()
        models = [
            msgspec.json.decode(line, type=RegisteredModel) for line in self._database.model_lines()
        ]
        return [
            model
            for model in models
            if all(
                any(word in text.lower() for text in (model.name, model.path, *_texts(model)))
                for word in wanted
            )
        ]

    def _put(self, model: RegisteredModel) -> None:
        self._database.put_model(model.name, msgspec.json.encode(model).decode())


def _texts(model: RegisteredModel) -> list[str]:
    return [getattr(model, field) for field in TEXTS]


def _hash(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RegistryError(f"model {name!r}: {path}: {error.strerror}") from error
