"""`remontoir reload` and `remontoir rollback`: another version of a model, in a running gateway.

Owns the two commands and their words.
"""

import os
from typing import Literal

import typer
from rich.console import Console

from gateway.command import flags
from gateway.command.command_error import CommandError
from gateway.config import KEY_VARIABLE

console = Console(highlight=False, soft_wrap=True)

_WORDS = {
    "reloaded": "version {version} serves (before: {previous})",
    "rolled_back": "version {version} serves again (before: {previous})",
    "unchanged": "version {version} serves, and is what the repository has",
}


def add_commands(app: typer.Typer) -> None:
    @app.command()
    def reload(
        model: flags.ModelName, url: flags.Url = flags.DEFAULT_URL, ca_cert: flags.CaCert = None
    ) -> None:
        """Have the highest version in the model directory serve, or a model that is new.

        The gateway compiles it beside what serves, has it loaded and tried, and
        switches; until then, and if any of it fails, nothing changes. With tenants,
        the key's needs `admin: true`.

        \b
        Example:
          remontoir reload resnet50     # after: mv models/.resnet50-2 models/resnet50/2
        """
        _change("reload", model, url, ca_cert)

    @app.command()
    def rollback(
        model: flags.ModelName, url: flags.Url = flags.DEFAULT_URL, ca_cert: flags.CaCert = None
    ) -> None:
        """Have the version before serve again, at once: it was kept (serve --keep-versions).

        \b
        Example:
          remontoir rollback resnet50
        """
        _change("rollback", model, url, ca_cert)


def _change(
    what: Literal["reload", "rollback"], model: str, url: str, ca_cert: flags.CaCert
) -> None:
    from gateway.command.client import Client, ClientError

    try:
        with Client(url, api_key=os.environ.get(KEY_VARIABLE), ca_cert=ca_cert) as gateway:
            told = gateway.change_version(what, model)
    except ClientError as error:
        raise CommandError(str(error)) from error
    words = _WORDS[told["outcome"]].format(
        version=told["version"], previous=told["previous_version"] or "none"
    )
    kept = ", ".join(told["kept_versions"])
    console.print(f"{model}: {words}, after {told['took_ms'] / 1000:.1f} s", markup=False)
    if kept:
        console.print(f"kept, to go back to: {kept}", markup=False)
