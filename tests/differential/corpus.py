"""Unusual hosts directories, as people may have them. They have no expected results, because containerd is the oracle.

In names and contents, ``%P%`` stands for the port of the recording servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.support.trees import Tree

REGISTRY = "r.example"
DOOR = "http://127.0.0.1:%P%"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Case:
    """A hosts directory.

    Attributes:
        tree: Its files.
        registry: The registry from which containerd pulls.
        door: The URL of the local door for `hosts apply`.
        apply: The registries for `hosts apply`; all if empty.
        marked: Whether a file already contains a section with peili's comment lines, which `remove` removes.
    """

    tree: Tree
    registry: str = REGISTRY
    door: str = DOOR
    apply: tuple[str, ...] = ()
    marked: bool = False

    def at(self, port: int) -> Case:
        """Return the case with `port` in place of ``%P%``."""

        def put(text: str) -> str:
            return text.replace("%P%", str(port))

        tree = {
            put(name): content.replace(b"%P%", str(port).encode()) if isinstance(content, bytes) else content
            for name, content in self.tree.items()
        }
        return replace(
            self, tree=tree, registry=put(self.registry), door=put(self.door), apply=(*map(put, self.apply),)
        )


def _file(content: bytes | str, door: str = DOOR, **others: bytes) -> Case:
    """Return a case with the hosts.toml of `REGISTRY`, and with `others`, which are further files next to it."""
    data = content.encode() if isinstance(content, str) else content
    other_files = {f"{REGISTRY}/{name.replace('_', '.')}": each for name, each in others.items()}
    return Case({f"{REGISTRY}/hosts.toml": data, **other_files}, door=door)


A = '[host."http://a.example"]\n  capabilities = ["pull", "resolve"]\n'
B = '[host."http://b.example:5000"]\n'
SERVER = 'server = "http://s.example"\n'
FULL = f"# whose\n{SERVER}\n{A}\n# second\n{B}  skip_verify = true\n"
PEM = b"-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"

ENCODINGS: Mapping[str, Case] = {
    "plain": _file(FULL),
    "a byte-order mark": _file(BOM + FULL.encode()),
    "a byte-order mark and nothing else": _file(BOM),
    "two byte-order marks": _file(BOM + BOM + FULL.encode()),
    "a byte-order mark in the middle": _file(f"{SERVER}\ufeff{A}"),
    "UTF-16": _file(FULL.encode("utf-16")),
    "UTF-16 without a mark": _file(FULL.encode("utf-16-le")),
    "Latin-1 in a comment": _file("# M\xfcller\n".encode("latin-1") + FULL.encode()),
    "Latin-1 in a value": _file(FULL.encode() + b'[host."http://c.example"]\nca = "\xfc"\n'),
    "UTF-8 in a comment": _file("# M\xfcller \u2026\n" + FULL),
    "a surrogate in UTF-8": _file(b"# \xed\xa0\x80\n" + FULL.encode()),
    "CRLF": _file(FULL.replace("\n", "\r\n")),
    "CRLF and LF": _file(f"{SERVER}\r\n{A}\r\n{B}"),
    "CR alone": _file(FULL.replace("\n", "\r")),
    "CR in a comment": _file(f"# a\rb\n{FULL}"),
    "CR at the end": _file(FULL + "\r"),
    "NUL": _file(FULL + "\0"),
    "NUL in a comment": _file("# \0\n" + FULL),
    "NUL in a string": _file(f'x = "\0"\n{FULL}'),
    "a control character in a comment": _file("# \x1b[1m\n" + FULL),
    "DEL in a comment": _file("# \x7f\n" + FULL),
    "a vertical tab": _file(FULL + "\v\n"),
    "a form feed": _file(f"{SERVER}\f\n{A}"),
    "a no-break space": _file(f"{SERVER}\xa0\n{A}"),
    "a line separator in a comment": _file(f"# a\u2028{A}{B}"),
    "an escape character in a literal": _file(f"x = '\x1b'\n{FULL}"),
    "Ctrl-Z at the end": _file(FULL + "\x1a"),
}

SPACES: Mapping[str, Case] = {
    "an empty file": _file(""),
    "a line end": _file("\n"),
    "spaces": _file("  \n\t\n"),
    "a comment": _file("# nothing\n"),
    "a comment without a line end": _file("# nothing"),
    "no line end": _file(FULL.rstrip()),
    "tabs": _file(f"\t{SERVER}\t\n\t[\thost\t.\t'http://a.example'\t]\t\n"),
    "blanks in a header": _file('[ host . "http://a.example" ]\n[host  ."http://b.example" ] # so\n'),
    "a comment right after a header": _file('[host."http://a.example"]#x\n[host."http://b.example"]\t# ] [\n'),
    "a comment between": _file(f"{A}# [host.'http://no.example']\n{B}"),
    "trailing blanks": _file(FULL.replace("\n", "   \n")),
    "a header and a key on one line": _file('[host."http://a.example"] skip_verify = true\n'),
    "two keys on one line": _file(f"{SERVER.strip()} x = 1\n{A}"),
    "a list over lines": _file(
        '[host."http://a.example"]\ncapabilities = [ # these\n  "pull",\n\n  "resolve", # and\n]\n' + B
    ),
}

QUOTES: Mapping[str, Case] = {
    "literal": _file("server = 'http://s.example'\n[host.'http://a.example']\n[host.'http://b.example']\n"),
    "escaped": _file('[host."http:\\u002f\\u002fa.example"]\n[host."\\u0068ttp://b.example"]\n'),
    "an escape of TOML 1.1": _file('[host."http://a.example\\x2f"]\n' + B),
    "multi-line": _file(f'server = """\nhttp://s.example"""\n{A}'),
    "multi-line literal": _file(f"server = '''http://s.example'''\n{A}"),
    "multi-line with a line end in it": _file(f'server = """http://s.example\n"""\n{A}'),
    "headers in a string": _file(f"x = '''\n[host.'http://no.example']\n'''\n{A}{B}"),
    "headers in a list": _file(f"x = [\n['http://no.example'],\n[1]]\n{A}{B}"),
    "a multi-line key": _file('[host."""http://a.example"""]\n' + B),
    "no quotes": _file("[host.mirror]\n[host.b-example]\n"),
    "no quotes around dots": _file("[host.a.example]\n" + B),
    "no quotes around a URL": _file("[host.http://a.example]\n" + B),
    "quotes around host": _file("['host'.\"http://a.example\"]\n[\"host\".'http://b.example']\n"),
    "an empty name": _file('[host.""]\n' + B),
    "one quote": _file('[host."http://a.example]\n' + B),
    "typographic quotes": _file("server = \u201chttp://s.example\u201d\n" + A),
    "a bracket in a name": _file("[host.'http://a.example/]']\n" + B),
    "a hash in a name": _file("[host.'http://a.example#x']\n" + B),
}

