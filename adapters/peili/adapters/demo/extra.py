"""The one import that only the extra ``demo`` brings."""

from __future__ import annotations

import importlib
from typing import Any

from peili.mirror import PeiliError


def require_oras() -> Any:
    """The module `oras.client`. Raises PeiliError that says how to get it."""
    try:
        return importlib.import_module("oras.client")
    except ImportError as error:
        raise PeiliError(f"the demo pulls with oras: pip install 'peili[demo]' ({error})") from error
