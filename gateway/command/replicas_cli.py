"""`remontoir replicas`: which replica has which models, and what a change of the list would move.

Owns the command's words and its table. It asks nobody: the list says it all.
"""

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from gateway.command.command_error import CommandError
from gateway.variants.groups_file import GroupsError, members_of, read_groups
from scheduler.shards import (
    Replica,
    ReplicasError,
    names_drawn_for,
    parse_replicas,
    rendezvous_order,
)

app = typer.Typer()
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

# Names that stand in a path as they are, which the chart's routes want.
_ROUTABLE = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")


class Form(StrEnum):
    TABLE = "table"
    JSON = "json"
    ENVOY = "envoy"
    HELM = "helm"


Replicas = Annotated[
    str,
    typer.Option(
        "--replicas",
        metavar="NAME=URL,...",
        envvar="REMONTOIR_REPLICAS",
        help="As gateways and workers have it.",
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option("--models", metavar="DIR", help="Model repository whose models are meant."),
]
Names = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Or these.")]
After = Annotated[
    str | None,
    typer.Option("--after", metavar="NAME=URL,...", help="Another list: what would move?"),
]
Copies = Annotated[
    int,
    typer.Option(
        "--replica-copies",
        min=1,
        envvar="REMONTOIR_REPLICA_COPIES",
        help="Replicas that have a model ready.",
    ),
]
GroupsFile = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        metavar="FILE",
        envvar="REMONTOIR_GROUPS_FILE",
        help="Groups of them, as the gateways have it.",
    ),
]
FormOption = Annotated[
    Form,
    typer.Option(
        "--format",
        help="table; json: {model: [owner, who stands in]}; envoy: routes by x-remontoir-model, "
        "to clusters of the replicas' names, for an Envoy in front; helm: values of the chart, for "
        "HTTPRoutes to each owner.",
    ),
]


@app.command()
def replicas(
    replicas: Replicas,
    names: Names = None,
    models: ModelsDir = None,
    after: After = None,
    copies: Copies = 2,
    groups: GroupsFile = None,
    form: FormOption = Form.TABLE,
) -> None:
    """Show which of several gateways has which models, and what another list would move.

    \b
    Examples:
      remontoir replicas --replicas g0=http://a:8000,g1=http://b:8000 --models demo-models
      remontoir replicas --replicas "$OLD" --after "$NEW" --models demo-models
      remontoir replicas --replicas "$R" --models demo-models --format envoy > routes.json
      remontoir replicas --replicas "$R" --models demo-models --format helm > owners.yaml
    """
    told = _parsed(replicas, "--replicas")
    members = _members(groups)
    drawn = names_drawn_for(members)
    wanted = [*_names(names, models), *members]

    def order(of: Sequence[Replica], name: str) -> tuple[str, ...]:
        return rendezvous_order(of, drawn.get(name, name))

    holders = {name: order(told, name)[:copies] for name in wanted}
    if form is Form.JSON:
        print(json.dumps(holders, indent=2))
        return
    if form is Form.ENVOY:
        print(json.dumps({"routes": envoy_routes(holders)}, indent=2))
        return
    if form is Form.HELM:
        print(yaml.safe_dump({"httpRoute": {"owners": _owners(holders)}}, sort_keys=False), end="")
        return
    table = Table("replica", "weight", "owns", "stands in for", "models")
    for replica in told:
        owned = [name for name, of in holders.items() if of[0] == replica.name]
        spare = sum(replica.name in of[1:] for of in holders.values())
        shown = ", ".join(owned[:6]) + (" ..." if len(owned) > 6 else "")
        table.add_row(replica.name, f"{replica.weight:g}", str(len(owned)), str(spare), shown)
    console.print(table)
    if after is not None:
        later = _parsed(after, "--after")
        moved = [name for name in wanted if order(later, name)[0] != holders[name][0]]
        share = f"{len(moved) / max(1, len(wanted)):.1%}"
        console.print(f"With --after, {len(moved)} of {len(wanted)} models move ({share}).")


def envoy_routes(holders: dict[str, tuple[str, ...]]) -> list[dict[str, object]]:
    """Of a virtual host: by the header of each model, and by its path below /v2; all else goes to
    the cluster `remontoir`, which is any of the replicas.
    """
    routes: list[dict[str, object]] = []
    for model, (owner, *_) in sorted(holders.items()):
        header = {"name": "x-remontoir-model", "string_match": {"exact": model}}
        to_owner = {"cluster": owner}
        routes.append({"match": {"prefix": "/", "headers": [header]}, "route": to_owner})
        path = {"path_separated_prefix": f"/v2/models/{model}"}
        routes.append({"match": path, "route": to_owner})
    return [*routes, {"match": {"prefix": "/"}, "route": {"cluster": "remontoir"}}]


def _owners(holders: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Models by owner, less those whose requests must take the way through any of them."""
    owners: dict[str, list[str]] = {}
    for model, (owner, *_) in sorted(holders.items()):
        if _ROUTABLE.fullmatch(model):
            owners.setdefault(owner, []).append(model)
        else:
            said = f"{model!r} is left out: its name would not stand in a path as it is"
            errors.print(said, markup=False)
    return dict(sorted(owners.items()))


def _parsed(text: str, flag: str) -> Sequence[Replica]:
    try:
        return parse_replicas(text)
    except ReplicasError as error:
        raise CommandError(f"{flag}: {error}", exit_code=2) from error


def _members(file: Path | None) -> dict[str, tuple[str, ...]]:
    try:
        return {} if file is None else members_of(read_groups(file))
    except GroupsError as error:
        raise CommandError(str(error), exit_code=2) from error


def _names(names: list[str] | None, models: Path | None) -> list[str]:
    found = list(names or ())
    if models is not None:
        if not models.is_dir():
            raise CommandError(f"--models {models}: no such directory", exit_code=2)
        found += sorted(p.name for p in models.iterdir() if p.is_dir() and p.name[0] != ".")
    if not found:
        raise CommandError("which models? Give --models DIR, or their names.", exit_code=2)
    return found
