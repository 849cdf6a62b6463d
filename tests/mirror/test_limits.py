"""`Limits`: which values are valid."""

from __future__ import annotations

from typing import Any

import pytest

from peili.mirror import ConfigError, Limits


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 1e300, True, "5"])
def test_a_limit_is_a_number_above_zero_that_makes_sense(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^reader_timeout: a number above zero, not "):
        Limits(reader_timeout=value)
