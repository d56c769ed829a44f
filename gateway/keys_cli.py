"""`remontoir keys`: makes the keys that gateway, clients and workers prove themselves with.

Owns the commands and their words. It must never store a key that a person is to keep: it is
printed once.
"""

from typing import Annotated

import typer
from rich.console import Console

from gateway.command_error import CommandError

console = Console(highlight=False, soft_wrap=True)

app = typer.Typer(
    name="keys",
    help="Make keys: API keys for clients.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Tenant = Annotated[
    str,
    typer.Option(
        "--tenant", metavar="NAME", help="Whose key it is: its name in the file given as --tenants."
    ),
]


@app.callback()
def keys() -> None:
    """Make keys: API keys for clients."""


@app.command("api")
def api(tenant: Tenant) -> None:
    """Make an API key: print it once, and the line for the tenants file, which has its hash only.

    Nothing is stored. Give the key to the client over a safe way, and put the
    lines into the file that `remontoir serve --tenants FILE` reads; a gateway
    that runs reads it again on SIGHUP. To revoke a key, remove its line. A
    tenant may have several keys, so that one can replace another.

    \b
    Example:
      remontoir keys api --tenant shop
    """
    from gateway.api_keys import new_key
    from gateway.tenants_file import TENANT_NAME

    if not TENANT_NAME.fullmatch(tenant):
        raise CommandError(
            f"--tenant {tenant!r}: a name is 1 to 64 letters, digits, '.', '_' and '-'",
            exit_code=2,
        )
    key = new_key()
    console.print("The key, which is shown this once:\n", style="bold")
    console.print(f"  {key.text}\n", style="cyan", markup=False)
    console.print("For the tenants file:\n", style="bold")
    console.print(
        f'tenants:\n  "{tenant}":\n    keys:\n      - "{key.line}"', style="cyan", markup=False
    )