TABLES: Mapping[str, Case] = {
    "dotted": _file("host.'http://a.example'.capabilities = ['pull', 'resolve']\n"),
    "dotted, then a table": _file(f"host.'http://a.example'.skip_verify = true\n{B}"),
    "dotted, two": _file("host.'http://b.example'.skip_verify = true\nhost.'http://a.example'.skip_verify = true\n"),
    "dotted inside of a table": _file(f"{A}header.x-a = '1'\n{B}"),
    "inline": _file("host = { 'http://a.example' = {}, 'http://b.example' = {} }\n"),
    "inline below the parent": _file("[host]\n'http://b.example' = {}\n'http://a.example' = { skip_verify = true }\n"),
    "inline below the parent, then a table": _file(f"[host]\n'http://b.example' = {{}}\n{A}"),
    "inline over lines": _file("host = { 'http://a.example' = {},\n 'http://b.example' = {} }\n"),
    "the parent first": _file(f"[host]\n{A}{B}"),
    "the parent last": _file(f"{A}{B}[host]\n"),
    "the parent alone": _file(f"{SERVER}[host]\n"),
    "a list of tables": _file("[[host.'http://a.example']]\n"),
    "a list of tables and a table": _file(f"[[host.'http://a.example']]\n{B}"),
    "a list of hosts": _file("[[host]]\nurl = 'http://a.example'\n"),
    "other tables": _file(f"{SERVER}[plugins]\n[plugins.x]\ny = 1\n{A}[[more]]\n[[more]]\n{B}"),
    "a header's table first": _file(f"[host.'http://a.example'.header]\nx-a = '1'\n{B}{A}"),
    "a header's table last": _file(f"{A}{B}[host.'http://a.example'.header]\nx-a = '1'\n"),
    "a header's table beside": _file(f"{A}[host.'http://a.example'.header]\nx-a = ['1', '2']\n{B}"),
    "an inline header": _file(f"{A}header = {{ x-a = '1', x-b = ['2'] }}\n{B}"),
    "headers of the registry": _file(f"{SERVER}[header]\nx-s = '1'\n{A}"),
    "a table below a host": _file(f"{A}[host.'http://a.example'.later.still]\n{B}"),
    "the registry's settings": _file(f"{SERVER}capabilities = ['pull']\nskip_verify = true\n{A}"),
    "settings without a server": _file(f"capabilities = ['pull']\noverride_path = true\n{A}"),
    "server below a host": _file(f"{A}{SERVER}"),
    "many hosts": _file("".join(f"[host.'http://m{n % 7}-{n}.example']\n" for n in range(12))),
}

