"""A headless Chromium for tests, driven by its DevTools protocol over two pipes. It needs no library."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)
_TIME = 60.0


class Browser:
    """One page of a browser.

    Attributes:
        events: The events of the protocol so far, such as errors in the console and requests.
    """

    def __init__(self, reader: asyncio.StreamReader, write: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._reader = reader
        self._write = write
        self._session: str | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def receive(self) -> None:
        """Read messages until the browser ends."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            future = self._answers.pop(message.get("id", -1), None)
            if future is None:
                self.events.append(message)
            elif not future.done():
                future.set_result(message)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = len(self.events) + 1000 * (1 + len(self._answers))
        while number in self._answers:
            number += 1
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = await asyncio.wait_for(future, _TIME)
        assert "error" not in answer, answer
        return cast("dict[str, Any]", answer["result"])

    async def open(self, url: str) -> None:
        """Open a page."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        async with asyncio.timeout(_TIME):
            while not (value := await self.run(condition)):  # noqa: ASYNC110 - the page has no event for it
                await asyncio.sleep(0.05)
        return value

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        common: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def show(self, width: int, scheme: str) -> None:
        """Give the page a width, and the color scheme ``light`` or ``dark``."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def named(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events with this name."""
        return [each["params"] for each in self.events if each.get("method") == method]


@asynccontextmanager
async def browser(directory: Path) -> AsyncGenerator[Browser]:
    """Start a browser that keeps its files in `directory`."""
    assert CHROMIUM is not None
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    flags = [*_FLAGS, f"--user-data-dir={directory}"]
    # The browser reads at descriptor 3 and writes at 4.
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script, "bash", CHROMIUM, *flags),
        pass_fds=(to_browser, from_browser),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(directory)},
        start_new_session=True,
    )
    os.close(to_browser)
    os.close(from_browser)
    reader = asyncio.StreamReader(limit=64 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb")
    )
    page = Browser(reader, write)
    receiving = asyncio.create_task(page.receive())
    try:
        yield page
    finally:
        receiving.cancel()
        with suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
            await receiving
        transport.close()
        os.close(write)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
