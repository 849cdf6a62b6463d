"""What the operator decides about rights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from peili.mirror.errors import ConfigError
from peili.mirror.rights.coverage import Coverage

DENY, REMEMBERED = "deny", "remembered"
OUTAGES = (DENY, REMEMBERED)
"""The values of `PullRights.outage`."""
_LONGEST = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class PullRights:
    """Whose images are given only to those who may pull them from the registry.

    Args:
        authorize: The covered repositories: registries such as ``registry.corp``, or repositories such as
            ``ghcr.io/acme/*``. ``*`` stands for any characters.
        ttl: Seconds for which it is remembered that a token may read something.
        basic: Whether a user and a password are passed on to registries that take no tokens. They are not kept.
        outage: What happens while the registry is down: it does not answer a request without rights in time, or with an
            error of its own (5xx). ``deny``: the runtime is sent there, as without peili. ``remembered``: this host
            serves what anybody on it was granted within `grace`, by repository and digest.
        grace: See `outage`; seconds. It is kept in memory only: after a restart, nothing has been granted.

    Attributes:
        coverage: The covered repositories.

    Raises:
        ConfigError: A value is wrong; the error names the key of the configuration.
    """

    authorize: Sequence[str] = ()
    ttl: float = 300.0
    basic: bool = True
    outage: str = DENY
    grace: float = 86400.0
    coverage: Coverage = field(init=False, repr=False, compare=False)

    @property
    def serves_in_outage(self) -> bool:
        """Whether what was granted before is served while the registry does not answer."""
        return self.outage == REMEMBERED

    def __post_init__(self) -> None:
        object.__setattr__(self, "coverage", Coverage(self.authorize))
        for key, value in (("authorize_ttl", self.ttl), ("authorize_grace", self.grace)):
            if not (math.isfinite(value) and 0 < value <= _LONGEST):
                raise ConfigError(key, f"seconds, above zero, not {value!r}")
        if self.outage not in OUTAGES:
            raise ConfigError("authorize_outage", f"{' or '.join(OUTAGES)}, not {self.outage!r}")