KEYS: Mapping[str, Case] = {
    "a key twice": _file(SERVER + SERVER + A),
    "a table twice": _file(A + B + A),
    "dotted and a table": _file(f"host.'http://a.example'.skip_verify = true\n{A}"),
    "unknown keys": _file(f"proxy = 'x'\n{A}later = {{ a = [1] }}\n[host.'http://a.example'.auth]\nx = 1\n"),
    "keys in another case": _file("Server = 'http://s.example'\n[host.'http://a.example']\nCapabilities = ['pull']\n"),
    "host in another case": _file("[Host.'http://a.example']\n"),
    "hosts": _file("[hosts.'http://a.example']\n"),
    "server is a number": _file("server = 3\n" + A),
    "server is a list": _file("server = ['http://s.example']\n" + A),
    "server is empty": _file("server = ''\n" + A),
    "only server": _file(SERVER),
    "only server, on Docker Hub": Case(
        {"docker.io/hosts.toml": b"server = 'https://registry-1.docker.io'\n"}, "docker.io"
    ),
    "server with a path": _file("server = 'http://s.example/v2/hub'\n" + A),
    "server with a path as it is": _file("server = 'http://s.example/hub'\noverride_path = true\n" + A),
    "server without a scheme": _file("server = 's.example'\n" + A),
    "no capabilities": _file("[host.'http://a.example']\ncapabilities = []\n" + B),
    "capabilities in another case": _file("[host.'http://a.example']\ncapabilities = ['PULL', 'Resolve']\n" + B),
    "only resolve": _file("[host.'http://a.example']\ncapabilities = ['resolve']\n" + B),
    "only push": _file("[host.'http://a.example']\ncapabilities = ['push']\n" + B),
    "an unknown capability": _file("[host.'http://a.example']\ncapabilities = ['pull', 'fly']\n" + B),
    "a newer capability": _file("[host.'http://a.example']\ncapabilities = ['pull', 'referrers']\n" + B),
    "a capability twice": _file("[host.'http://a.example']\ncapabilities = ['pull', 'pull']\n" + B),
    "capabilities as text": _file("[host.'http://a.example']\ncapabilities = 'pull'\n" + B),
    "capabilities of two kinds": _file("[host.'http://a.example']\ncapabilities = ['pull', 1]\n" + B),
    "skip_verify as text": _file("[host.'http://a.example']\nskip_verify = 'true'\n" + B),
    "skip_verify as a number": _file("[host.'http://a.example']\nskip_verify = 1\n" + B),
    "skip_verify": _file(
        "[host.'http://a.example']\nskip_verify = true\n[host.'https://b.example']\nskip_verify = true\n"
    ),
    "override_path as text": _file("[host.'http://a.example/x']\noverride_path = 'true'\n" + B),
    "a header that is a number": _file("[host.'http://a.example'.header]\nx-a = 1\n[host.'http://b.example']\n"),
    "a header that is a list of numbers": _file("[host.'http://a.example'.header]\nx-a = [1]\n[host.'http://b.example']\n"),
    "a header of another kind": _file("[host.'http://a.example']\nheader = 'x-a: 1'\n" + B),
    "a dial_timeout": _file("[host.'http://a.example']\ndial_timeout = '1.5s'\n" + B),
    "a dial_timeout without a unit": _file("[host.'http://a.example']\ndial_timeout = '500'\n" + B),
    "a dial_timeout in words": _file("[host.'http://a.example']\ndial_timeout = 'soon'\n" + B),
    "a dial_timeout that is a number": _file("[host.'http://a.example']\ndial_timeout = 1\n" + B),
    "a dial_timeout that is negative": _file("[host.'http://a.example']\ndial_timeout = '-1s'\n" + B),
    "a dial_timeout of the registry's": _file(f"{SERVER}dial_timeout = 'soon'\n" + A),
    "a date": _file(f"made = 2024-05-06T07:08:09Z\nday = 2024-05-06\nat = 07:08:09\nlocal = 2024-05-06 07:08:09\n{A}"),
    "a date that is none": _file(f"made = 2024-02-31\n{A}"),
    "numbers": _file(f"a = 0x_1\n{A}"),
    "more numbers": _file(f"a = 0xdead_beef\nb = 1e6\nc = -inf\nd = +nan\ne = 0o17\nf = 0b1\ng = 1_000\n{A}"),
    "a number with a zero in front": _file(f"a = 007\n{A}"),
    "a large number": _file(f"a = 99999999999999999999\n{A}"),
    "lists of mixed kinds": _file(f"a = [1, 'x', [2.0], {{}}]\n{A}"),
    "a host that is text": _file("[host]\n'http://a.example' = 'x'\n" + B),
    "a host that is a number, two of them": _file("[host]\n'http://a.example' = 1\n'http://b.example' = 1\n"),
    "host is text": _file("host = 'http://a.example'\n"),
    "not TOML": _file("server: http://s.example\n"),
    "YAML": _file("mirrors:\n  docker.io:\n    endpoint: []\n"),
    "JSON": _file('{"server": "http://s.example"}\n'),
}  # fmt: skip

