"""HTTPRoutes by the Gateway API's own types, for `make helm-e2e`.

The types are kubernetes-models' validators, which are made from them, and run by node. They know
kinds, bounds and patterns, and say nothing of fields that they do not know.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e import kubernetes_tools as tools
from tests.e2e.tools import LeftOut, run

MODELS = "@kubernetes-models/gateway-api@2.0.0"
VALIDATOR = "_schemas/IoK8sSigsGatewayApiApisV1HTTPRoute.js"
SCRIPT = """
import { readFileSync } from "node:fs";
const { validate } = await import(process.argv[1]);
const routes = JSON.parse(readFileSync(0, "utf8"));
const said = routes.map((route) => (validate(route) ? [] : validate.errors));
const words = (error) => `${error.instancePath} ${error.keyword}`;
console.log(JSON.stringify(said.map((errors) => errors.map(words))));
"""

Json = dict[str, Any]


def problems(routes: list[Json]) -> list[list[str]]:
    """Of each route: where, and against which rule. Raises LeftOut."""
    told = subprocess.run(
        ["node", "--input-type=module", "--eval", SCRIPT, str(_models() / VALIDATOR)],
        input=json.dumps(routes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout
    found: list[list[str]] = json.loads(told.stdout)
    return found


def _models() -> Path:
    """Where they are, fetched once."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise LeftOut("there is no npm")
    home = tools.tools_directory() / MODELS.replace("/", "-")
    is_whole = home / "whole"
    if not is_whole.exists():
        print(f"kubernetes tools: installing {MODELS}", flush=True)
        try:
            run("npm", "install", "--prefix", home, "--no-audit", "--no-fund", MODELS)
        except subprocess.CalledProcessError as error:
            last = error.stdout.strip().splitlines()[-1]
            raise LeftOut(f"{MODELS} cannot be installed: {last}") from error
        is_whole.touch()
    return home / "node_modules" / MODELS.rpartition("@")[0]
