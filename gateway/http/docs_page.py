"""The written contract as the gateway shows it: `/openapi.json`, and `/docs` to read and to try it.

It owns the page, and that a browser loads nothing of it from another host: FastAPI's own takes its
script from one. Swagger UI comes from the package fastapi-swagger, files of which are served here.
"""

import base64
import functools
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml
from fastapi import FastAPI, Response
from starlette.responses import FileResponse

DOCS_PATH = "/docs"
CONTRACT_PATH = "/openapi.json"
# Of the package; a name of its own for each, so that a browser may keep them for a day.
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
# All and only paths of this page: they show nothing but the contract, which is no secret.
PATHS = frozenset({DOCS_PATH, CONTRACT_PATH, *(f"{DOCS_PATH}/{name}" for name in ASSETS)})

_SCRIPT = f"""
SwaggerUIBundle({{
  url: "{CONTRACT_PATH}",
  dom_id: "#contract",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  validatorUrl: null
}});
"""
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Remontoir: the HTTP contract</title>
<link rel="icon" type="image/png" href="{DOCS_PATH}/favicon-32x32.png">
<link rel="stylesheet" href="{DOCS_PATH}/swagger-ui.css">
</head>
<body>
<div id="contract"></div>
<script src="{DOCS_PATH}/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_PAGE_HEADERS = {
    # So the browser sees to it that nothing is loaded from elsewhere, and nothing else runs.
    "content-security-policy": (
        f"default-src 'none'; script-src 'self' 'sha256-{_SCRIPT_HASH}'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def read_contract() -> dict[str, Any]:
    """openapi/openapi.yaml, the source of truth of the HTTP contract."""
    text = resources.files("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8")
    # libyaml where it is there: Python's own takes half a second, in which nobody is answered
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    contract: dict[str, Any] = yaml.load(text, loader)
    return contract


@functools.cache
def contract_json() -> bytes:
    """The same as JSON, made once: a tenth of a second."""
    return msgspec.json.encode(read_contract())


def add_docs_routes(app: FastAPI) -> None:
    """Registers them."""

    @app.get(CONTRACT_PATH)
    async def openapi() -> Response:
        return Response(contract_json(), media_type="application/json")

    @app.get(DOCS_PATH)
    async def docs() -> Response:
        return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)

    def add_asset(name: str, media_type: str) -> None:
        @app.get(f"{DOCS_PATH}/{name}")
        async def asset() -> Response:
            # not before somebody asks: the package imports more than the gateway needs
            directory = Path(str(resources.files("fastapi_swagger") / "resources"))
            headers = {"cache-control": "max-age=86400", **_PAGE_HEADERS}
            return FileResponse(directory / name, media_type=media_type, headers=headers)

    for name, media_type in ASSETS.items():
        add_asset(name, media_type)