CERTIFICATES: Mapping[str, Case] = {
    "an authority that is not there": _file(f"{A}ca = 'no.pem'\n{B}"),
    "an authority of the registry's that is not there": _file(f"ca = '/nonexistent/ca.pem'\n{A}"),
    "an authority that is no certificate": _file(f"{A}ca = 'ca.pem'\n{B}", ca_pem=b"x"),
    "an authority that is number": _file(f"{A}ca = 3\n{B}"),
    "authorities of two kinds": _file(f"{A}ca = ['a.pem', 3]\n{B}"),
    "no authorities": _file(f"{A}ca = []\n{B}"),
    "an empty authority": _file(f"{A}ca = ''\n{B}"),
    "a client that is not there": _file(f"{A}client = 'no.pem'\n{B}"),
    "a client that is no certificate": _file(f"{A}client = [['c.pem', 'c.pem']]\n{B}", c_pem=PEM),
    "a client of three": _file(f"{A}client = [['a', 'b', 'c']]\n{B}"),
    "no clients": _file(f"{A}client = []\n{B}"),
    "an empty folder": Case({REGISTRY: None}),
    "Docker's certificates that are none": Case({f"{REGISTRY}/ca.crt": b"x"}),
    "Docker's client without a key": Case({f"{REGISTRY}/client.cert": PEM}),
    "Docker's key alone": Case({f"{REGISTRY}/client.key": b"x"}),
    "Docker's certificates in a folder": Case({f"{REGISTRY}/ca.crt/x": b"x"}),
    "Docker's certificates and a file that is no TOML": _file("server =\n", ca_crt=b"x"),
    "Docker's certificates and hosts": _file(FULL, ca_crt=b"x"),
    "Docker's certificates and only server": _file(SERVER, ca_crt=b"x"),
}  # fmt: skip

