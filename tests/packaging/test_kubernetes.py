"""The Kustomize base and the Helm chart: mounts, probes and ports match the configuration that comes with them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from ruamel.yaml import YAML
from tests.kubernetes_programs import has_programs, program
from tests.lab.processes import ENVIRONMENT, CommandFailed, run

from peili.adapters.standalone import settings
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.parsing import known_keys, parse_config
from peili.mirror import Mirror
from peili.mirror.tls.key_file import create_key_file
from peili.routers.kubernetes.slices import PORT_NAME
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

FOLDER = Path(__file__).parents[2] / "packaging/kubernetes"
CONTENT = "/var/lib/containerd/io.containerd.content.v1.content"
KINDS = {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Service", "DaemonSet"}
"""What both have; the base also has the namespace."""
NO_NAMESPACE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
IN_A_POD = {**ENVIRONMENT, "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
pytestmark = pytest.mark.skipif(not has_programs(), reason="not built: kubectl, helm")


def load(text: str) -> dict[str, Any]:
    """Return the objects in a YAML text, by kind."""
    documents: Iterable[dict[str, Any]] = YAML(typ="safe", pure=True).load_all(text)  # pyright: ignore[reportUnknownMemberType] - its own type has gaps
    return {document["kind"]: document for document in documents}


def rendered_base() -> str:
    return run([program("kubectl"), "kustomize", str(FOLDER / "base")]).decode()


def rendered_chart(*values: str) -> str:
    """Return what the chart makes of these values, each KEY=VALUE."""
    flags = [f"--set={each}" for each in values]
    command = [program("helm"), "template", "peili", str(FOLDER / "chart"), "--namespace=peili", *flags]
    return run([*command, "--kube-version=1.34.0"]).decode()


@pytest.fixture(scope="module", params=["base", "chart"])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(rendered_base() if request.param == "base" else rendered_chart())


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
    return parse_config(settings.merge(settings.from_file(config_file)))


def mounted(pod: dict[str, Any], container: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the mount of `path` in `container`, and its volume."""
    mount = next(each for each in container["volumeMounts"] if each["mountPath"] == path)
    return mount, next(each for each in pod["volumes"] if each["name"] == mount["name"])


