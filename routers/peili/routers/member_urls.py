"""What the URLs of all members have in common, for routers that only learn addresses and ports."""

from __future__ import annotations

from dataclasses import dataclass

from peili.mirror import AddressKinds, ConfigError, Options, Peer


@dataclass(frozen=True, slots=True)
class MemberUrls:
    """The parts of the members' URLs that are the same for all.

    Attributes:
        scheme: ``http`` or ``https``.
        path: A path with a slash at its beginning, or empty.
        tls_name: The name that each member's certificate must show.
        dialled: The kinds of addresses that may be dialled.
    """

    scheme: str = "http"
    path: str = ""
    tls_name: str | None = None
    dialled: AddressKinds = AddressKinds.ROUTED

    def url(self, address: str, port: int) -> str:
        """Return the URL of a member's peer door."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{port}{self.path}"


def read_member_urls(options: Options) -> MemberUrls:
    """Read the options ``scheme``, ``path``, ``tls_name`` and ``any_address``. Raises ConfigError."""
    scheme = options.choice("scheme", ("http", "https"), "http")
    path = options.text("path", "", expected="a path such as /peili").rstrip("/")
    tls_name = options.text("tls_name", None)
    try:
        valid = Peer("unnamed", (f"{scheme}://host:1{path}",))
    except ValueError:
        valid = None
    if valid is None or (path and not path.startswith("/")):
        raise options.wrong("path", "a path such as /peili")
    try:
        Peer("unnamed", (), tls_name)
    except ValueError as error:
        raise ConfigError("tls_name", str(error)) from error
    any_address = options.boolean("any_address", False)
    return MemberUrls(scheme, path, tls_name, AddressKinds.ANY if any_address else AddressKinds.ROUTED)