URLS: Mapping[str, Case] = {
    "slashes at the end": _file("[host.'http://a.example/']\n[host.'http://b.example//']\n"),
    "/v2": _file("[host.'http://a.example/v2']\n[host.'http://b.example/v2/']\n"),
    "a path": _file("[host.'http://a.example/hub']\n[host.'http://b.example/hub/v2/']\n"),
    "a path behind /v2": _file("[host.'http://a.example/v2/hub']\n[host.'http://b.example/v2/hub/']\n"),
    "a path as it is": _file("[host.'http://a.example/v2/hub']\noverride_path = true\n" + B),
    "a path as it is, with a slash": _file("[host.'http://a.example/v2/hub/']\noverride_path = true\n" + B),
    "no path as it is": _file("[host.'http://a.example']\noverride_path = true\n" + B),
    "a slash as it is": _file("[host.'http://a.example/']\noverride_path = true\n" + B),
    "a path with dots": _file("[host.'http://a.example/x/../y/./z//v2']\n" + B),
    "a path that ends in v2": _file("[host.'http://a.example/hubv2']\n[host.'http://b.example/hub/V2']\n"),
    "a path with escapes": _file("[host.'http://a.example/a%20b%2Fc']\n" + B),
    "a path with blanks": _file("[host.'http://a.example/a b']\n" + B),
    "no scheme": _file("[host.'a.example']\n[host.'b.example:5000']\n"),
    "no scheme, a name that begins with http": _file("[host.'httpd.example']\n" + B),
    "two slashes only": _file("[host.'//a.example']\n" + B),
    "another scheme": _file("[host.'ftp://a.example']\n" + B),
    "a scheme that begins with http": _file("[host.'httpx://a.example']\n" + B),
    "a scheme in capitals": _file("[host.'HTTP://a.example']\n" + B),
    "a scheme in mixed case": _file("[host.'http://a.example']\n[host.'httpS://b.example']\n"),
    "a host in capitals": _file("[host.'http://A.Example']\n" + B),
    "no host": _file("[host.'http://']\n" + B),
    "no host, the last one": _file(f"{A}[host.'https://']\n"),
    "no host but a port": _file("[host.'http://:5000']\n" + B),
    "server without a host": _file(f"server = 'https://'\n{A}"),
    "a port in words": _file("[host.'http://a.example:http']\n" + B),
    "an empty port": _file("[host.'http://a.example:']\n" + B),
    "the scheme's own port": _file("[host.'http://a.example:80']\n[host.'https://b.example:443']\n"),
    "a port that is too large": _file("[host.'http://a.example:99999']\n" + B),
    "blanks in front": _file("[host.' http://a.example']\n" + B),
    "blanks behind": _file("[host.'http://a.example ']\n" + B),
    "a user": _file("[host.'http://me:secret@a.example']\n" + B),
    "a query": _file("[host.'http://a.example/?x=1']\n" + B),
    "a fragment": _file("[host.'http://a.example/hub#x']\n" + B),
    "the same host twice": _file("[host.'http://a.example']\n[host.'http://a.example/']\n[host.'http://a.example/v2']\n"),
    "an underscore": _file("[host.'http://my_mirror.example']\n" + B),
    "a name that is not ASCII": _file("[host.'http://m\xfc.example']\n" + B),
    "a backslash": _file("[host.'http:\\\\a.example']\n" + B),
    "IPv4": _file("[host.'http://127.0.0.2:%P%']\n[host.'http://127.0.0.3:%P%/v2/']\n"),
    "IPv6": _file("[host.'http://[::1]:%P%']\n" + B),
    "IPv6 without a port": _file("[host.'http://[2001:db8::1]']\n" + B),
    "IPv6 with a zone": _file("[host.'http://[fe80::1%25lo]:5000']\n" + B),
    "IPv6 with a zone that is not escaped": _file("[host.'http://[fe80::1%lo]:5000']\n" + B),
    "IPv6 without brackets": _file("[host.'http://::1:5000']\n" + B),
    "IPv6 with one bracket": _file("[host.'http://[::1']\n" + B),
    "IPv6 of the registry": _file("server = 'http://[::1]:%P%'\n" + A),
    "IPv6 inline": _file("[host]\n'http://[::1]:%P%' = {}\n"),
    "IPv6 escaped": _file('[host."http://\\u005b::1\\u005d:%P%"]\n' + B),
}  # fmt: skip

