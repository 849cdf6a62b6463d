"""The part of a hosts.toml that is peili's, between two comments; everything else in the file is somebody else's.

Bytes only: what the part says, and where in the file it may stand, is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from peili.adapters.files.editor import CannotEdit

_BEGIN = re.compile(rb"(?:^|(?<=\A\xef\xbb\xbf))[ \t]*# >>> peili hosts(?: \(made=(\d{1,2})\))?[^\r\n]*", re.MULTILINE)
_END = re.compile(rb"^[ \t]*# <<< peili hosts[^\r\n]*", re.MULTILINE)
_WHOSE = 'put here by "peili hosts apply", taken out by "peili hosts remove"'


@dataclass(frozen=True, slots=True)
class Marked:
    """A file's content, taken apart.

    Attributes:
        base: what is not ours, byte for byte.
        ours: whether there is a part of ours.
        made: how much of the file's path we made: 0 nothing, 1 the file, 2 its directory too, 3 that one's, and so on.
    """

    base: bytes
    ours: bool = False
    made: int = 0

    @property
    def made_whole(self) -> bool:
        """Whether the file is there only because of us. Blank lines that an editor left do not count."""
        return self.made > 0 and not self.base.strip()


def taken_apart(data: bytes) -> Marked:
    """The inverse of `put_in`, whatever was changed around our part or inside of it. Raises CannotEdit."""
    begins, ends = list(_BEGIN.finditer(data)), list(_END.finditer(data))
    if not begins and not ends:
        return Marked(data)
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise CannotEdit("the marks around peili's part are damaged; take it out by hand, with its marks")
    start, end = begins[0].start(), ends[0].end()
    line_end = re.compile(rb"\r?\n").match(data, end)
    if line_end:
        end = line_end.end()
    elif before := re.search(rb"\r?\n\Z", data[:start]):
        start = before.start()  # the file's last line had no end: ours, which follows it, brought one
    return Marked(data[:start] + data[end:], ours=True, made=int(begins[0][1] or 0))


def put_in(base: bytes, at: int, text: str, *, made: int, newline: str) -> bytes:
    """`base` with `text` between marks at offset `at`, which is the begin of a line, or the end of `base`."""
    mark = f"# >>> peili hosts (made={made}) >>> " if made else "# >>> peili hosts >>> "
    part = newline.join([mark + _WHOSE, *text.splitlines(), "# <<< peili hosts <<<"]).encode()
    line_end = newline.encode()
    if at == len(base) and base and not base.endswith(b"\n"):
        return base + line_end + part
    return base[:at] + part + line_end + base[at:]
