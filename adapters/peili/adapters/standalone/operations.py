"""Requests of the command to the running peili of this host, at its address for operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import httpx

from peili.adapters.standalone.config import Config
from peili.mirror import ConfigError, PeiliError

_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared, not listened on
_TIMEOUT = 5.0


def ops_url(config: Config) -> str:
    """Return the URL at which this host reaches status, metrics and the page of the peili that `config` describes."""
    host, _, port = (config.ops or config.local.listen)[0].rpartition(":")
    return f"http://{_LOOPBACK.get(host, host)}:{port}"


def fetch(url: str, path: str, parameters: Mapping[str, str] | None = None, *, timeout: float = _TIMEOUT) -> Any:
    """Return the JSON document at `path` of the running peili.

    Args:
        url: See `ops_url`.
        path: The path.
        parameters: The query.
        timeout: How many seconds the answer may take.

    Raises:
        PeiliError: No peili answers, or it refuses. The message says what to do.
        ConfigError: peili calls a parameter wrong; the key is its name.
    """
    try:
        answer = httpx.get(url + path, params=parameters, timeout=timeout, trust_env=False)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise PeiliError(
            f"no peili answers at {url}: {reason}; is `peili serve` running, and with this configuration?"
        ) from error
    if answer.headers.get("content-type", "").startswith("application/json"):
        document = answer.json()
        if answer.status_code == 200:
            return document
        refusal = cast("dict[str, Any]", document).get("error") if isinstance(document, dict) else None
        if isinstance(refusal, str):
            if answer.status_code == 400:
                raise ConfigError(", ".join(parameters or ()).upper(), refusal)
            raise PeiliError(refusal)
    text = " ".join(answer.text[:200].split())
    raise PeiliError(
        f"{url}{path} answers {answer.status_code}: {text or 'without a text'}; is it the address of a peili?"
    )
