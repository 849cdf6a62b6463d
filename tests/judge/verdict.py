"""Compares what peili says of a hosts folder, and does to it, with what containerd does.

What has to hold, in the order in which it is looked at:

- Nothing ends in an exception.
- `hosts show` names those whom containerd asks, in their order, or says that it can't tell.
- After `hosts apply`, containerd asks the door first for content, and then all whom it asked before, in their order.
  For tags, which the door is not for, nothing changes. Or the file is as it was, and the outcome says why.
- After `hosts remove`, the folder is as it was before, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.judge.asked import Asked
from tests.judge.corpus import Case
from tests.judge.judge import Answers, Judge
from tests.support.trees import make_tree, snapshot

from peili.adapters.containerd import HostsFiles, Outcome, RegistryStatus
from peili.adapters.containerd.hosts_toml.model import RegistryHost

CAN_NOT_TELL = "cannot tell"
NEVER = "containerd never uses this directory"


def disagreements(case: Case, judge: Judge, folder: Path, *, tags: bool = True) -> list[str]:
    """What does not hold for `case`, each in one line; `folder` does not exist yet. Without `tags`, only content is
    pulled, which takes half as long.
    """
    return [*_disagreements(case.at(judge.listeners.port), judge, folder, tags=tags)]


def _disagreements(case: Case, judge: Judge, folder: Path, *, tags: bool) -> Iterator[str]:
    make_tree(folder, case.tree)
    was = snapshot(folder)
    hosts = HostsFiles(case.door, config_path=[folder], registries=case.apply, version=judge.version)

    before = judge.asked(folder, case.registry, tags=tags)
    yield from _of_show("before", hosts, case, before)

    outcome = hosts.apply()
    after = judge.asked(folder, case.registry, tags=tags) if outcome.changes else before
    yield from _of_show("after", hosts, case, after)
    untouched = all(snapshot(folder).get(name) == what for name, what in was.items())
    if not (outcome.problems and untouched) and not case.marked:  # of some files each run makes something else
        yield from _of_apply(outcome, case, before, after)
    again = hosts.apply()
    if again.changes or [*map(str, again.problems)] != [*map(str, outcome.problems)]:
        yield f"apply once more: {_told(again)}"

    removed = hosts.remove()
    if snapshot(folder) != was and not case.marked:
        yield f"after remove it is not as it was: {_told(removed)}"


def _of_show(when: str, hosts: HostsFiles, case: Case, answers: Answers) -> Iterator[str]:
    """What `show` says against what is."""
    said = _in_force(hosts.show(), case.registry)
    if said is not None and any(CAN_NOT_TELL in note for note in said.notes):
        return
    for what, capabilities, asked in (
        ("a tag", ("pull", "resolve"), answers.tag),
        ("content", ("pull",), answers.content),
    ):
        if asked is None:
            continue
        claimed = _claimed(said, case.registry, capabilities)
        really = _places(asked)
        if len(claimed) != len(really) or not all(map(re.fullmatch, claimed, really)):
            yield f"{when}, for {what}: show says {claimed}, but containerd asks {really}"


def _in_force(shown: Sequence[RegistryStatus], registry: str) -> RegistryStatus | None:
    looked_at = [each for each in shown if not any(note.startswith(NEVER) for note in each.notes)]
    for name in (registry, "_default"):
        if found := [each for each in looked_at if each.registry == name]:
            assert len(found) == 1, f"two folders are said to be in force: {found}"
            return found[0]
    return None


def _claimed(said: RegistryStatus | None, registry: str, capabilities: Sequence[str]) -> list[str]:
    """The URLs of the API's roots of those who are asked, as `show` says; each is a pattern."""
    if said is None:
        return [_of_registry(registry)]
    if said.is_broken:
        return []
    return [
        _of_registry(registry) if host.url is None else _pattern(host)
        for host in said.hosts
        if host.has_capabilities(*capabilities)
    ]


def _of_registry(registry: str) -> str:
    local = registry.startswith(("localhost", "127.", "[::1]"))
    name = "registry-1.docker.io" if registry == "docker.io" else registry
    return ("https?" if local else "https") + re.escape(f"://{name}/v2")


def _pattern(host: RegistryHost) -> str:
    """A containerd that is told about certificates tries HTTPS first, and then what the URL says."""
    root = _root(host.url or "", as_it_is="override_path" in host.settings)
    scheme, _, rest = root.partition(":")
    return scheme + ("s?" if {"ca", "client", "skip_verify"} & {*host.settings} else "") + re.escape(f":{rest}")


def _root(url: str, *, as_it_is: bool) -> str:
    """As containerd's documentation has it: ``/v2`` is added unless it is there, or the path is taken as it is."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    path = parts.path.rstrip("/")
    added = "" if as_it_is or path.endswith("/v2") else "/v2"
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(usual)}{path}{added}"


def _places(asked: Sequence[Asked]) -> list[str]:
    return [each.host + each.path.partition("/c/manifests/")[0] for each in asked]


def _of_apply(outcome: Outcome, case: Case, before: Answers, after: Answers) -> Iterator[str]:
    """Whether those who were asked are still asked, with the door in front or for a reason not."""
    if (tag := _exactly(after.tag)) != _exactly(before.tag):
        yield f"apply changed who is asked for a tag: {_exactly(before.tag)}, then {tag}"
    old, new = _exactly(before.content), _exactly(after.content)
    door = _root(case.door, as_it_is=False)
    if new == old:
        there = old and old[0][0].replace("https:", "http:") == door
        if not there and old and not outcome.problems:  # where nobody was asked, it may be all right one day
            yield f"the door is not asked, and nobody says why: {new}"
    elif new != [(door, {}), *old]:
        yield f"apply changed who is asked: {old}, then {new}; {_told(outcome)}"


def _exactly(asked: Sequence[Asked] | None) -> list[tuple[str, dict[str, str]]]:
    """With the headers that hosts.toml gives."""
    return [
        (place, {name: value for name, value in each.headers.items() if name.startswith("x-")})
        for place, each in zip(_places(asked or ()), asked or (), strict=True)
    ]


def _told(outcome: Outcome) -> str:
    return "; ".join(map(str, (*outcome.changes, *outcome.problems))) or "nothing to do"
