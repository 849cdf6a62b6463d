"""The sections ``[local]`` and ``[peer]`` of the configuration: where the doors listen, and who may use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from peili.mirror import ConfigError, LocalCertificate, PeerCertificates, PeerKeys, PeerTLS


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """The section ``[local]``.

    Attributes:
        listen: The addresses of the local door.
        allow_clients: Networks whose hosts may use it, in addition to this host.
        allow_hosts: Names of the door, in addition to its addresses and ``localhost``. ``*`` allows every name.
        cert: The certificate of the door, and its chain. With it, the door uses TLS.
        key: The private key of the certificate. Nobody but its owner may read it.
        client_ca: The authority of the certificates that clients must show.
        sources: Where each key was set.
    """

    listen: tuple[str, ...]
    allow_clients: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def build_ssl(self) -> LocalCertificate | None:
        """Return the certificate of the door; None for plain HTTP. Raises ConfigError."""
        try:
            return self._build_ssl()
        except ConfigError as error:
            source = self.sources.get(error.key, self.sources.get("cert", self.sources.get("key")))  # one is missing
            raise error.within("local", source=source) from error

    def _build_ssl(self) -> LocalCertificate | None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("key" if self.key is None else "cert", "both cert and key, or neither")
        if self.cert is None or self.key is None:
            if self.client_ca is not None:
                raise ConfigError("client_ca", "only together with cert and key")
            return None
        return LocalCertificate(self.cert, self.key, self.client_ca)

    @property
    def is_only_for_this_host(self) -> bool:
        """Whether the door listens on other addresses than loopback, but refuses all other hosts."""
        hosts = [each.rpartition(":")[0].strip("[]") for each in self.listen]
        return not self.allow_clients and any(each != "localhost" and not _is_loopback(each) for each in hosts if each)


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """The table ``peer.tls``. The parameters of `PeerCertificates` have the same names."""

    ca: Path
    cert: Path
    key: Path
    names: tuple[str, ...]
    crl: Path | None = None


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The section ``[peer]``. With an empty `listen` there is no peer door.

    At most one of `insecure`, `shared_key_file` and `tls` is set. Without any, the peer door refuses other hosts.

    Attributes:
        sources: Where each key was set.
    """

    listen: tuple[str, ...]
    advertise: str | None
    insecure: bool
    shared_key_file: Path | None = None
    tls: TLSOptions | None = None
    sources: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def build_tls(self, identity: str) -> PeerTLS | None:
        """Return the TLS between peers for the host `identity`; None for plain HTTP. Raises ConfigError."""
        try:
            if self.tls is not None:
                return PeerCertificates(self.tls.ca, self.tls.cert, self.tls.key, self.tls.names, crl=self.tls.crl)
            return PeerKeys(self.shared_key_file, identity) if self.shared_key_file is not None else None
        except ConfigError as error:
            section, key = ("peer.tls", "tls") if self.tls is not None else ("peer", "shared_key_file")
            raise error.within(section, source=self.sources.get(key)) from error
        except ImportError as error:
            key = "shared_key_file"
            raise ConfigError(f"peer.{key}", str(error), source=self.sources.get(key)) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
