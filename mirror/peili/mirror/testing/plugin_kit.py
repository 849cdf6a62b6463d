"""Checks what `Plugin` promises; its promises are part of every other kit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from peili.mirror.errors import ConfigError
from peili.mirror.plugins.interfaces import Plugin
from peili.mirror.testing.promises import (
    ConformanceError,
    eventually,
    expect,
    expect_cancellable,
    expect_cheap,
    expect_type,
)

READY = "ready is true or false, and cheap"
ENTERING = "entering and leaving can be cancelled, and done again"
SHARING = "entered a second time meanwhile, it raises RuntimeError, or serves both"
TAKES_OPTIONS = "from_config takes options that are right, without an event loop"
REFUSES_OPTIONS = "from_config raises ConfigError for an unknown option, with its name"


async def ready(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `READY`, before `enter`, inside and after."""

    def told() -> None:
        expect_type(plugin.ready(), bool)

    await expect_cheap(told)
    async with enter():
        await expect_cheap(told)
    await expect_cheap(told)


async def entering(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `ENTERING`."""

    async def through() -> None:
        async with enter():
            pass

    await expect_cancellable(through)
    async with enter():
        await eventually(plugin.ready)


async def sharing(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `SHARING`, as far as `ready` tells."""
    async with enter():
        await eventually(plugin.ready)
        with suppress(RuntimeError):
            async with enter():
                pass
        expect(plugin.ready(), "once the second was left, it was ready for the first no longer")


def check_options(plugin: type[Plugin], options: Mapping[str, Any]) -> None:
    """Options that are right are taken; one that nobody knows is refused by name. Raises ConformanceError."""
    try:
        with ThreadPoolExecutor(1) as thread:  # where no loop runs, even when this is called on one
            thread.submit(plugin.from_config, options).result()
    except Exception as error:
        raise ConformanceError(TAKES_OPTIONS, f"{error!r} was raised") from error
    try:
        plugin.from_config({**options, "no-such-option": True})
    except ConfigError as error:
        if error.key == "no-such-option":
            return
        raise ConformanceError(REFUSES_OPTIONS, f"it named {error.key!r}") from error
    except Exception as error:
        raise ConformanceError(REFUSES_OPTIONS, f"{error!r} was raised") from error
    raise ConformanceError(REFUSES_OPTIONS, "it was taken")
