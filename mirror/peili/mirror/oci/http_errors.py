"""Error responses in the JSON format and with the codes of the OCI distribution spec ("Error Codes")."""

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

LIMIT_OF_STATUS = {414: "path_length", 431: "header_count"}
"""For each status that means "a limit was reached": the name of the limit in `Limits`."""


class HTTPError(Exception):
    """Ends a request with an error response.

    Args:
        status: The HTTP status code.
        code: One of the error codes above.
        message: A sentence for people.
        headers: More headers of the response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the JSON document of the response."""
        return json.dumps({"errors": [{"code": self.code, "message": str(self)}]}).encode()
