"""The configuration of the command, and the one line for each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.adapters.standalone import settings
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.door_options import TLSOptions
from peili.adapters.standalone.parsing import known_keys, parse_config
from peili.mirror import ConfigError, Limits, Plugins


def load(
    toml: str = "", environ: Mapping[str, str] | None = None, flags: tuple[str, ...] = (), *, path: Path
) -> Config:
    path.write_text(toml, encoding="utf-8")
    assignments = [
        *settings.from_file(path),
        *settings.from_environment(environ or {}, known_keys()),
        *settings.from_flags(flags),
    ]
    return parse_config(settings.merge(assignments))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "peili.toml"


def test_without_a_file_the_defaults_of_the_design_apply() -> None:
    config = parse_config({})
    assert config.local.listen == ("127.0.0.1:5050",)
    assert (config.peer.listen, config.peer.advertise, config.peer.insecure) == (("[::]:5051",), None, False)
    assert (config.store.kind, config.router.kind, config.resolver.kind) == ("containerd", "mdns", "defer")
    assert config.store.options == config.router.options == config.resolver.options == {}
    assert config.mirror.verify
    assert config.mirror.registries == config.mirror.exclude == ()
    assert config.limits == Limits()
    assert (config.hosts.apply, config.hosts.config_path, config.hosts.registries) == (False, (), ())
    assert (config.log.format, config.log.level, config.watchdog) == ("text", "info", 30.0)


def test_every_section_is_read(file: Path) -> None:
    config = load(
        """
        [local]
        listen = ["127.0.0.1:1", "[::1]:1"]
        [peer]
        listen = "0.0.0.0:5051"
        advertise = "http://10.0.0.2:5051"
        insecure = true
        [store]
        kind = "oci-layout"
        path = "/srv/images"
        [router]
        kind = "static"
        peers = ["http://10.0.0.3:5051"]
        [resolver]
        kind = "local"
        [mirror]
        registries = ["docker.io", "ghcr.io"]
        exclude = [":latest$"]
        verify = false
        default_registry = "docker.io"
        identity = "kitchen"
        [limits]
        uploads = 5
        lookup_timeout = 2
        [hosts]
        apply = true
        config_path = ["/etc/containerd/certs.d"]
        registries = ["docker.io", "_default"]
        [log]
        format = "json"
        level = "debug"
        [watchdog]
        timeout = 0
        """,
        path=file,
    )
    assert config.local.listen == ("127.0.0.1:1", "[::1]:1")
    assert config.peer.listen == ("0.0.0.0:5051",)
    assert config.peer.advertise == "http://10.0.0.2:5051"
    assert config.peer.insecure
    assert (config.store.kind, config.store.options) == ("oci-layout", {"path": "/srv/images"})
    assert (config.router.kind, config.router.options) == ("static", {"peers": ["http://10.0.0.3:5051"]})
    assert config.resolver.kind == "local"
    assert config.mirror.registries == ("docker.io", "ghcr.io")
    assert config.mirror.exclude == (":latest$",)
    assert not config.mirror.verify
    assert (config.mirror.default_registry, config.mirror.identity) == ("docker.io", "kitchen")
    assert config.limits == Limits(uploads=5, lookup_timeout=2)
    assert config.hosts.apply
    assert config.hosts.config_path == ("/etc/containerd/certs.d",)
    assert config.hosts.registries == ("docker.io", "_default")
    assert (config.log.format, config.log.level, config.watchdog) == ("json", "debug", 0.0)


def test_the_peer_door_can_have_a_shared_key_or_certificates(file: Path) -> None:
    options = load("[peer]\nshared_key_file = '/etc/peili/key'", path=file).peer
    assert (options.shared_key_file, options.tls, options.insecure) == (Path("/etc/peili/key"), None, False)
    options = load("[peer]\ntls = { ca = 'ca', cert = 'cert', key = 'key', names = ['node-.*'] }", path=file).peer
    assert options.tls == TLSOptions(Path("ca"), Path("cert"), Path("key"), ("node-.*",))
    environ = {"PEILI_PEER__TLS__CA": "ca", "PEILI_PEER__TLS__CERT": "cert", "PEILI_PEER__TLS__KEY": "key"}
    assert load("", environ, path=file).peer.tls == TLSOptions(Path("ca"), Path("cert"), Path("key"), ())


def test_an_empty_list_means_no_peer_door(file: Path) -> None:
    assert load("peer.listen = []", path=file).peer.listen == ()


TABLE = "a table such as { ca = FILE, cert = FILE, key = FILE }"
TLS = "tls = { ca = '/ca', cert = '/cert', key = '/key' }"
HTTPS = "https://HOST:PORT or https://HOST:PORT/PATH"
FOLDERS = "directories, as in containerd's setting config_path, such as /etc/containerd/certs.d"
K3S = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
SECTIONS = "local, ops, peer, store, router, resolver, mirror, upstream, limits, hosts, log, watchdog"
OUTSIDE = "belongs in a section: write [SECTION] above it"
WRONG = [
    ("[routr]\nkind = 'static'", f"routr: unknown option; did you mean router? there are: {SECTIONS}"),
    ("[x]\ny = 1", f"x: unknown option; there are: {SECTIONS}"),
    ("[log]\nformt = 'json'", "log.formt: unknown option; did you mean format? there are: format, level"),
    (
        "[local]\nport = 1",
        "local.port: unknown option; there are: listen, allow_clients, allow_hosts, cert, key, client_ca",
    ),
    ("listen = '127.0.0.1:1'", f"listen: {OUTSIDE}; did you mean listen below [local] or [ops] or [peer]?"),
    ("shared_key = '/key'", f"shared_key: {OUTSIDE}; did you mean shared_key_file below [peer]?"),
    ("xyz = 1\n[log]\nlevel = 'info'", f"xyz: {OUTSIDE}"),
    ("router = 'static'", 'router: a section; did you mean kind = "static" below [router]?'),
    ("[log]\nkind = 'x'", "log.kind: belongs in [store] or [router] or [resolver]"),
    ("[local]\nlisten = 5050", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not 5050"),
    ("[local]\nlisten = '::1:5050'", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not '::1:5050'"),
    ("[local]\nlisten = '[::1]'", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not '[::1]'"),
    ("[local]\nlisten = ':65536'", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not ':65536'"),
    ("[local]\nlisten = '[1]:5050'", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not '[1]:5050'"),
    ("[peer]\nlisten = 'a..b:1'", "peer.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not 'a..b:1'"),
    (f"[ops]\nlisten = '{'a' * 64}:1'", f"ops.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not '{'a' * 64}:1'"),
    ("[local]\nlisten = []", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not []"),
    ("[local]\nlisten = [1]", "local.listen: HOST:PORT, [IPv6]:PORT, or a list of them, not [1]"),
    ("[peer]\ninsecure = 'yes'", "peer.insecure: true or false, not 'yes'"),
    ("[peer]\nadvertise = 'host:1'", f"peer.advertise: http://HOST:PORT or {HTTPS}, not 'host:1'"),
    (
        "[peer]\nshared_key_file = '/k'\nadvertise = 'http://host:1'",
        f"peer.advertise: {HTTPS}, because hosts connect to peers with TLS, not 'http://host:1'",
    ),
    ("[peer]\nshared_key_file = ''", "peer.shared_key_file: a path, not ''"),
    ("[peer]\nshared_key_file = ['/k']", "peer.shared_key_file: a path, not ['/k']"),
    (
        "[peer]\nshared_key_file = '/k'\ninsecure = true",
        "peer.shared_key_file: set only one of insecure and shared_key_file",
    ),
    (f"[peer]\nshared_key_file = '/k'\n{TLS}", "peer.tls: set only one of shared_key_file and tls"),
    ("[peer]\ntls = '/ca'", f"peer.tls: {TABLE}, not '/ca'"),
    ("[peer]\ntls = { ca = '/ca' }", "peer.tls.cert: a path"),
    ("[peer]\ntls = { ca = '/ca', crt = '/c' }", "peer.tls.crt: unknown option; did you mean cert? there are: ca, "),
    ("[mirror]\nverify = 1", "mirror.verify: true or false, not 1"),
    ("[mirror]\nregistries = 'docker.io'", "mirror.registries: a list of strings, not 'docker.io'"),
    ("[mirror]\nregistries = ['a/b']", "mirror.registries: host names such as docker.io or *.example.com, not 'a/b'"),
    ("[mirror]\ndefault_registry = 'a/b'", "mirror.default_registry: host names such as docker.io, not 'a/b'"),
    ("[mirror]\nidentity = 'a b'", "mirror.identity: up to 255 of the visible ASCII characters, not 'a b'"),
    ("[mirror]\nidentity = ''", "mirror.identity: a string that is not empty, not ''"),
    ("[mirror]\nexclude = ['(']", "mirror.exclude: regular expressions, not '(': "),
    ("[limits]\nuploads = 0", "limits.uploads: a whole number above zero, not 0"),
    (
        "[limits]\nupload = 1",
        f"limits.upload: unknown option; did you mean uploads? docs/configuration.md lists all {len(fields(Limits))}",
    ),
    ("[hosts]\napply = 'yes'", "hosts.apply: true or false, not 'yes'"),
    ("[hosts]\nconfig_path = '/etc'", "hosts.config_path: a list of strings, not '/etc'"),
    ("[hosts]\nconfig_path = ['/a::/b']", f"hosts.config_path: {FOLDERS}"),
    ('[hosts]\nconfig_path = ["/a\\u0000"]', f"hosts.config_path: {FOLDERS}"),
    ("[hosts]\nconfig_path = ['']", f"hosts.config_path: {FOLDERS}"),
    (
        f"[hosts]\nconfig_path = ['{K3S}']",
        f"hosts.config_path: a directory that k3s and RKE2 do not generate, not {K3S}; run: ",
    ),
    ("[hosts]\nregistries = ['a/b']", "hosts.registries: host names such as docker.io, not 'a/b'"),
    ("upstream = 1", 'upstream: a section for each registry, as in [upstream."registry.example"]'),
    (
        "[upstream]\nurl = 'https://a'",
        'upstream."url": a table, as in [upstream."registry.example"]',
    ),
    ("[upstream.'a/b']", 'upstream."a/b": the host name of a registry, as in [upstream."registry.example"]'),
    ("[upstream.'a.io']\nx = 1", 'upstream."a.io".x: unknown option; there are: url, ca'),
    ("[upstream.'a.io']\nca = 'x'", "upstream.\"a.io\".ca: an absolute path, not 'x'"),
    (
        "[upstream.'a.io']\nurl = 'a.io'",
        "upstream.\"a.io\".url: an http or https URL, such as https://registry.example, not 'a.io'",
    ),
    ("[log]\nformat = 'xml'", "log.format: one of text, json, not 'xml'"),
    ("[log]\nlevel = 3", "log.level: one of debug, info, warning, error, not 3"),
    ("[watchdog]\ntimeout = -1", "watchdog.timeout: a number of seconds, 0 for off, not -1"),
    ("[watchdog]\ntimeout = true", "watchdog.timeout: a number of seconds, 0 for off, not true"),
    ("[watchdog]\ntimeout = 1e300", "watchdog.timeout: a number up to 1000000000, not 1e+300"),
    (f"[watchdog]\ntimeout = 1{'0' * 307}", f"watchdog.timeout: a number up to 1000000000, not 1{'0' * 78}…"),
    ("[watchdog]\ntimeout = inf", "watchdog.timeout: a number of seconds, 0 for off, not inf"),
]


@pytest.mark.parametrize(("toml", "line"), WRONG, ids=[line.split(": ")[0] for _, line in WRONG])
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(toml: str, line: str, file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml, path=file)
    message = str(caught.value)
    expected = f"{file}: {line}"
    assert message.startswith(expected) if line.endswith((": ", ", ", "; use ")) else message == expected
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[local\nlisten = 1", r"not TOML: Expected '\]' at the end of a table declaration \(at line 1, column 7\)"),
        (b"[local]\nlisten =", r"not TOML: .*\(at (line 2, column 9|end of document)\)"),
        (b"[local]\nlisten = '\xff'", "not UTF-8 text, at byte 18"),
        (b"x = " + b"[" * 100_000, "not TOML"),
        (b"x = " + b"9" * 5_000, "not TOML"),
    ],
)
def test_invalid_toml_is_one_line_with_the_position(content: bytes, expected: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{file}: {expected}") as caught:
        list(settings.from_file(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("toml", [f"[local]\nlisten.{'a.' * 3000}a = 1", f"[limits]\nuploads = 0x1{'0' * 5000}"])
def test_a_value_that_python_refuses_to_show_is_one_line(toml: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{file}: (local.listen|limits.uploads): numbers of usual size, "):
        load(toml, path=file)


def test_an_option_may_be_nested_to_some_depth() -> None:
    for path, value in (("router.labels", "{a = [{b = [[1]]}]}"), ("router.labels.a.b.c", "1")):
        settings.merge(settings.from_flags([f"{path}={value}"]))
    with pytest.raises(ConfigError, match=r"^--set: a.b: "):
        settings.merge(settings.from_flags([f"a.b.{'c.' * 5000}d=1"]))


def test_a_flag_may_have_quotes_around_a_name_with_dots() -> None:
    for quote in "\"'":
        found = settings.merge(settings.from_flags([f"upstream.{quote}registry.corp{quote}.url=https://x.corp=y"]))
        assert found["upstream"]["registry.corp"].value == {"url": "https://x.corp=y"}
    for wrong in ('upstream."a.b=1', 'upstream."a"b=1', 'a""b.c=1', "a..b=1", "a.b.=1", 'a."".b=1'):
        with pytest.raises(ConfigError, match=r"^--set: SECTION\.KEY=VALUE, not "):
            list(settings.from_flags([wrong]))


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf[log]\r\nlevel = 'debug'\r\n")
    assert parse_config(settings.merge(settings.from_file(file))).log.level == "debug"


def test_a_missing_file_or_a_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: can't be read: No such file or directory$"):
        list(settings.from_file(tmp_path / "nothing.toml"))
    with pytest.raises(ConfigError, match=r": can't be read: Is a directory$"):
        list(settings.from_file(tmp_path))


def test_options_override_the_environment_which_overrides_the_file(file: Path) -> None:
    toml = "[log]\nlevel = 'debug'\nformat = 'json'\n[mirror]\nidentity = 'file'"
    environ = {"PEILI_LOG__LEVEL": "warning", "PEILI_MIRROR__IDENTITY": "env"}
    config = load(toml, environ, ("mirror.identity=flag",), path=file)
    assert (config.log.format, config.log.level, config.mirror.identity) == ("json", "warning", "flag")


def test_the_value_of_a_variable_is_toml_if_it_is_valid_toml() -> None:
    config = parse_config(
        settings.merge(
            settings.from_environment(
                {
                    "PEILI_PEER__INSECURE": "true",
                    "PEILI_MIRROR__REGISTRIES": '["docker.io", "ghcr.io"]',
                    "PEILI_MIRROR__IDENTITY": "2024-01-01",  # a date to TOML, but the key is a string
                    "PEILI_LIMITS__UPLOADS": "7",
                    "PEILI_LOCAL__LISTEN": "127.0.0.1:1",
                    "PEILI_ROUTER__PEERS": '["http://a:1"]',
                    "PEILI_ROUTER__LABELS__ZONE": "north",
                    "PEILI_ROUTER__LABELS__RACK": "3",
                },
                known_keys(),
            )
        )
    )
    assert config.peer.insecure
    assert config.mirror.registries == ("docker.io", "ghcr.io")
    assert config.mirror.identity == "2024-01-01"
    assert config.limits.uploads == 7
    assert config.local.listen == ("127.0.0.1:1",)
    assert config.router.options == {"peers": ["http://a:1"], "labels": {"zone": "north", "rack": 3}}


def test_a_variable_adds_to_a_table_of_the_file(file: Path) -> None:
    toml = "[router]\nlabels = { zone = 'south', rack = 1 }"
    config = load(toml, {"PEILI_ROUTER__LABELS__ZONE": "north"}, path=file)
    assert config.router.options == {"labels": {"zone": "north", "rack": 1}}


def test_other_variables_are_ignored() -> None:
    environ = {"XPEILI_LOG__X": "1", "HOME": "/", "PEILI_VERSION": "1", "PEILI_CONFIG": "/peili.toml"}
    for service in ("PEILI", "PEILI_PEER", "PEILI_ROUTER"):  # what Kubernetes sets for a service
        environ |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "80",
            f"{service}_SERVICE_PORT_HTTP": "80",
            f"{service}_PORT": "tcp://10.0.0.1:80",
            f"{service}_PORT_80_TCP": "tcp://10.0.0.1:80",
            f"{service}_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    assert list(settings.from_environment(environ, known_keys())) == []


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PEILI_LIMITS__UPLOADS", "many", "limits.uploads: a whole number above zero, not 'many'"),
        ("PEILI_LOG__FORMAT", "xml", "log.format: one of text, json, not 'xml'"),
        ("PEILI_ROUTR__KIND", "x", f"routr: unknown option; did you mean router? there are: {SECTIONS}"),
        ("PEILI_ROUTER_KIND", "x", "not the name of a key; did you mean PEILI_ROUTER__KIND?"),
        ("PEILI_PEER_SHARED_KEY_FILE", "x", "not the name of a key; did you mean PEILI_PEER__SHARED_KEY_FILE?"),
        ("PEILI_ROUTR_PEERS", "x", "not the name of a key; did you mean PEILI_ROUTER__PEERS?"),
        ("PEILI_SHARED_KEY_FILE", "x", "not the name of a key; did you mean PEILI_PEER__SHARED_KEY_FILE?"),
        ("PEILI_REGISTRY", "x", "not the name of a key; did you mean PEILI_MIRROR__REGISTRIES?"),
        ("peili_router__kind", "x", "not the name of a key; did you mean PEILI_ROUTER__KIND?"),
        ("PEILI_CONFIG_FILE", "x", "not the name of a key; did you mean PEILI_CONFIG?"),
        ("PEILI_LOG__", "x", "not the name of a key; write PEILI_SECTION__KEY"),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(name: str, value: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(settings.merge(settings.from_environment({name: value}, known_keys())))
    assert str(caught.value) == f"{name}: {line}"


@pytest.mark.parametrize("flag", ["log.format", "format=json", "=json", "log.=json", ".format=json", ""])
def test_a_malformed_assignment_is_refused_with_the_right_form(flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(settings.from_flags([flag]))
    assert str(caught.value) == f"--set: SECTION.KEY=VALUE, not {flag!r}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mdns", "mdns"),
        ('"mdns"', "mdns"),
        ("5", 5),
        ("0.5", 0.5),
        ("false", False),
        ("[1, 2]", [1, 2]),
        ("{ a = 1 }", {"a": 1}),
        ("127.0.0.1:5050", "127.0.0.1:5050"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_toml_or_a_string(text: str, value: Any) -> None:
    assert settings.toml_value(text) == value


@given(st.text())
def test_every_text_is_a_value(text: str) -> None:
    value = settings.toml_value(text)
    assert value == text or not isinstance(value, str) or text.strip()[0] in "\"'"


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}[a-z0-9]", fullmatch=True).filter(lambda name: "__" not in name)


@given(st.lists(NAMES, min_size=2, max_size=4), st.integers())
def test_the_name_of_a_variable_is_the_path_of_a_key(path: list[str], value: int) -> None:
    name = "PEILI_" + "__".join(path).upper()
    (assignment,) = settings.from_environment({name: str(value)}, known_keys())
    assert assignment == settings.Assignment(tuple(path), settings.Setting(value, name, str(value)))


@given(st.lists(st.tuples(st.lists(NAMES, min_size=2, max_size=4), st.integers()), max_size=6))
def test_the_last_assignment_of_a_key_applies(assignments: list[tuple[list[str], int]]) -> None:
    sections = settings.merge(settings.Assignment(tuple(path), settings.Setting(n, "test")) for path, n in assignments)
    if assignments:
        (section, key, *deeper), expected = assignments[-1]
        value = sections[section][key].value
        for name in deeper:
            value = value[name]
        assert value == expected


def test_an_error_of_a_plug_in_names_where_its_option_was_set(file: Path) -> None:
    config = load("[store]\nkind = 'memory'\ncolour = 'red'", path=file)
    with pytest.raises(ConfigError, match=f"^{file}: store\\.colour: "):
        config.store.build(Plugins().store)
    config = load("[store]\nkind = 'memory'", {"PEILI_STORE__COLOUR": "red"}, path=file)
    with pytest.raises(ConfigError, match=r"^PEILI_STORE__COLOUR: store\.colour: "):
        config.store.build(Plugins().store)


def test_an_unknown_plug_in_is_refused_with_the_names_that_exist(file: Path) -> None:
    config = load("[router]\nkind = 'carrier-pigeon'", path=file)
    with pytest.raises(ConfigError) as caught:
        config.router.build(Plugins().router)
    line = f"{file}: router.kind: no router is called 'carrier-pigeon'; there are: "
    assert str(caught.value).startswith(line)
    assert "static" in str(caught.value)


@pytest.mark.parametrize(
    ("local", "peer"),
    [
        ("127.0.0.1:5050", "127.0.0.1:5050"),
        ("127.0.0.1:5050", "[::]:5050"),
        ("127.0.0.1:5050", "0.0.0.0:5050"),
        (":5050", "10.0.0.2:5050"),
    ],
)
def test_both_doors_on_one_port_are_an_error(local: str, peer: str, file: Path) -> None:
    free = f"{peer.rpartition(':')[0]}:5051"
    same = f"a port of its own; {local} of the local door and {peer} of the peer door are the same"
    with pytest.raises(ConfigError) as caught:
        load(f"local.listen = '{local}'\npeer.listen = ['127.0.0.9:1', '{peer}']", path=file)
    assert str(caught.value) == f"{file}: peer.listen: {same}; did you mean {free}?"
    with pytest.raises(ConfigError, match=r"local\.listen: a port of its own; 127\.0\.0\.1:5051 of"):
        load("local.listen = '127.0.0.1:5051'", path=file)


@pytest.mark.parametrize(("local", "peer"), [("127.0.0.1:5050", "10.0.0.2:5050"), ("127.0.0.1:0", "[::]:0")])
def test_the_doors_may_have_the_same_port_of_different_addresses(local: str, peer: str, file: Path) -> None:
    assert load(f"local.listen = '{local}'\npeer.listen = '{peer}'", path=file).peer.listen == (peer,)


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[local]\nadvertise = 'http://10.0.0.2:5051'", "local.advertise: belongs in [peer]"),
        ("[log]\nregistries = ['docker.io']", "log.registries: belongs in [mirror] or [hosts]"),
    ],
)
def test_a_key_of_another_section_is_an_error_that_names_it(toml: str, line: str, file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml, path=file)
    assert str(caught.value) == f"{file}: {line}"
