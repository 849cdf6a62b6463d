"""What a cluster does for the pods of peili: a service account with its token, and EndpointSlices of a Service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.api_server import ApiServer
from tests.lab.processes import wait_for

DISCOVERY = "/apis/discovery.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
NODES = "/api/v1/nodes"
READY = {"ready": True, "serving": True, "terminating": False}


def endpoint(pod: str, *addresses: str, **more: Any) -> dict[str, Any]:
    """Return an endpoint as the controller of EndpointSlices writes it."""
    reference = {"kind": "Pod", "name": pod, "namespace": "peili", "uid": f"uid-of-{pod}"}
    return {"addresses": list(addresses), "conditions": READY, "targetRef": reference, **more}


def endpoint_slice(
    name: str, *endpoints: Mapping[str, Any], service: str = "peili", port: int = 5051, family: str = "IPv4"
) -> dict[str, Any]:
    """Return an EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": "peer", "port": port, "protocol": "TCP"}],
    }


class ServiceAccount:
    """The service account of peili's pods in a new namespace, and the folder that the kubelet mounts for it."""

    def __init__(self, api: ApiServer, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self._api = api
        api.create_namespace(namespace)
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "peili"}}
        api.apply(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        folder.mkdir()
        (folder / "namespace").write_text(namespace)
        (folder / "ca.crt").write_bytes(api.ca.read_bytes())
        self.write_token(api.token(namespace, "peili"))

    @property
    def slices(self) -> str:
        """The path of the namespace's EndpointSlices."""
        return f"{DISCOVERY}/namespaces/{self.namespace}/endpointslices"

    def write_token(self, token: str) -> None:
        """Replace the token, as the kubelet does before it expires."""
        new = self.folder / "token.new"
        new.write_text(token)
        new.replace(self.folder / "token")

    def renew_token(self) -> None:
        self.write_token(self._api.token(self.namespace, "peili"))

    def allow_slices(self) -> None:
        """Let the account read the EndpointSlices of its namespace."""
        rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
        self._allow("Role", f"{RBAC}/namespaces/{self.namespace}", "peili", rules)
        self.wait_until_allowed(self.slices)

    def allow_nodes(self) -> None:
        """Let the account read the nodes of the cluster."""
        rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
        self._allow("ClusterRole", RBAC, f"nodes-for-{self.namespace}", rules)
        self.wait_until_allowed(NODES)

    def wait_until_allowed(self, *paths: str) -> None:
        """Wait until the account may list these resources. The server notices a new role a moment later."""
        headers = {"Authorization": f"Bearer {(self.folder / 'token').read_text()}"}
        for path in paths:
            wait_for(lambda path=path: self._api.admin.get(path, headers=headers).is_success, f"it may list {path}")  # type: ignore[misc]  # bound early

    def _allow(self, kind: str, path: str, name: str, rules: Sequence[Mapping[str, Any]]) -> None:
        version = "rbac.authorization.k8s.io/v1"
        role = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "rules": rules}
        self._api.apply(f"{path}/{kind.lower()}s", role)
        binding = {
            "apiVersion": version,
            "kind": f"{kind}Binding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "peili", "namespace": self.namespace}],
        }
        self._api.apply(f"{path}/{kind.lower()}bindings", binding)

    def set(self, *slices: Mapping[str, Any]) -> None:
        """Create or replace EndpointSlices."""
        for each in slices:
            self._api.apply(self.slices, each)

    def delete(self, name: str) -> None:
        """Delete an EndpointSlice."""
        self._api.delete(f"{self.slices}/{name}")
