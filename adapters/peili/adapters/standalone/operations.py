"""Requests of the command to the running peili of this host, at its address for operators."""

from __future__ import annotations

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import httpx

from peili.adapters.standalone.config import Config
from peili.adapters.standalone.listen_addresses import url_on_this_host
from peili.mirror import ConfigError, PeiliError

_TIMEOUT = 5.0


def door_tls(config: Config) -> ssl.SSLContext | None:
    """Return how a client on this host reaches a local door with TLS, as hosts.toml says it to containerd.

    Returns:
        None if the door has no TLS.

    Raises:
        ConfigError: A file of the section ``[hosts]`` can't be used.
    """
    if config.local.cert is None:
        return None
    context, hosts, key = ssl.create_default_context(), config.hosts, "ca"
    try:
        if hosts.ca is not None:
            context.load_verify_locations(hosts.ca)
        key = "client_cert"
        if hosts.client_cert is not None:
            context.load_cert_chain(hosts.client_cert, hosts.client_key)
    except OSError as error:
        raise ConfigError(f"hosts.{key}", f"a PEM file that can be used: {error}") from error
    return context


class RunningPeili:
    """The running peili of this host, at its address for operators.

    Args:
        url: The base URL.
        tls: How to reach an https URL. None means with the system's certificate authorities.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._tls = tls

    @classmethod
    def of(cls, config: Config) -> RunningPeili:
        """Return the peili that `config` describes. Raises ConfigError; see `door_tls`."""
        tls = None if config.ops else door_tls(config)
        return cls(url_on_this_host((config.ops or config.local.listen)[0], has_tls=tls is not None), tls)

    def fetch(self, path: str, parameters: Mapping[str, str] | None = None, *, timeout: float = _TIMEOUT) -> Any:
        """Return the JSON document at `path`.

        Args:
            path: The path.
            parameters: The query.
            timeout: How many seconds the answer may take.

        Raises:
            PeiliError: No peili answers, or it refuses. The message says what to do.
            ConfigError: peili calls a parameter wrong; the key is its name.
        """
        verify: ssl.SSLContext | bool = True if self._tls is None else self._tls
        if self.url.startswith("http:"):
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: the authorities take long to load
        try:
            answer = httpx.get(self.url + path, params=parameters, timeout=timeout, trust_env=False, verify=verify)
        except UnicodeError as error:  # the host is no name, or a parameter is not UTF-8
            raise PeiliError(f"{self.url} can't be asked: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            hint = "is `peili serve` running, and with this configuration?"
            if "[SSL" in reason or (self._tls is not None and not isinstance(error, httpx.ConnectError)):
                hint = "set hosts.ca, and hosts.client_cert if local.client_ca is set"
            raise PeiliError(f"no peili answers at {self.url}: {reason}; {hint}") from error
        if answer.headers.get("content-type", "").startswith("application/json"):
            with self.understanding(path):
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
            f"{self.url}{path} answers {answer.status_code}: {text or 'without a text'}; is it the address of a peili?"
        )

    @contextmanager
    def understanding(self, path: str) -> Generator[None]:
        """Raise PeiliError if the block can't use the answer at `path`: another program, or a peili of another version.

        Programs answer anything, so the block does not check each value.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"{self.url}{path} answers something that this version of peili does not understand"
            raise PeiliError(f"{what}; is it the address of a peili, and does it have the same version?") from error