DOORS: Mapping[str, Case] = {
    "an IPv6 door": _file(FULL, door="http://[::1]:%P%"),
    "an IPv6 door and no file": Case({}, door="http://[::1]:%P%"),
    "a door on localhost": _file(FULL, door="http://localhost:%P%"),
    "the door by hand": _file(f"[host.'{DOOR}']\ncapabilities = ['pull']\n{A}"),
    "the door by hand, /v2": _file(f"[host.'{DOOR}/v2']\ncapabilities = ['pull']\n{A}"),
    "the door by hand, a slash": _file(f"[host.'{DOOR}/']\ncapabilities = ['pull']\n{A}"),
    "the door by hand, second": _file(f"{A}[host.'{DOOR}']\ncapabilities = ['pull']\n"),
    "the door by hand, dotted": _file(f"host.'{DOOR}'.capabilities = ['pull']\n{A}"),
    "the door by hand, without pull": _file(f"[host.'{DOOR}']\ncapabilities = ['push']\n{A}"),
    "the door by hand, a path as it is": _file(f"[host.'{DOOR}']\noverride_path = true\n{A}"),
    "the door by hand, /v2 as it is": _file(f"[host.'{DOOR}/v2']\noverride_path = true\n{A}"),
    "the door as the server": _file(f"server = '{DOOR}'\n{A}"),
    "the door without a scheme": _file(f"[host.'127.0.0.1:%P%']\n{A}"),
    "the door by another name": _file(f"[host.'http://localhost:%P%']\n{A}"),
    "the door with settings": _file(f"[host.'{DOOR}']\nskip_verify = true\n[host.'{DOOR}'.header]\nx-a = '1'\n{A}"),
}

