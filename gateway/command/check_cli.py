"""`remontoir check`: whether a running gateway does what it is there for.

Owns the command and its words; check.py has what it asks.
"""

import os
from typing import Annotated

import typer
from rich.console import Console

from gateway.command import flags
from gateway.command.command_error import CommandError
from gateway.config import KEY_VARIABLE

console = Console(highlight=False, soft_wrap=True)

CheckedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Which model to ask.",
        show_default="the one with the shortest answer",
    ),
]
CheckJson = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="TEXT", help="What to ask it, as for infer.", show_default="zeros"
    ),
]
CheckSloMs = Annotated[
    float,
    typer.Option("--slo-ms", help="Of the inference: cold weights are loaded within it."),
]


def add_commands(app: typer.Typer) -> None:
    @app.command()
    def check(
        model: CheckedModel = None,
        json: CheckJson = None,
        slo_ms: CheckSloMs = 10_000.0,
        url: flags.Url = flags.DEFAULT_URL,
        ca_cert: flags.CaCert = None,
    ) -> None:
        """Ask a running gateway whether it is live and ready, for one inference, and for one that
        it must refuse. The exit code is 0 if all four went well: `helm test` runs it.

        \b
        Examples:
          remontoir check
          remontoir check --url https://gateway.example:8000 --model magika
        """
        from gateway.command.check import check as ask
        from gateway.command.client import Client, ClientError

        if json is not None and model is None:
            raise CommandError("--json TEXT is for which --model?", exit_code=2)
        try:
            with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
                ask(gateway, console, model=model, json_text=json, slo_ms=slo_ms)
        except ClientError as error:
            raise CommandError(str(error)) from error
