"""The DaemonSet: its mounts, probes and ports match the configuration in the same file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from ruamel.yaml import YAML
from tests.lab.processes import ENVIRONMENT

from peili.adapters.standalone import settings
from peili.adapters.standalone.config import Config
from peili.mirror import Mirror
from peili.mirror.tls.key_file import create_key_file
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

MANIFEST = Path(__file__).parents[2] / "packaging/kubernetes/daemonset.yaml"
CONTENT = "/var/lib/containerd/io.containerd.content.v1.content"


def load() -> dict[str, Any]:
    documents: Iterable[dict[str, Any]] = YAML(typ="safe", pure=True).load_all(MANIFEST.read_text())  # pyright: ignore[reportUnknownMemberType] - its own type has gaps
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return load()


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["DaemonSet"]["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def peili(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["containers"][0]
    return found


@pytest.fixture(scope="module")
def config_file(manifest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "peili.toml"
    file.write_text(manifest["ConfigMap"]["data"]["peili.toml"])
    return file


@pytest.fixture(scope="module")
def config(config_file: Path) -> Config:
    return Config.load(settings.merge(settings.from_file(config_file)))


def mounted(pod: dict[str, Any], container: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the mount of `path` in `container`, and its volume."""
    mount = next(each for each in container["volumeMounts"] if each["mountPath"] == path)
    return mount, next(each for each in pod["volumes"] if each["name"] == mount["name"])


def test_the_file_is_valid_yaml_without_duplicate_keys() -> None:
    assert list(load()) == ["Namespace", "ConfigMap", "DaemonSet"]
    if shutil.which("yamllint", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("not installed: yamllint")
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: disable}}"
    command = ["yamllint", "--strict", "-d", rules, str(MANIFEST)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_is_in_the_namespace_and_the_daemonset_selects_its_pods(manifest: dict[str, Any]) -> None:
    namespace = manifest["Namespace"]["metadata"]["name"]
    assert {manifest[kind]["metadata"]["namespace"] for kind in ("ConfigMap", "DaemonSet")} == {namespace}
    spec = manifest["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_peili_accepts_the_configuration(config_file: Path, tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", "--check", "--config", str(config_file)]
    command.append(f"--set=peer.shared_key_file={tmp_path}/key")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the configuration is valid\n"), done.stderr


@pytest.mark.parametrize("containers", ["initContainers", "containers"])
def test_peili_is_started_with_the_configuration_that_is_mounted(
    containers: str, manifest: dict[str, Any], pod: dict[str, Any]
) -> None:
    [container] = pod[containers]
    file = Path(container["args"][container["args"].index("--config") + 1])
    _, volume = mounted(pod, container, str(file.parent))
    assert volume["configMap"]["name"] == manifest["ConfigMap"]["metadata"]["name"]
    assert file.name in manifest["ConfigMap"]["data"]


def test_the_peer_door_has_a_key_from_a_secret(pod: dict[str, Any], peili: dict[str, Any], config: Config) -> None:
    file = config.peer.shared_key_file
    assert file is not None
    mount, volume = mounted(pod, peili, str(file.parent))
    assert mount["readOnly"] is True
    assert "subPath" not in mount  # the kubelet would not update it
    assert volume["secret"] == {"secretName": "peili", "defaultMode": 0o400}
    [hint] = re.findall(r"^# +(kubectl .*)$", MANIFEST.read_text(), re.MULTILINE)
    assert hint == f'kubectl -n peili create secret generic peili --from-literal={file.name}="$(peili keys new)"'
    assert hint in (MANIFEST.parents[2] / "docs/running.md").read_text()


@pytest.mark.anyio
async def test_the_probes_use_paths_that_the_local_door_serves(peili: dict[str, Any], config: Config) -> None:
    probes = {name: peili[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {f"{probe['host']}:{probe['port']}" for probe in probes.values()} == set(config.local.listen)
    mirror = Mirror(MemoryStore(), MemoryRouter())
    transport = httpx.ASGITransport(mirror.ops)
    async with mirror, httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        answers = {name: await client.get(probe["path"]) for name, probe in probes.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(probes, 200)
    assert answers["readiness"].json()  # /livez has no JSON


def test_the_runtime_and_other_nodes_can_reach_the_doors(
    pod: dict[str, Any], peili: dict[str, Any], config: Config
) -> None:
    assert pod["hostNetwork"] is True  # so that loopback is that of the node and its containerd
    ports = {each["name"]: (each["containerPort"], each["hostPort"]) for each in peili["ports"]}
    port = urlsplit(f"//{config.peer.listen[0]}").port
    assert ports == {"peer": (port, port)}


def test_the_namespace_allows_such_pods(manifest: dict[str, Any], pod: dict[str, Any]) -> None:
    """If a cluster enforces the Pod Security Standards, only the level `privileged` allows what these pods need."""
    assert pod["hostNetwork"] or any("hostPath" in volume for volume in pod["volumes"])
    labels = manifest["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_the_socket_is_found_again_after_containerd_restarted(
    pod: dict[str, Any], peili: dict[str, Any], config: Config
) -> None:
    directory = str(Path(config.store.options["address"]).parent)
    mount, volume = mounted(pod, peili, directory)
    assert volume["hostPath"] == {"path": directory, "type": "Directory"}
    assert mount["mountPropagation"] == "HostToContainer"


def test_the_content_is_mounted_read_only_at_the_path_that_containerd_reports(
    pod: dict[str, Any], peili: dict[str, Any], config: Config
) -> None:
    mount, volume = mounted(pod, peili, config.store.options.get("content_path", CONTENT))
    assert volume["hostPath"]["path"] == CONTENT
    assert mount["readOnly"] is True


def test_only_the_init_container_may_write_and_only_hosts_toml(pod: dict[str, Any]) -> None:
    hosts, peili = pod["initContainers"][0], pod["containers"][0]
    writable = {
        each["mountPath"]
        for container in (hosts, peili)
        for each in container["volumeMounts"]
        if not each.get("readOnly", False)
    }
    folder = hosts["args"][hosts["args"].index("--config-path") + 1]
    assert writable == {folder}
    assert mounted(pod, hosts, folder)[1]["hostPath"]["path"] == folder
    for each in (hosts, peili):
        confined = each["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}


def test_the_init_container_puts_peili_first_as_configured(
    pod: dict[str, Any], config_file: Path, tmp_path: Path
) -> None:
    hosts = pod["initContainers"][0]
    folder, file = (hosts["args"][hosts["args"].index(flag) + 1] for flag in ("--config-path", "--config"))
    changed = tmp_path / "peili.toml"
    changed.write_text(config_file.read_text().replace('"127.0.0.1:5050"', '"127.0.0.1:6060"'))
    arguments = [each.replace(folder, str(tmp_path)).replace(file, str(changed)) for each in hosts["args"]]
    command = [sys.executable, "-m", "peili.adapters.standalone", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '[host."http://127.0.0.1:6060"]' in (tmp_path / "_default/hosts.toml").read_text()


def test_the_grace_period_is_longer_than_peili_needs_to_stop(pod: dict[str, Any], config: Config) -> None:
    assert pod["terminationGracePeriodSeconds"] > config.limits.drain_timeout + config.limits.stop_timeout
