"""Requests that are answered with an error, in the JSON and with the codes of the OCI distribution spec ("Error
Codes").
"""

from __future__ import annotations

import json
from collections.abc import Mapping

NAME_INVALID = "NAME_INVALID"
NAME_UNKNOWN = "NAME_UNKNOWN"
DIGEST_INVALID = "DIGEST_INVALID"
MANIFEST_INVALID = "MANIFEST_INVALID"
MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
BLOB_UNKNOWN = "BLOB_UNKNOWN"
SIZE_INVALID = "SIZE_INVALID"
DENIED = "DENIED"
UNSUPPORTED = "UNSUPPORTED"
TOOMANYREQUESTS = "TOOMANYREQUESTS"

BOUNDS = {414: "path_length", 431: "header_count"}
"""Statuses that say that a limit was reached, and which."""


class HTTPError(Exception):
    """The request ends with this answer."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The error's JSON document."""
        return json.dumps({"errors": [{"code": self.code, "message": str(self)}]}).encode()
