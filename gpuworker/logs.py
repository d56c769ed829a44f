"""The log of a worker's process, in the forms of the gateway's (observability/logs.py).

It owns what each line of it says of the process. structlog is not needed for the `pretty` form: a
worker also runs in environments that were made by hand for its GPU.
"""

import logging
import os
import sys
from typing import Any

import msgspec

FORMATS = ("pretty", "json")
PLAIN = "%(asctime)s %(name)s %(levelname)s %(message)s"


class LogError(ValueError):
    """JSON without structlog: one line."""


def start_logging(level: str, form: str, *, worker: str | None = None) -> None:
    """To stderr. `worker` is the name that its operator gave it. Raises LogError."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form, worker=worker, has_colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def formatter(form: str, *, worker: str | None, has_colors: bool = False) -> logging.Formatter:
    try:
        import structlog
    except ImportError:
        if form == "json":
            raise LogError("--log-format json needs structlog: pip install structlog") from None
        return logging.Formatter(PLAIN)

    def process(_logger: object, _method: str, fields: dict[str, Any]) -> dict[str, Any]:
        named = {} if worker is None else {"worker": worker}
        return {**fields, "process": "gpuworker", **named, "pid": os.getpid()}

    before = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=form == "json"),
    ]
    after: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        before.append(structlog.stdlib.ExtraAdder())
        after += [
            process,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    else:
        # Not the traceback that shows variables: they are clients' tensors, here.
        plain = structlog.dev.plain_traceback
        after.append(structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=plain))
    made: logging.Formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before, processors=after
    )
    return made


def _json(fields: object, **_options: object) -> str:
    return msgspec.json.encode(fields, enc_hook=repr).decode()