def test_the_files_of_the_base_are_valid_yaml_without_duplicate_keys() -> None:
    if shutil.which("yamllint", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("not installed: yamllint")
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: disable}}"
    files = [*map(str, (FOLDER / "base").glob("*.yaml")), str(FOLDER / "chart/Chart.yaml")]
    command = ["yamllint", "--strict", "-d", rules, *files, str(FOLDER / "chart/values.yaml")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_is_in_the_namespace_and_selected(manifest: dict[str, Any]) -> None:
    assert set(manifest) - NO_NAMESPACE == KINDS
    assert {each["metadata"]["namespace"] for kind, each in manifest.items() if kind not in NO_NAMESPACE} == {"peili"}
    spec = manifest["DaemonSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    assert spec["selector"]["matchLabels"].items() <= labels
    assert manifest["Service"]["spec"]["selector"].items() <= labels


def test_helm_finds_no_fault_in_the_chart() -> None:
    output = run([program("helm"), "lint", "--strict", str(FOLDER / "chart")]).decode()
    assert "1 chart(s) linted, 0 chart(s) failed" in output


def test_the_chart_belongs_to_this_version_of_peili() -> None:
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    chart = load((FOLDER / "chart/Chart.yaml").read_text() + "kind: Chart")["Chart"]
    [image] = load((FOLDER / "base/kustomization.yaml").read_text())["Kustomization"]["images"]
    assert chart["appVersion"] == image["newTag"] == project["version"]


def test_peili_accepts_the_configuration(config_file: Path, tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", "--check", "--config", str(config_file)]
    command.append(f"--set=peer.shared_key_file={tmp_path}/key")
    done = subprocess.run(command, env=IN_A_POD, capture_output=True, text=True, check=False)
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
    hint = f'kubectl -n peili create secret generic peili --from-literal={file.name}="$(peili keys new)"'
    for page in ("base/kustomization.yaml", "chart/values.yaml", "../../docs/running.md"):
        assert hint in (FOLDER / page).read_text()


@pytest.mark.anyio
async def test_the_probes_use_paths_that_the_local_door_serves(peili: dict[str, Any], config: Config) -> None:
    probes = {name: peili[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {f"{probe['host']}:{probe['port']}" for probe in probes.values()} == set(config.ops or config.local.listen)
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


def test_the_service_names_the_peer_doors_for_the_router(
    manifest: dict[str, Any], pod: dict[str, Any], peili: dict[str, Any], config: Config
) -> None:
    service = manifest["Service"]
    assert config.router.kind == "kubernetes"
    assert config.router.options.get("service", "peili") == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    [port] = service["spec"]["ports"]
    [door] = peili["ports"]
    assert port == {"name": PORT_NAME, "port": door["containerPort"], "targetPort": door["name"]}
    [variable] = peili["env"]
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    [assignment] = settings.from_environment({variable["name"]: "node-1"}, known_keys())
    assert assignment.path == ("mirror", "identity")


def test_the_pods_may_read_what_the_router_reads(manifest: dict[str, Any], pod: dict[str, Any]) -> None:
    account = manifest["ServiceAccount"]["metadata"]["name"]
    assert pod["serviceAccountName"] == account
    assert "automountServiceAccountToken" not in pod
    binding = manifest["RoleBinding"]
    assert binding["roleRef"]["name"] == manifest["Role"]["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "peili"}]


def test_the_namespace_allows_such_pods(pod: dict[str, Any]) -> None:
    """If a cluster enforces the Pod Security Standards, only the level `privileged` allows what these pods need."""
    assert pod["hostNetwork"] or any("hostPath" in volume for volume in pod["volumes"])
    labels = load(rendered_base())["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert "pod-security.kubernetes.io/enforce=privileged" in (FOLDER / "chart/templates/NOTES.txt").read_text()


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


def check(text: str, key: Path) -> Config:
    """Let peili check a configuration of the chart, in a pod whose Secret has the file `key`."""
    create_key_file(key)
    file = key.with_name("peili.toml")
    file.write_text(text)
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", "--check", "--config", str(file)]
    done = subprocess.run(
        [*command, f"--set=peer.shared_key_file={key}"], env=IN_A_POD, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "the configuration is valid\n"), done.stderr
    return parse_config(settings.merge(settings.from_file(file)))


def test_the_values_of_the_chart_arrive_where_they_belong(tmp_path: Path) -> None:
    values = ("registries={docker.io,*.example.com}", "exclude={:latest$}", "resolver=peers")
    folders = ("containerd.runDirectory=/run/k3s/containerd", "containerd.content=/var/lib/rancher/content")
    ports = ("ports.local=6050", "ports.peer=6051", "ports.ops=6052", "zones.nodeLabel=example.com/room")
    more = ("key.value=peili-key-v1:abc", "key.secretName=ours", "resources.limits.memory=1Gi", "image.tag=1.2.3")
    extra = ("containerd.configPath=", "extraConfig=[limits]\nchildren = 3")
    found = load(rendered_chart(*values, *folders, *ports, *more, *extra))
    config = check(found["ConfigMap"]["data"]["peili.toml"], tmp_path / "key")
    assert config.mirror.registries == ("docker.io", "*.example.com")
    assert config.mirror.exclude == (":latest$",)
    assert config.resolver.kind == "peers"
    assert config.store.options["address"] == "/run/k3s/containerd/containerd.sock"
    assert (config.local.listen, config.peer.listen) == (("127.0.0.1:6050",), ("[::]:6051",))
    assert config.ops == ("127.0.0.1:6052",)
    assert config.router.options["zone_label"] == "example.com/room"
    assert config.limits.children == 3
    assert found["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    assert found["Secret"]["metadata"]["name"] == "ours"
    assert found["Secret"]["stringData"] == {"key": "peili-key-v1:abc"}
    pod = found["DaemonSet"]["spec"]["template"]["spec"]
    [peili] = pod["containers"]
    assert "initContainers" not in pod
    assert peili["image"] == "registry.example/peili:1.2.3"
    assert peili["resources"]["limits"]["memory"] == "1Gi"
    assert mounted(pod, peili, "/etc/peili-key")[1]["secret"]["secretName"] == "ours"
    for folder in ("/run/k3s/containerd", "/var/lib/rancher/content"):
        assert mounted(pod, peili, folder)[1]["hostPath"]["path"] == folder
    assert {peili[f"{each}Probe"]["httpGet"]["port"] for each in ("startup", "liveness", "readiness")} == {6052}


def test_with_a_service_monitor_the_metrics_are_at_a_port_of_the_node(tmp_path: Path) -> None:
    found = load(rendered_chart("serviceMonitor.enabled=true", "serviceMonitor.labels.release=prometheus"))
    config = check(found["ConfigMap"]["data"]["peili.toml"], tmp_path / "key")
    assert config.ops == ("[::]:5052",)
    monitor = found["ServiceMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    [scraped] = monitor["spec"]["endpoints"]
    assert scraped["path"] == "/metrics"
    ports = {each["name"]: each["port"] for each in found["Service"]["spec"]["ports"]}
    assert ports == {"peer": 5051, scraped["port"]: 5052}
    [peili] = found["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert {each["name"]: each["hostPort"] for each in peili["ports"]} == ports


@pytest.mark.parametrize("value", ["ports.peer=0", "key.value=secret", "registry=docker.io", "containerd.content=x"])
def test_wrong_values_of_the_chart_are_refused(value: str) -> None:
    with pytest.raises(CommandFailed, match=value.partition("=")[0].replace(".", "[./]")):
        rendered_chart(value)
