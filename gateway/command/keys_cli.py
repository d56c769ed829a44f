"""`remontoir keys`: makes the keys that gateway, clients and workers prove themselves with.

Owns the commands and their words. It must never store a key that a person is to keep, which is
printed once, and never overwrite one.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gateway.command.command_error import CommandError

console = Console(highlight=False, soft_wrap=True)

app = typer.Typer(
    name="keys",
    help="Make keys: API keys for clients, CURVE keys for workers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Tenant = Annotated[
    str,
    typer.Option(
        "--tenant", metavar="NAME", help="Whose key it is: its name in the file given as --tenants."
    ),
]
KeysInto = Annotated[
    Path,
    typer.Option("--into", metavar="DIR", help="Where a directory for each side is made."),
]
WorkerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="NAME",
        help="A pair for this worker; may be given several times.",
        show_default="worker",
    ),
]


@app.callback()
def keys() -> None:
    """Make keys: API keys for clients, CURVE keys for workers."""


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
    from gateway.tenants.api_keys import new_key
    from gateway.tenants.tenants_file import TENANT_NAME

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


@app.command("curve")
def curve(into: KeysInto, worker: WorkerNames = None) -> None:
    """Make the keys with which gateway and workers know each other, and encrypt what they say.

    DIR/gateway is the gateway's, DIR/NAME that worker's: copy it to its machine
    over a safe way, it holds the worker's secret. The gateway's pair is kept if
    it is there, so a further worker is made by the same command; a gateway that
    runs reads who may join again on SIGHUP. To shut a worker out, remove
    DIR/gateway/workers/NAME.key.

    \b
    Examples:
      remontoir keys curve --into keys
      remontoir keys curve --into keys --worker rack-1 --worker rack-2
      remontoir serve --models models --worker-bind tcp://0.0.0.0:7000 --curve-keys keys/gateway
      remontoir worker --connect tcp://10.0.0.1:7000 --models models --curve-keys keys/rack-1
    """
    from gateway.workers import curve_keys

    try:
        made = curve_keys.make(into, worker or ["worker"])
    except curve_keys.KeysError as error:
        raise CommandError(str(error)) from error
    console.print("For the gateway:", markup=False)
    console.print(f"  --curve-keys {into / curve_keys.GATEWAY}", style="cyan", markup=False)
    console.print("For each worker, copied to its machine and kept secret there:", markup=False)
    for directory in made:
        console.print(f"  --curve-keys {directory}", style="cyan", markup=False)


CurveGateway = Annotated[
    str | None,
    typer.Option("--curve-gateway", metavar="SECRET", help="CURVE keys of the gateways."),
]
CurveWorker = Annotated[
    str | None,
    typer.Option("--curve-worker", metavar="SECRET", help="CURVE keys of the workers."),
]
TenantsSecret = Annotated[
    str | None,
    typer.Option(
        "--tenants", metavar="SECRET", help="Hashes of API keys: tenants.yaml, for the gateways."
    ),
]
ApiKeysSecret = Annotated[
    str | None,
    typer.Option(
        "--api-keys",
        metavar="SECRET",
        help="The API keys themselves: client.key, operator.key (admin), monitoring.key (metrics).",
    ),
]
ServiceAccount = Annotated[
    Path | None,
    typer.Option(
        "--service-account",
        metavar="DIR",
        help="Where token, namespace and ca.crt are.",
        show_default="where a pod has them",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="Of the Secrets; may be given again."),
]


@app.command("kubernetes")
def kubernetes(
    curve_gateway: CurveGateway = None,
    curve_worker: CurveWorker = None,
    tenants: TenantsSecret = None,
    api_keys: ApiKeysSecret = None,
    label: Labels = None,
    service_account: ServiceAccount = None,
) -> None:
    """Make keys as Secrets of the cluster that this pod is in, unless they are there: what the Helm
    chart's job runs.

    Nothing is printed but their names. Keys that are there are kept, whatever
    else happens, so running it again changes nothing.

    \b
    Example:
      remontoir keys kubernetes --curve-gateway a --curve-worker b --tenants c --api-keys d
    """
    from gateway.command import cluster_keys

    if (curve_gateway is None) != (curve_worker is None):
        raise CommandError("--curve-gateway and --curve-worker belong together.", exit_code=2)
    if (tenants is None) != (api_keys is None):
        raise CommandError("--tenants and --api-keys belong together.", exit_code=2)
    if curve_gateway is None and tenants is None:
        raise CommandError("make which keys? Name Secrets for some.", exit_code=2)
    labels = dict(text.partition("=")[::2] for text in label or ())
    try:
        account = service_account or cluster_keys.SERVICE_ACCOUNT
        with cluster_keys.in_cluster(labels, account) as cluster:
            if curve_gateway is not None and curve_worker is not None:
                is_new = cluster_keys.make_curve(
                    cluster, worker=curve_worker, gateway=curve_gateway
                )
                _tell(is_new, curve_worker, curve_gateway)
            if tenants is not None and api_keys is not None:
                is_new = cluster_keys.make_api_keys(cluster, keys=api_keys, tenants=tenants)
                _tell(is_new, api_keys, tenants)
    except cluster_keys.ClusterError as error:
        raise CommandError(str(error)) from error


def _tell(is_new: bool, *names: str) -> None:
    for name in names:
        console.print(f"secret {name}: {'made' if is_new else 'is there, kept'}", markup=False)
