"""What a plug-in returns is checked. The error names the method, and says what would be right."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from peili.mirror.plugins.checks import answer, check, plain

pytestmark = pytest.mark.anyio


async def count() -> int:
    return 5


async def test_what_is_right_is_returned() -> None:
    check(5, int, "MyStore.size returned")
    assert await answer(count(), int, "MyStore.count") == 5
    assert plain(5, "MyStore.size") == 5


async def test_none_is_right_if_it_is_allowed() -> None:
    async def nothing() -> None:
        return None

    await answer(nothing(), int, "MyStore.count", optional=True)
    with pytest.raises(TypeError, match=r"MyStore\.count returned None, which is no int"):
        await answer(nothing(), int, "MyStore.count")


async def test_an_async_generator_is_no_coroutine_function() -> None:
    async def generate() -> AsyncGenerator[int]:
        yield 5

    generator: Any = generate()
    with pytest.raises(TypeError, match=r"MyStore.count returned .* at once; it must be a coroutine function"):
        await answer(generator, int, "MyStore.count")


def test_a_coroutine_function_is_no_plain_function() -> None:
    with pytest.raises(TypeError, match=r"MyStore.ready is a coroutine function; it must be a plain function \(def\)"):
        _ = plain(count(), "MyStore.ready")
