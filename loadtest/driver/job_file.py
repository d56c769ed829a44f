"""A job's file: read, checked as a whole, and expanded to the measurements it asks for.

Owns variables, repeats and the words of errors, which name the file, the line and the key. What a
job may say is job.py's; the format by example is loadtest/jobs/example.yaml.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import msgspec
import yaml

from loadtest.driver.job import MOST_REPEATS, Job
from loadtest.driver.job_target import AnyTarget, PeerServer, Remontoir
from loadtest.driver.multiples import Multiple, MultipleError, without_multiples
from loadtest.scenario_keys import keys_given_twice, known_keys, no_key, steps_of, value_at
from loadtest.variables import Value, combinations, filled, variables_in
from loadtest.workloads import WorkloadEntry
from loadtest.workloads.entries import Requests

# Of a server: start, ready, the bare loop beside it. Measured here: 4 to 9 s.
START_ESTIMATE_S = 8.0
# Of a measurement: the driver's processes, reading replies. Measured here: 1 to 3 s.
CASE_ESTIMATE_S = 2.0
MOST_CASES = 10_000
MOST_JOB_CHARACTERS = 100  # as a queue has it

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<where>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"contains unknown field `(.*)`")
_Kind = TypeVar("_Kind")


class JobError(ValueError):
    """A job that cannot be run; the message names the file, the line and the key."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. `values` are its variables; `multiples` are the numbers of its workload that
    wait for a measurement. Repeats differ in `repeat` and in the seed.
    """

    job: Job
    values: dict[str, Value] = {}
    multiples: tuple[Multiple, ...] = ()
    repeat: int = 0
    seed: int = 1

    @property
    def name(self) -> str:
        """For a line of output: `rate=50, policy=fifo`."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or "as it is"

    @property
    def config(self) -> tuple[tuple[str, str], ...]:
        """The configuration under the workload, as words: what a leaderboard ranks."""
        job, target = self.job, self.job.target
        words: dict[str, Value] = {"target": str(target.__struct_config__.tag)}
        if isinstance(target, Remontoir):
            words |= {"policy": target.policy, "device": target.device, **target.serve}
        if isinstance(target, PeerServer):
            tuned = target.tuned_for
            settings = "as it comes" if tuned is None else f"tuned for {tuned:g} x execution"
            words |= {"peer": target.peer, "settings": settings}
        else:
            words["protocol"] = job.spoken
        words |= target.labels
        network = job.client.network
        if network != "none":
            words["network"] = network if isinstance(network, str) else "own"
        return tuple((key, str(value)) for key, value in words.items())


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says about its runs, and no single one depends on."""

    job: str
    description: str = ""
    variables: dict[str, tuple[Value, ...] | Value] = {}
    repeats: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        is_short = len(self.job.strip()) > 0 and len(self.job) <= MOST_JOB_CHARACTERS
        if not (is_short and self.job.isprintable()):
            raise ValueError(f"job has 1 to {MOST_JOB_CHARACTERS} printable characters: a name")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise ValueError(f"repeats {self.repeats} is not 1 to {MOST_REPEATS}")
        for variable, values in self.variables.items():
            if values == ():
                raise ValueError(f"variables.{variable} has no values")


class JobFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read and checked. `cases` are in the order in which they are run: all that
    need the same server stand together, repeats next to each other.
    """

    name: str
    description: str
    path: str
    folder: str  # relative paths of models and of workloads are relative to it
    digest: str
    cases: tuple[Case, ...]

    def estimated_s(self) -> float:
        """How long it will take, without running it: seconds."""
        jobs = [case.job for case in self.cases]
        loads_s = sum(
            job.duration_s + job.warm_up_s + job.give_up_s + CASE_ESTIMATE_S for job in jobs
        )
        return loads_s + START_ESTIMATE_S * len(set(map(server_key, jobs)))


def server_key(job: Job) -> bytes:
    """Equal for measurements that one and the same server can be used for."""
    return msgspec.json.encode((job.target, job.models))


def load(path: str | Path) -> JobFile:
    """Read a job and check every one of its cases. Raises JobError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return parse(text, str(path))
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not YAML: byte {error.start} is not UTF-8") from error


def parse(text: str, path: str) -> JobFile:
    """`load` of a text that was read from `path`."""
    return _Reader(text, path).job_file()


def own_file(entry: WorkloadEntry) -> str | None:
    """The path of a workload's file, None where it has none or one of loadtest/data."""
    file: str | None = getattr(entry, "file", None)
    if file is None or isinstance(entry, Requests) or "/" in file:
        return file
    return None


