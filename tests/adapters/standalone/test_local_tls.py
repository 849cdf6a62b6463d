"""A local door with TLS, and what `hosts apply` writes for it."""

from __future__ import annotations

import asyncio
import ssl
import stat
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from tests.support.certificates import Authority, Certificate

from peili.adapters.containerd import HostsFiles
from peili.adapters.containerd.doctor.mirror_checks import check_local_door, make_client
from peili.adapters.containerd.doctor.result import ok
from peili.adapters.standalone import hosts
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.doctor import doctor_target
from peili.adapters.standalone.door_options import LocalOptions
from peili.adapters.standalone.operations import RunningPeili
from peili.adapters.standalone.parsing import parse_config
from peili.adapters.standalone.settings import Setting
from peili.mirror import ConfigError, LocalCertificate, Mirror, PeiliError, serve
from peili.mirror.tls import from_files
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def private(certificate: Certificate) -> Certificate:
    certificate.key.chmod(0o600)
    return certificate


def configuration(**sections: dict[str, object]) -> Config:
    found = {name: {key: Setting(value, "here") for key, value in each.items()} for name, each in sections.items()}
    return parse_config({"peer": {"insecure": Setting(True, "here")}, **found})


@pytest.mark.anyio
@pytest.mark.parametrize("needs_certificate", [False, True])
async def test_the_door_demands_a_certificate_if_it_has_an_authority(
    needs_certificate: bool, authority: Authority, tmp_path: Path
) -> None:
    door, runtime = (private(authority.issue(tmp_path / name, "127.0.0.1")) for name in ("door", "runtime"))
    options = LocalOptions(
        ("127.0.0.1:0",), cert=door.cert, key=door.key, client_ca=authority.cert if needs_certificate else None
    )
    mirror = Mirror(MemoryStore(), MemoryRouter())
    without = ssl.create_default_context(cafile=authority.cert)
    async with mirror, serve(mirror, local="127.0.0.1:0", local_ssl=options.build_ssl()) as serving:
        url = f"https://{serving.local_addresses[0]}/v2/"
        async with httpx.AsyncClient(verify=runtime.client_context(), timeout=60, trust_env=False) as client:
            assert (await client.get(url)).status_code == 200
        async with httpx.AsyncClient(verify=without, timeout=60, trust_env=False) as client:
            if needs_certificate:
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    await client.get(url)
            else:
                assert (await client.get(url)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("needs_certificate", [False, True])
async def test_new_files_are_used_for_new_connections_while_a_transfer_runs(
    needs_certificate: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another authority issues the new certificates, of the door and of the runtime."""
    monkeypatch.setattr(from_files, "_REFRESH_INTERVAL", 0.05)
    new = Authority(tmp_path / "new authority")
    old_runtime, new_runtime = (
        each.issue(tmp_path / each.cert.parent.name / "runtime", "x") for each in (authority, new)
    )
    door, new_door = (
        private(each.issue(tmp_path / each.cert.parent.name / "door", "127.0.0.1")) for each in (authority, new)
    )
    options = LocalOptions(
        ("127.0.0.1:0",), cert=door.cert, key=door.key, client_ca=door.ca if needs_certificate else None
    )
    store = MemoryStore()
    large = store.add(bytes(16 << 20))
    mirror = Mirror(store, MemoryRouter())
    async with mirror, serve(mirror, local="127.0.0.1:0", local_ssl=options.build_ssl()) as serving:
        url = f"https://{serving.local_addresses[0]}/v2/"
        async with (
            httpx.AsyncClient(verify=old_runtime.client_context(), trust_env=False, timeout=60) as before,
            before.stream("GET", f"{url}registry.example/demo/blobs/{large.digest}") as response,
        ):
            for source, target in ((new_door.ca, door.ca), (new_door.cert, door.cert), (new_door.key, door.key)):
                source.rename(target)
            await until_admitted(url, new_runtime)
            assert not await is_admitted(url, old_runtime)
            assert len(await response.aread()) == large.size


async def until_admitted(url: str, runtime: Certificate) -> None:
    async with asyncio.timeout(60):
        while not await is_admitted(url, runtime):
            pass


async def is_admitted(url: str, runtime: Certificate) -> bool:
    async with httpx.AsyncClient(verify=runtime.client_context(), timeout=60, trust_env=False) as client:
        try:
            return (await client.get(url)).status_code == 200
        except (httpx.TransportError, ssl.SSLError):
            return False


@pytest.mark.anyio
async def test_a_new_key_that_others_may_read_is_not_used(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door, new = (private(authority.issue(tmp_path / name, "127.0.0.1")) for name in ("door", "new"))
    certificate = LocalCertificate(door.cert, door.key)
    before = certificate.current
    new.key.chmod(0o640)
    new.cert.rename(door.cert)
    new.key.rename(door.key)
    await certificate.refresh()
    assert certificate.current is before
    assert f"chmod 600 {door.key}; what was read before stays in use" in caplog.text
    door.key.chmod(0o600)
    await certificate.refresh()
    assert certificate.current is not before


@pytest.mark.anyio
async def test_status_and_doctor_reach_the_door_as_containerd_does(authority: Authority, tmp_path: Path) -> None:
    door, runtime = (private(authority.issue(tmp_path / name, "127.0.0.1")) for name in ("door", "runtime"))
    options = LocalOptions(("127.0.0.1:0",), cert=door.cert, key=door.key, client_ca=authority.cert)
    mirror = Mirror(MemoryStore(), MemoryRouter(), identity="here")
    async with mirror, serve(mirror, local="127.0.0.1:0", local_ssl=options.build_ssl()) as serving:
        local: dict[str, object] = {"listen": serving.local_addresses[0], "cert": str(door.cert), "key": str(door.key)}
        trusted: dict[str, object] = {"ca": str(authority.cert)}
        shown = {**trusted, "client_cert": str(runtime.cert), "client_key": str(runtime.key)}
        for section, is_right in (({}, False), (trusted, False), (shown, True)):
            config = configuration(local=local, hosts=section, store={"kind": "memory"})
            target = doctor_target(config, None)
            async with make_client([target.mirror], target.door_tls) as client:
                _, result = await check_local_door(client, target.mirror, target.ops)
            asking = asyncio.to_thread(RunningPeili.of(config).fetch, "/status")
            if is_right:
                assert (await asking)["identity"] == "here"
                assert result == ok("local door", f"peili here answers at https://{serving.local_addresses[0]}")
            else:
                with pytest.raises(PeiliError, match=r"; set hosts\.ca, and hosts\.client_cert if"):
                    await asking
                assert result.what.startswith("no TLS connection to https://")
                assert result.fix.startswith("set hosts.ca")


def test_hosts_toml_gets_the_certificates(authority: Authority, tmp_path: Path) -> None:
    door, runtime = (private(authority.issue(tmp_path / name, "127.0.0.1")) for name in ("door", "runtime"))
    config = configuration(
        local={"cert": str(door.cert), "key": str(door.key), "client_ca": str(authority.cert)},
        hosts={
            "config_path": [str(tmp_path / "certs.d")],
            "ca": str(authority.cert),
            "client_cert": str(runtime.cert),
            "client_key": str(runtime.key),
        },
    )
    files = hosts.extension(config).files
    assert not files.apply().problems
    written = tomllib.loads((tmp_path / "certs.d/_default/hosts.toml").read_text())
    [(url, host)] = written["host"].items()
    assert url == "https://127.0.0.1:5050"
    assert (host["ca"], host["client"]) == (str(authority.cert), [[str(runtime.cert), str(runtime.key)]])
    assert stat.S_IMODE(runtime.key.stat().st_mode) == 0o600
    created = [each for each in (tmp_path / "certs.d").rglob("*") if each.is_file()]
    assert not any(line in each.read_bytes() for each in created for line in runtime.key.read_bytes().splitlines())
    files.remove()
    assert not (tmp_path / "certs.d").exists()


def test_a_door_below_a_path_gets_override_path(tmp_path: Path) -> None:
    for number, (url, overrides) in enumerate(
        (("http://127.0.0.1:8000/images/v2", True), ("http://127.0.0.1:8000", False))
    ):
        root = tmp_path / str(number)
        assert not HostsFiles(url, config_path=[root]).apply().problems
        [host] = tomllib.loads((root / "_default/hosts.toml").read_text())["host"].values()
        assert host.get("override_path", False) is overrides


@pytest.mark.parametrize("of", ["local.key", "hosts.client_key", "client"])
def test_a_key_that_others_may_read_is_refused(of: str, authority: Authority, tmp_path: Path) -> None:
    issued = private(authority.issue(tmp_path / "node", "127.0.0.1"))
    issued.key.chmod(0o640)
    config = configuration(
        local={"cert": str(issued.cert), "key": str(issued.key)},
        hosts={"client_cert": str(issued.cert), "client_key": str(issued.key)},
    )
    use: dict[str, Callable[[], object]] = {
        "local.key": config.local.build_ssl,
        "hosts.client_key": partial(hosts.extension, config),
        "client": partial(HostsFiles, "https://127.0.0.1:5050", client=(issued.cert, issued.key)),
    }
    with pytest.raises(ConfigError, match=rf"^(here: )?{of}: a file that only its owner may read; chmod 600 "):
        use[of]()


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("local", {"cert": "a"}, "here: local.key: both cert and key, or neither"),
        ("local", {"client_ca": "a"}, "here: local.client_ca: only together with cert and key"),
        ("hosts", {"client_key": "a"}, "hosts.client_cert: both client_cert and client_key, or neither"),
    ],
)
def test_half_of_a_setting_is_an_error(section: str, values: dict[str, object], line: str) -> None:
    config = configuration(**{section: values})
    with pytest.raises(ConfigError) as raised:
        config.local.build_ssl() if section == "local" else hosts.extension(config)
    assert str(raised.value).endswith(line)


def test_a_device_is_no_private_key() -> None:
    """Nobody should be told to change its mode."""
    config = configuration(local={"cert": "/dev/null", "key": "/dev/null"})
    with pytest.raises(ConfigError, match=r"^here: local\.key: a file; /dev/null is something else$"):
        config.local.build_ssl()
