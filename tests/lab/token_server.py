"""A token server, as registries have them: it issues tokens to users for what they may do with repositories.

The protocol is https://distribution.github.io/distribution/spec/auth/. The server runs in threads of the test's
process, and listens on a node of the laboratory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socketserver
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from tests.lab.authentication import Credentials
from tests.lab.network import TOKEN_PORT, Node

_SERVICE = "registry of the laboratory"
_ISSUER = "token server of the laboratory"

EXPIRED = -120
"""A lifetime in seconds with which docker-registry takes a token as expired: it allows clocks to differ by 60 s."""


@dataclass(frozen=True, slots=True)
class User:
    """A user of the token server.

    Attributes:
        password: The password.
        repositories: Glob patterns of the repositories from which the user may pull.
    """

    password: str
    repositories: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was issued.

    Attributes:
        user: Who got it; None if it was an anonymous request.
        asked: The scopes that were asked for, such as ``repository:team/app:pull``.
        granted: Those of them for which the token is good for anything.
        lifetime: The seconds for which it is valid.
        token: The token itself.
    """

    user: str | None
    asked: tuple[str, ...]
    granted: tuple[str, ...]
    lifetime: int
    token: str


class TokenServer:
    """A token server on a node, and the authentication of each registry that trusts it. See `Authentication`.

    A wrong password gets 401. A scope without rights is left out of the token, as Docker Hub does it; the registry then
    answers 401.

    Args:
        node: The node on which it listens.
        directory: A new directory for its certificate.
        users: The users by name.
        public: Glob patterns of the repositories from which everyone may pull, also without a user.

    Attributes:
        users: The users by name. A test may change them.
        lifetime: The seconds for which the next tokens are valid. It may be `EXPIRED`.
        next_lifetimes: The lifetimes of the very next tokens, instead of `lifetime`; each is used once.
        issued: All tokens that were issued, oldest first.
        refused: The number of requests with a wrong user or password.
    """

    def __init__(
        self, node: Node, directory: Path, *, users: Mapping[str, User] | None = None, public: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True)
        self.publisher = Credentials("publisher", secrets.token_hex(8))
        self.users = dict(users or {})
        self.lifetime = 300
        self.next_lifetimes: list[int] = []
        self.issued: list[Issued] = []
        self.refused = 0
        self._node = node
        self._public = public
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._certificate = directory / "token-server.pem"
        self._certificate.write_bytes(_make_certificate(self._key))
        self._server: _Server | None = None

    @property
    def realm(self) -> str:
        """The URL of the server, which challenges name."""
        return f"http://{self._node.address}:{self._node.port(TOKEN_PORT)}/token"

    @property
    def settings(self) -> str:
        """See `Authentication`."""
        values = {
            "realm": self.realm,
            "service": _SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self._certificate),
        }
        return json.dumps({"token": values})  # which is YAML, too

    def start(self) -> None:
        """Start the server, unless it runs."""
        if self._server is None:
            self._server = _Server(self, self._node)

    def stop(self) -> None:
        """Stop the server, if it runs. The node then refuses connections. Tokens stay valid."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def issue(self, credentials: Credentials | None, scopes: Sequence[str]) -> Issued | None:
        """Issue a token, as a request of that user would. Return None if the user or the password is wrong."""
        if credentials is not None and not self._knows(credentials):
            self.refused += 1
            return None
        user = None if credentials is None else credentials.user
        access = [each for scope in scopes if (each := self._grant(user, scope))["actions"]]
        granted = tuple(f"{each['type']}:{each['name']}:{','.join(each['actions'])}" for each in access)
        lifetime = self.next_lifetimes.pop(0) if self.next_lifetimes else self.lifetime
        issued = Issued(user, tuple(scopes), granted, lifetime, self._sign(user, access, lifetime))
        self.issued.append(issued)
        return issued

    def _knows(self, credentials: Credentials) -> bool:
        user = self.users.get(credentials.user)
        return credentials == self.publisher or (user is not None and user.password == credentials.password)

    def _grant(self, user: str | None, scope: str) -> dict[str, Any]:
        kind, name, actions = scope.split(":")
        if user == self.publisher.user:
            allowed = {"pull", "push"}
        else:
            patterns = [*self._public, *(self.users[user].repositories if user is not None else ())]
            allowed = {"pull"} if any(fnmatchcase(name, pattern) for pattern in patterns) else set[str]()
        return {"type": kind, "name": name, "actions": [each for each in actions.split(",") if each in allowed]}

    def _sign(self, user: str | None, access: Sequence[Mapping[str, Any]], lifetime: int) -> str:
        """Return a JSON Web Token for that access."""
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "kid": _key_id(self._key)}
        claims = {
            "iss": _ISSUER,
            "sub": user or "",
            "aud": _SERVICE,
            "exp": now + lifetime,
            "nbf": min(now, now + lifetime) - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = ".".join(_encode(json.dumps(each).encode()) for each in (header, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encode(signature)}"


class _Server(socketserver.ThreadingTCPServer):
    """The HTTP server of a token server. It runs from the constructor to `stop`."""

    daemon_threads = True

    def __init__(self, tokens: TokenServer, node: Node) -> None:
        super().__init__((node.address, node.port(TOKEN_PORT)), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = node.listen(node.port(TOKEN_PORT))
        self.tokens = tokens
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request for a token: GET with Basic or without a user, or POST with a form, as OAuth 2 has it."""

    def do_GET(self) -> None:
        values = parse_qs(urlsplit(self.path).query)
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        credentials = None
        if scheme.lower() == "basic":
            credentials = Credentials(*base64.b64decode(encoded).decode().split(":", 1))
        self._answer(credentials, values.get("scope", []))

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form.get("grant_type") != ["password"]:
            self._send(400, {"error": "unsupported_grant_type"})
            return
        self._answer(Credentials(form["username"][0], form["password"][0]), form.get("scope", []))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Write no log."""

    def _answer(self, credentials: Credentials | None, scopes: Iterable[str]) -> None:
        tokens = cast("_Server", self.server).tokens
        issued = tokens.issue(credentials, [each for scope in scopes for each in scope.split()])
        if issued is None:
            self._send(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]})
            return
        answer: dict[str, Any] = {"token": issued.token, "access_token": issued.token}
        if issued.lifetime > 0:
            answer["expires_in"] = issued.lifetime
        self._send(200, answer)

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _make_certificate(key: rsa.RSAPrivateKey) -> bytes:
    """Return a certificate that `key` has signed itself, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _key_id(key: rsa.RSAPrivateKey) -> str:
    """Return the name under which docker-registry knows the key of the certificate."""
    encoded = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(encoded).digest()[:30]).decode()
    return ":".join(text[start : start + 4] for start in range(0, len(text), 4))


def _encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()