class _Loader(yaml.SafeLoader):
    """It takes 1e3 for a number, as YAML 1.2 does and everybody means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Reader:
    """One file while it is read: its tree, and the lines its keys stand in."""

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._text = text
        try:
            loader = _Loader(text)
            self._node = loader.get_single_node()
            for mistake in keys_given_twice(self._node):
                raise JobError(f"{path}: {mistake}")
            tree = None if self._node is None else loader.construct_document(self._node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = f", line {mark.line + 1}" if mark is not None else ""
            raise JobError(f"{path}{line}: not YAML: {error.problem}") from error
        except yaml.reader.ReaderError as error:
            number = text.count("\n", 0, error.position) + 1
            raise JobError(f"{path}, line {number}: not YAML: {error.reason}") from error
        except yaml.YAMLError as error:
            raise JobError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(tree, dict):
            raise JobError(f"{path}: a job is a mapping of keys, this is {tree!r:.60}")
        self._tree: dict[str, Any] = tree

    def job_file(self) -> JobFile:
        tree = self._tree
        head_keys = _Head.__struct_fields__
        head = self._convert({k: v for k, v in tree.items() if k in head_keys}, _Head)
        body = {str(k): v for k, v in tree.items() if k not in head_keys}
        variables = {
            name: values if isinstance(values, tuple) else (values,)
            for name, values in head.variables.items()
        }
        used = set(variables_in(body))
        for name in variables:
            if name not in used:
                self._refuse(f"variables.{name}", f"no key uses ${{{name}}}")
        cases = list(self._cases(head, body, variables))
        keys = [server_key(case.job) for case in cases]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        cases.sort(key=lambda case: first[server_key(case.job)])
        return JobFile(
            name=head.job,
            description=head.description,
            path=self._path,
            folder=str(Path(self._path).resolve().parent),
            digest=hashlib.sha256(self._text.encode()).hexdigest(),
            cases=tuple(cases),
        )

    def _cases(
        self, head: _Head, body: dict[str, Any], variables: Mapping[str, Sequence[Value]]
    ) -> Iterator[Case]:
        num_cases = head.repeats
        for values in variables.values():
            num_cases *= len(values)
        if num_cases > MOST_CASES:
            self._refuse("variables", f"{num_cases:,} measurements, more than {MOST_CASES:,}")
        for chosen in combinations(variables):
            try:
                plain, multiples = without_multiples(filled(body, chosen, "", self._no_variable))
            except MultipleError as error:
                self._refuse(error.where, str(error))
            job = self._convert(plain, Job)
            for repeat in range(head.repeats):
                yield Case(
                    job=job,
                    values=chosen,
                    multiples=multiples,
                    repeat=repeat,
                    seed=head.seed + repeat,
                )

    def _no_variable(self, where: str, variable: str, text: str) -> NoReturn:
        known = ", ".join(self._tree.get("variables") or ()) or "none"
        self._refuse(where, f"no variable {variable!r} for {text!r}; there are {known}")

    def _convert(self, tree: dict[str, Any], kind: type[_Kind]) -> _Kind:
        try:
            return msgspec.convert(tree, kind)
        except msgspec.ValidationError as error:
            found = _WHERE.match(str(error))
            assert found is not None  # it matches any text
            what, where = found["what"].removeprefix("Object "), found["where"] or ""
            value = value_at(tree, where)
            if unknown := _UNKNOWN.fullmatch(what):
                known = known_keys(kind, tree, where)
                if not where:
                    known = [*_Head.__struct_fields__, *Job.__struct_fields__]
                place = f"{where}.{unknown[1]}".removeprefix(".")
                self._refuse(place, no_key(unknown[1], value[unknown[1]], known))
            if where.endswith(".kind"):
                self._refuse(where, f"{value!r} is none of {_kinds(where)}")
            in_value = f", in {value!r:.200}" if where and not isinstance(value, dict) else ""
            # checks of several fields say which one first: `duration_s 0.0 is not ...`,
            # `models[0]: ...`
            word = what.partition(" ")[0].rstrip(":")
            has_word = isinstance(value, dict) and steps_of(word)[:1] in [[key] for key in value]
            near = f"{where}.{word}".removeprefix(".") if has_word else where
            self._refuse(where, f"{what}{in_value}", line=self._line_of(near))

    def _refuse(self, where: str, what: str, *, line: int | None = None) -> NoReturn:
        line = line or self._line_of(where)
        raise JobError(": ".join(filter(None, (f"{self._path}, line {line}", where, what))))

    def _line_of(self, where: str) -> int:
        """Of a key, or of the nearest one around it that is in the file."""
        node, line = self._node, 1
        for step in steps_of(where):
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == step:
                        line, node = key.start_mark.line + 1, value
                        break
                else:
                    break
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                if step >= len(node.value):
                    break
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                break
        return line


def _kinds(where: str) -> str:
    """What `kind` may be at a path like `workload[0].kind`."""
    structs = get_args(WorkloadEntry) if where.startswith("workload") else get_args(AnyTarget)
    return ", ".join(sorted(str(struct.__struct_config__.tag) for struct in structs))