FOLDERS: Mapping[str, Case] = {
    "nothing": Case({}),
    "nothing, one chosen": Case({}, apply=(REGISTRY,)),
    "nothing, a port": Case({}, "r.example:5000"),
    "nothing, a port, one chosen": Case({}, "r.example:5000", apply=("r.example:5000",)),
    "_default": Case({"_default/hosts.toml": FULL.encode()}),
    "_default, one chosen": Case({"_default/hosts.toml": FULL.encode()}, apply=(REGISTRY,)),
    "_default with only server": Case({"_default/hosts.toml": SERVER.encode()}),
    "_default that is no TOML": Case({"_default/hosts.toml": b"server ="}),
    "_default that is no TOML, one chosen": Case({"_default/hosts.toml": b"server ="}, apply=(REGISTRY,)),
    "_default and an empty folder": Case({"_default/hosts.toml": FULL.encode(), REGISTRY: None}),
    "a port": Case({"r.example:5000/hosts.toml": A.encode()}, "r.example:5000"),
    "a port between bars": Case({"r.example_5000_/hosts.toml": A.encode()}, "r.example:5000"),
    "a port in both ways": Case(
        {"r.example:5000/hosts.toml": A.encode(), "r.example_5000_/hosts.toml": B.encode()}, "r.example:5000"
    ),
    "a port in both ways, the first one empty": Case(
        {"r.example:5000/hosts.toml": A.encode(), "r.example_5000_": None}, "r.example:5000"
    ),
    "the folder without a port": Case({"r.example/hosts.toml": A.encode()}, "r.example:5000"),
    "the folder of https's port": Case({"r.example_443_/hosts.toml": A.encode()}),
    "a registry in capitals": Case({"R.example/hosts.toml": A.encode()}, "R.example"),
    "a folder in capitals": Case({"R.Example/hosts.toml": A.encode()}),
    "localhost": Case({"localhost_%P%_/hosts.toml": A.encode()}, "localhost:%P%"),
    "localhost without a folder": Case({}, "localhost:%P%"),
    "an address": Case({"127.0.0.2_%P%_/hosts.toml": A.encode()}, "127.0.0.2:%P%"),
    "IPv6 registry": Case({"[::1]_%P%_/hosts.toml": A.encode()}, "[::1]:%P%"),
    "IPv6 registry, a colon": Case({"[::1]:%P%/hosts.toml": A.encode()}, "[::1]:%P%"),
    "IPv6 registry without a folder": Case({}, "[::1]:%P%"),
    "IPv6 registry without a folder, chosen": Case({}, "[::1]:%P%", apply=("[::1]:%P%",)),
    "Docker Hub by its other name": Case({"registry-1.docker.io/hosts.toml": A.encode()}, "docker.io"),
    "Docker Hub": Case({"docker.io/hosts.toml": A.encode()}, "docker.io"),
    "Docker Hub without a folder": Case({}, "docker.io"),
    "Docker Hub, settings without a server": Case(
        {"docker.io/hosts.toml": b"capabilities = ['push']\n" + A.encode()}, "docker.io"
    ),
    "backups": Case(
        {
            f"{name}/hosts.toml": SERVER.encode()
            for name in ("docker.io~", "_backup", "lost+found", "docker.io (old)", ".docker.io", "docker.io.", "a..b")
        }
    ),
    "a backup that could be a registry": Case({"r.example.bak/hosts.toml": A.encode()}, "r.example.bak"),
    "a backup's copy inside": Case({"_backup/r.example/hosts.toml": A.encode(), "r.example/hosts.toml": B.encode()}),
    "a backup file beside": _file(FULL, hosts_toml_bak=A.encode()),
    "a link to a file": Case({"shared.toml": FULL.encode(), f"{REGISTRY}/hosts.toml": "../shared.toml"}),
    "a link to a folder": Case({"q.example/hosts.toml": FULL.encode(), REGISTRY: "q.example"}),
    "a link that leads nowhere": Case({f"{REGISTRY}/hosts.toml": "/nonexistent/hosts.toml"}),
    "a link that leads nowhere, and certificates": Case(
        {f"{REGISTRY}/hosts.toml": "/nonexistent/hosts.toml", f"{REGISTRY}/ca.crt": b"x"}
    ),
    "a folder's link that leads nowhere": Case({REGISTRY: "/nonexistent"}),
    "a folder's link that leads nowhere, and _default": Case(
        {REGISTRY: "/nonexistent", "_default/hosts.toml": A.encode()}
    ),
    "a link to itself": Case({f"{REGISTRY}/hosts.toml": "hosts.toml"}),
    "hosts.toml is a folder": Case({f"{REGISTRY}/hosts.toml": None}),
    "the folder is a file": Case({REGISTRY: b"x"}),
    "the folder is a file, and _default": Case({REGISTRY: b"x", "_default/hosts.toml": A.encode()}),
    "_default is a file": Case({"_default": b"x"}),
    "_default is a folder without a file": Case({"_default": None}),
    "hosts.toml in the wrong folder": Case({"hosts.toml": FULL.encode()}),
    "hosts.toml in capitals": Case({f"{REGISTRY}/HOSTS.TOML": FULL.encode()}),
    "a file with our marks": replace(
        _file(f"# >>> peili hosts >>> mine\n[host.'http://c.example']\n# <<< peili hosts <<<\n{A}"), marked=True
    ),
    "half of our marks": _file(f"# >>> peili hosts >>> mine\n{A}"),
}  # fmt: skip

CORPUS: Mapping[str, Case] = {
    **ENCODINGS, **SPACES, **QUOTES, **TABLES, **KEYS, **CERTIFICATES, **URLS, **DOORS, **FOLDERS,
}  # fmt: skip
