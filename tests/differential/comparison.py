"""Compares peili's view of a hosts directory, and its edits, with what containerd does.

These rules are checked in this order:

- No exception is raised.
- `hosts show` lists the hosts to which containerd sends requests, in the same order, or reports that it cannot tell.
- After `hosts apply`, containerd requests content from the door first, and then from the same hosts as before, in the
  same order. Requests for tags do not change. Alternatively, the file is unchanged and the outcome has the reason.
- After `hosts remove`, the directory is the same as at the beginning, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.differential.corpus import Case
from tests.differential.oracle import ContainerdOracle, Pulls
from tests.differential.recording_servers import RecordedRequest
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import HostsFiles, Outcome, RegistryStatus
from peili.adapters.containerd.hosts_toml.model import RegistryHost

CAN_NOT_TELL = "cannot tell"
NEVER = "containerd never uses this directory"


def disagreements(case: Case, oracle: ContainerdOracle, folder: Path, *, tags: bool = True) -> list[str]:
    """Return a line for each rule that does not hold for `case`.

    Args:
        case: The hosts directory, with `%P%` for the port of the servers.
        oracle: The containerd.
        folder: The path of the hosts directory, which does not exist yet.
        tags: Whether to pull tags, too. Without them, this takes half as long.
    """
    return [*_disagreements(case.at(oracle.servers.port), oracle, folder, tags=tags)]


def _disagreements(case: Case, oracle: ContainerdOracle, folder: Path, *, tags: bool) -> Iterator[str]:
    make_tree(folder, case.tree)
    original = snapshot(folder)
    hosts = HostsFiles(case.door, config_path=[folder], registries=case.apply, version=oracle.version)

    before = oracle.pull(folder, case.registry, tags=tags)
    yield from _check_show("before apply", hosts, case, before)

    outcome = hosts.apply()
    after = oracle.pull(folder, case.registry, tags=tags) if outcome.changes else before
    yield from _check_show("after apply", hosts, case, after)
    is_unchanged = all(snapshot(folder).get(name) == content for name, content in original.items())
    if not (outcome.problems and is_unchanged) and not case.marked:  # `apply` replaces a section that exists already
        yield from _check_apply(outcome, case, before, after)
    again = hosts.apply()
    if again.changes or [*map(str, again.problems)] != [*map(str, outcome.problems)]:
        yield f"a second apply: {_summary(again)}"

    removed = hosts.remove()
    if snapshot(folder) != original and not case.marked:
        yield f"remove did not restore the directory: {_summary(removed)}"


def _check_show(when: str, hosts: HostsFiles, case: Case, pulls: Pulls) -> Iterator[str]:
    """Compare what `show` reports with the requests."""
    status = _status_in_force(hosts.show(), case.registry)
    if status is not None and any(CAN_NOT_TELL in note for note in status.notes):
        return
    for what, capabilities, requests in (
        ("a tag", ("pull", "resolve"), pulls.tag),
        ("content", ("pull",), pulls.content),
    ):
        if requests is None:
            continue
        expected = _url_patterns(status, case.registry, capabilities)
        actual = _urls(requests)
        if len(expected) != len(actual) or not all(map(re.fullmatch, expected, actual)):
            yield f"{when}, for {what}: show reports {expected}, but containerd uses {actual}"


def _status_in_force(statuses: Sequence[RegistryStatus], registry: str) -> RegistryStatus | None:
    used = [each for each in statuses if not any(note.startswith(NEVER) for note in each.notes)]
    for name in (registry, "_default"):
        if found := [each for each in used if each.registry == name]:
            assert len(found) == 1, f"two directories are reported as used: {found}"
            return found[0]
    return None


def _url_patterns(status: RegistryStatus | None, registry: str, capabilities: Sequence[str]) -> list[str]:
    """Return the roots of the API to which containerd sends requests according to `show`, as regular expressions."""
    if status is None:
        return [_registry_pattern(registry)]
    if status.is_broken:
        return []
    return [
        _registry_pattern(registry) if host.url is None else _host_pattern(host)
        for host in status.hosts
        if host.has_capabilities(*capabilities)
    ]


def _registry_pattern(registry: str) -> str:
    is_local = registry.startswith(("localhost", "127.", "[::1]"))
    name = "registry-1.docker.io" if registry == "docker.io" else registry
    return ("https?" if is_local else "https") + re.escape(f"://{name}/v2")


def _host_pattern(host: RegistryHost) -> str:
    """Return the pattern of a host. With certificate settings, containerd tries HTTPS first, then the URL's scheme."""
    root = _api_root(host.url or "", override_path="override_path" in host.settings)
    scheme, _, rest = root.partition(":")
    return scheme + ("s?" if {"ca", "client", "skip_verify"} & {*host.settings} else "") + re.escape(f":{rest}")


def _api_root(url: str, *, override_path: bool) -> str:
    """Return the root of the API, by containerd's documentation: ``/v2`` is added if the path does not end with it."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    path = parts.path.rstrip("/")
    suffix = "" if override_path or path.endswith("/v2") else "/v2"
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(default_port)}{path}{suffix}"


def _urls(requests: Sequence[RecordedRequest]) -> list[str]:
    return [each.host + each.path.partition("/c/manifests/")[0] for each in requests]


def _check_apply(outcome: Outcome, case: Case, before: Pulls, after: Pulls) -> Iterator[str]:
    """Check that the same hosts are used as before, with the door in front of them, or not for a stated reason."""
    if (tag := _urls_and_headers(after.tag)) != _urls_and_headers(before.tag):
        yield f"apply changed the requests for a tag: {_urls_and_headers(before.tag)}, then {tag}"
    old, new = _urls_and_headers(before.content), _urls_and_headers(after.content)
    door = _api_root(case.door, override_path=False)
    if new == old:
        is_first = old and old[0][0].replace("https:", "http:") == door
        if not is_first and old and not outcome.problems:  # without any request, the file may become valid later
            yield f"containerd does not use the door, and no reason is reported: {new}"
    elif new != [(door, {}), *old]:
        yield f"apply changed the requests: {old}, then {new}; {_summary(outcome)}"


def _urls_and_headers(requests: Sequence[RecordedRequest] | None) -> list[tuple[str, dict[str, str]]]:
    """Return the URL of each request, and its headers from hosts.toml."""
    return [
        (url, {name: value for name, value in each.headers.items() if name.startswith("x-")})
        for url, each in zip(_urls(requests or ()), requests or (), strict=True)
    ]


def _summary(outcome: Outcome) -> str:
    return "; ".join(map(str, (*outcome.changes, *outcome.problems))) or "nothing to do"
