"""The log of this process: which lines, and in what form they go to stderr.

It owns the two forms: `pretty` for a person, `json` for a machine, one object a line. Modules log
through the standard library, with figures as `extra`, and know nothing of it. It must never hold a
key or a request's data: nothing that logs is given either. gpuworker/logs.py is its like.
"""

import logging
import os
import sys
from typing import Any

import msgspec

from gateway.config import LogFormat

LOG_LEVELS = ("debug", "info", "warning", "error")
PLAIN = "%(asctime)s %(name)s %(levelname)s %(message)s"


class LogError(ValueError):
    """A log that there cannot be: one line."""


def start_logging(level: str, form: LogFormat) -> None:
    """Raises LogError for a level that there is not, or for JSON without structlog."""
    if level not in LOG_LEVELS:
        raise LogError(f"--log-level {level}: not one of {', '.join(LOG_LEVELS)}")
    handler = logging.StreamHandler()  # stderr
    handler.setFormatter(formatter(form, has_colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def formatter(form: LogFormat, *, has_colors: bool = False) -> logging.Formatter:
    try:
        import structlog
    except ImportError:  # an environment older than its requirements still starts
        if form == "json":
            raise LogError(
                "--log-format json needs structlog, which is not installed (make install)"
            ) from None
        return logging.Formatter(PLAIN)
    before = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=form == "json"),
    ]
    after: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        before.append(structlog.stdlib.ExtraAdder())
        after += [
            _process,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    else:
        # Not the traceback that shows variables: they are keys and requests, here.
        plain = structlog.dev.plain_traceback
        after.append(structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=plain))
    made: logging.Formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before, processors=after
    )
    return made


def _process(_logger: object, _method: str, fields: dict[str, Any]) -> dict[str, Any]:
    fields.pop("color_message", None)  # uvicorn's, for terminals
    return {**fields, "process": "gateway", "pid": os.getpid()}


def _json(fields: object, **_options: object) -> str:
    return msgspec.json.encode(fields, enc_hook=repr).decode()
