"""For any hosts.toml: `remove` undoes `apply`, a second `apply` changes nothing, and edits by hand remain."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from peili.adapters.containerd import HostsFiles

MIRROR = "http://127.0.0.1:5050"
BOM = b"\xef\xbb\xbf"

_KEYS = st.sampled_from(
    ["server = 'https://s.example'", 'ca = ["a.pem"] # [host."x"]', "x = '''\n[host.y]\n# '''", "later = [\n[1],\n[]]"]
)
_DOTTED = st.sampled_from(["host.'https://d.example'.skip_verify = true", "host.'https://e.example' = { ca = 'x' }"])
_BLANKS_AND_COMMENTS = st.sampled_from(["", "  ", "# comment", "\t# [host.'https://no.example']", "#"])
_TABLES = st.sampled_from(
    [
        "[host]",
        "[host.'https://a.example']\n  capabilities = ['pull']",
        '  [ host . "https://b.example" ] # b\n    override_path = true',
        "[host.'https://a.example'.header]\n  x-token = ['1', '2']",
        "[header]\nx = '1'",
        "[host.'https://c.example']",
        "[[more]]",
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    top = draw(st.lists(_KEYS | _BLANKS_AND_COMMENTS, max_size=5)) + draw(
        st.lists(_DOTTED | _BLANKS_AND_COMMENTS, max_size=2)
    )
    below = draw(st.lists(_TABLES | _BLANKS_AND_COMMENTS, max_size=8))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    text = newline.join([*top, *below]).replace("\r\n", "\n").replace("\n", newline)
    text += draw(st.sampled_from(["", newline, newline * 2]))
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)  # a key or a table is defined twice
    return (draw(st.sampled_from(["", "\ufeff"])) + text).encode()


def host_names(content: bytes) -> list[str]:
    return list(tomllib.loads(content.decode("utf-8-sig")).get("host", {}))


@settings(max_examples=60)
@given(texts(), st.sampled_from([None, "1.6.20", "2.0.0"]))
def test_apply_and_remove(before: bytes, version: str | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "r.example/hosts.toml"
        file.parent.mkdir()
        file.write_bytes(before)
        hosts = HostsFiles(MIRROR, config_path=[name], registries=["r.example"], version=version)
        outcome = hosts.apply()
        after = file.read_bytes()
        if outcome.problems:
            assert (outcome.changes, after) == ((), before)
            return
        assert MIRROR in host_names(after)
        if version == "1.6.20":
            assert host_names(after) == [MIRROR, *host_names(before)]
        assert hosts.show()[0].is_first
        assert hosts.apply().changes == ()
        hosts.remove()
        assert file.read_bytes() == before


@settings(max_examples=60)
@given(texts(), _BLANKS_AND_COMMENTS, st.integers(0, 1000))
@example(b"server = 'https://s.example'\r\n\r\n  ", "", -1)
def test_edits_around_the_section_remain(before: bytes, line: str, which: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "r.example/hosts.toml"
        file.parent.mkdir()
        file.write_bytes(before)
        hosts = HostsFiles(MIRROR, config_path=[name], registries=["r.example"], version="2.0.0")
        assume(not hosts.apply().problems)
        applied = file.read_bytes()
        begin, end = applied.index(b"# >>> peili"), applied.index(b"# <<< peili")
        start = len(BOM) if before.startswith(BOM) else 0
        lines = {start, *(n + 1 for n, byte in enumerate(applied) if byte == 10), len(applied)}
        above = [each for each in sorted(lines) if each <= begin and each <= len(before)]
        below = [each for each in sorted(lines) if each > end]
        offsets = [*above, *below]
        offset = offsets[which % len(offsets)]
        new = f"{line}\n".encode()
        if offset == len(applied) and not applied.endswith(b"\n"):  # the last line gets the same end as the others
            new = (b"\r\n" if b"\r\n" in applied else b"\n") + new
        file.write_bytes(applied[:offset] + new + applied[offset:])
        hosts.remove()
        same = offset if offset <= begin else len(before) - (len(applied) - offset)
        assert file.read_bytes() == before[:same] + new + before[same:]
