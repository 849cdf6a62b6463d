"""What a registry demands before it answers: the WWW-Authenticate header (RFC 9110, 11.6.1). No I/O.

A token server is named by a challenge of the scheme Bearer, with the parameters ``realm``, ``service`` and ``scope``
(the token specification of Docker's registry, which all registries follow).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[ \t,]*({_WORD})(?:[ \t]+|(?=,)|$)")
_TOKEN68 = re.compile(r"([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_PARAMETER = re.compile(rf'[ \t,]*({_WORD})[ \t]*=[ \t]*(?:({_WORD})|"((?:[^"\\]|\\.)*)")[ \t]*(?=,|$)')
_ESCAPED = re.compile(r"\\(.)")
_UNSAFE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
"""Characters that a header must not have."""
_LONGEST = 8192
"""Characters of a header that are read. A longer one is not a challenge that a runtime can answer."""
_BEARER, _BASIC = "Bearer", "Basic"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge, such as ``Bearer realm="https://auth.example/token",service="registry.example"``.

    Attributes:
        scheme: The scheme; ``Bearer`` and ``Basic`` have this spelling.
        parameters: The parameters. Their names are in lower case.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def is_basic(self) -> bool:
        """Whether the client is asked for its user and password, and not for a token."""
        return self.scheme == _BASIC

    @property
    def token_url(self) -> str:
        """Where a token is asked for that is for no repository. Empty if the challenge does not say it."""
        realm, service = (self.parameters.get(name, "") for name in ("realm", "service"))
        return f"{realm}{'&' if '?' in realm else '?'}service={quote(service, safe='')}" if realm else ""

    def for_repository(self, repository: str) -> Challenge:
        """Return the challenge to read `repository`, from one that the registry sent for anything."""
        if self.is_basic:
            return self
        kept = {name: value for name, value in self.parameters.items() if name in {"realm", "service"}}
        return Challenge(self.scheme, {**kept, "scope": f"repository:{repository}:pull"})

    def __str__(self) -> str:
        values = (f'{name}="{_ESCAPE.sub(_escape, value)}"' for name, value in self.parameters.items())
        return f"{self.scheme} {','.join(values)}" if self.parameters else self.scheme


_ESCAPE = re.compile(r'["\\]')


def _escape(found: re.Match[str]) -> str:
    return "\\" + found[0]


def find_challenge(headers: Iterable[str]) -> Challenge | None:
    """Return the challenge that a runtime can answer: the first of Bearer, else the first of Basic; else None.

    Args:
        headers: The values of all WWW-Authenticate headers of a response. Malformed ones are ignored.
    """
    found = [each for header in headers for each in parse_challenges(header)]
    bearers = (each for each in found if each.scheme == _BEARER and "realm" in each.parameters)
    return next(bearers, None) or next((each for each in found if each.is_basic), None)


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges of one WWW-Authenticate header, up to the first place that is malformed."""
    if len(header) > _LONGEST or _UNSAFE.search(header):
        return []
    return list(_challenges(header))


def _challenges(header: str) -> Iterator[Challenge]:
    at = 0
    while (scheme := _SCHEME.match(header, at)) is not None:
        at = scheme.end()
        parameters: dict[str, str] = {}
        token = _TOKEN68.match(header, at)
        if token is not None and not _PARAMETER.match(header, at):
            at = token.end()
        while (parameter := _PARAMETER.match(header, at)) is not None:
            name, plain, quoted = parameter.groups()
            parameters.setdefault(name.lower(), plain if plain is not None else _ESCAPED.sub(r"\1", quoted))
            at = parameter.end()
        yield Challenge(_spelled(scheme[1]), parameters)


def _spelled(scheme: str) -> str:
    return next((each for each in (_BEARER, _BASIC) if each.lower() == scheme.lower()), scheme)
