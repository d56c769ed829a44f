"""What models a gateway has, asked over HTTP before the load begins.

Owns the words when it cannot be asked: a load test against nobody must end at once, and say why.
"""

import ssl
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_S = 10.0


class NoModels(Exception):
    """One line: which URL, and what came back."""


def models_there(host: str, *, api_key: str | None, ca_cert: Path | None) -> list[dict[str, Any]]:
    """`models` of GET /models. Raises NoModels."""
    url = f"{host.rstrip('/')}/models"
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        trust = ssl.create_default_context(cafile=str(ca_cert)) if ca_cert else False
        # A proxy in the environment is meant for the world outside, not for this server.
        answer = httpx.get(url, headers=headers, timeout=TIMEOUT_S, verify=trust, trust_env=False)
        answer.raise_for_status()
        models: list[dict[str, Any]] = answer.json()["models"]
    except OSError as error:  # of the certificate's file
        raise NoModels(f"--ca-cert {ca_cert}: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoModels(
            f"{url} cannot be asked: {error}. Start a gateway with `make serve`, or name another "
            "with --host"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoModels(f"{url} does not answer as a gateway does: {error!r}") from error
    return models
