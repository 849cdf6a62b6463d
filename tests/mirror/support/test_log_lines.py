"""Text from other hosts can neither stretch a log line nor forge one."""

from __future__ import annotations

import io
import logging
from collections.abc import Generator

import pytest
from tests.mirror.doors.in_memory_host import DOORS, client_for, in_memory_host
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Mirror, Peer, Reference, Resolver
from peili.mirror.support.log_lines import LONGEST, LineLogger
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

LONG = "x" * 100_000
ODD = "a\n2026 INFO peili: all is well\r\x1b[2J\u2028\x85\u202eb\ud800"


class Host:
    """The logger of a host agent, with all lines that it wrote."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(funcName)s: %(message)s"))
        self.log = logging.getLogger("agent.of.test_loglines")
        self.log.propagate = False
        self.log.setLevel(logging.DEBUG)
        self.log.handlers[:] = [handler]

    @property
    def lines(self) -> list[str]:
        written = self.stream.getvalue()
        assert written.isprintable() or set(filter(lambda each: not each.isprintable(), written)) <= {"\n"}
        return written.splitlines()


@pytest.fixture
def host() -> Generator[Host]:
    it = Host()
    yield it
    it.log.handlers.clear()
    it.log.setLevel(logging.NOTSET)


def test_a_message_is_one_line_of_bounded_length(host: Host) -> None:
    log = LineLogger(host.log)
    log.warning("%s: cut off: %s", LONG, "no more")
    log.warning("%s", ODD)
    log.warning(LONG)
    log.warning(ODD * 1000)
    log.warning("%(a)s %(a)s", {"a": LONG})
    assert len(host.lines) == 5
    assert all(len(each) < LONGEST + 100 for each in host.lines)
    assert host.lines[0].endswith("(of 100000 characters): cut off: no more")
    assert r"a\n2026 INFO peili: all is well\r\x1b[2J\u2028\x85\u202eb\ud800" in host.lines[1]


def test_a_harmless_message_is_unchanged(host: Host) -> None:
    records = list[logging.LogRecord]()

    class Keeping(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    host.log.addHandler(Keeping())
    LineLogger(host.log).info("%d of %s", 3, "four")
    assert host.lines == ["INFO agent.of.test_loglines test_a_harmless_message_is_unchanged: 3 of four"]
    [record] = records
    assert (record.msg, record.args) == ("%d of %s", (3, "four"))


def test_the_agents_logger_decides_what_is_written(host: Host) -> None:
    log = LineLogger(host.log)
    child = log.getChild("child")
    for level, enabled in ((logging.ERROR, False), (logging.INFO, True)):
        host.log.setLevel(level)
        assert log.isEnabledFor(logging.WARNING) is child.isEnabledFor(logging.WARNING) is enabled
        child.warning("logged at %d", level)
    host.log.addFilter(lambda record: "secret" not in record.getMessage())
    log.warning("a secret")
    assert host.lines == [
        "WARNING agent.of.test_loglines.child test_the_agents_logger_decides_what_is_written: logged at 20"
    ]
    host.log.filters.clear()


def error_with(text: str) -> ValueError:
    """Return an error with a cause."""
    error = ValueError(text)
    error.__cause__ = LookupError(text)
    error.add_note(text)
    return error


def logged(host: Host, error: Exception) -> list[str]:
    """Return the lines that logging it writes."""
    before = len(host.lines)
    LineLogger(host.log).error("failed", exc_info=error)
    return host.lines[before:]


@pytest.mark.parametrize("text", [LONG, ODD, "an end\n", LONG + "\n" + LONG])
def test_the_text_of_an_exception_is_one_line(host: Host, text: str) -> None:
    lines = logged(host, error_with(text))
    assert all(len(each) <= LONGEST for each in lines)
    assert len(lines) == len(logged(host, error_with("nothing odd")))


def test_the_text_of_an_exception_group_is_no_separate_line(host: Host) -> None:
    lines = logged(host, ExceptionGroup(ODD, [error_with(ODD), error_with(LONG)]))
    assert all(len(each) <= LONGEST for each in lines)
    assert not [each for each in lines if each.startswith("2026")]


def test_a_traceback_is_bounded(host: Host) -> None:
    many = [error_with(str(number)) for number in range(1000)]
    for number in range(999):
        many[number].__cause__ = many[number + 1]
    assert len(logged(host, many[0])) < 300


class Failing(MemoryStore, Resolver):
    """Raises errors that repeat the request."""

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        raise LookupError(f"{digest}\n{LONG}")

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        raise LookupError(f"{reference}\n{LONG}")


@pytest.mark.anyio
@pytest.mark.parametrize("door", DOORS)
async def test_no_request_writes_a_long_line(host: Host, door: str) -> None:
    it = Failing()
    mirror = Mirror(it, MemoryRouter(), it, identity=Peer("me", ()), log=host.log)
    named = "/".join(["n" * 100] * 2)
    async with mirror, client_for(getattr(mirror, door)) as client:
        for path in (
            f"/v2/{named}/manifests/{'t' * 128}?ns=registry.example",
            f"/v2/{named}/blobs/sha256:{'0' * 64}?ns={'a.' * 100}example",
            f"/v2/{'x' * 4000}",
            "/v2/x/manifests/%0a%0d%1b",
        ):
            await client.get(path, headers={"User-Agent": "agent" * 2000, "X-Odd": "y" * 10_000})
    assert host.lines
    assert all(len(each) < LONGEST + 100 for each in host.lines)


@pytest.mark.anyio
async def test_a_mirror_logs_to_the_logger_it_was_given(host: Host) -> None:
    async with in_memory_host(log=host.log) as it:
        it.mirror.log.getChild("part").info("is here")
    assert host.lines[-1].startswith("INFO agent.of.test_loglines.part ")
