"""What a registries.yaml means, and how it is changed: the text is edited, parsed again, and refused if it does not
say exactly what it shall. Text only; files are file.py's business.

The format is that of k3s and RKE2, "Private Registry Configuration": ``mirrors`` maps a registry, or ``*`` for all that
have no entry, to ``endpoint`` and ``rewrite``; ``configs`` holds credentials and TLS, and is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peili.adapters.files.urls import same_door
from peili.adapters.files.yaml_text import NotYaml, is_table, one_plain
from peili.adapters.k3s import marks
from peili.adapters.k3s.form import Unusable, check_form
from peili.adapters.k3s.inserting import NoPlace, inserted
from peili.mirror import ConfigError
from peili.mirror.oci.selection import check_registries
from peili.mirror.peer_api.peers import base_url

EVERY = "*"
"""Stands for the registries that have no entry of their own."""
EVERY_AS_FOLDER = "_default"
"""What k3s makes of `EVERY`. Users write it themselves, and it means the same."""


_IN_THE_WAY = "what it would say then is something else; an anchor, a tag or a block of text is in the way"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says of one registry. `rewrites`: whether names are rewritten for its endpoints."""

    registry: str
    endpoints: tuple[str, ...]
    rewrites: bool


def read(text: str) -> tuple[Entry, ...]:
    """The registries that have an entry, in order. Raises Unusable."""
    return tuple(
        Entry(registry, tuple(said.get("endpoint") or ()), bool(said.get("rewrite")))
        for registry, said in _mirrors(_meaning(text)).items()
    )


def configured(text: str) -> tuple[str, ...]:
    """The hosts that have credentials or TLS settings of their own. Raises Unusable."""
    configs: Any = _meaning(text).get("configs")
    return tuple(
        str(host)
        for host, said in (configs if is_table(configs) else {}).items()
        if is_table(said) and (said.get("auth") or said.get("tls"))
    )


def endpoints(text: str, registry: str) -> tuple[str, ...]:
    """Those that `registry` has. Raises Unusable."""
    return _endpoints(_meaning(text), registry)


def check(url: str, registries: Iterable[str]) -> None:
    """Raises ConfigError where `url` or one of `registries` is none."""
    try:
        base_url(url)
    except ValueError as error:
        raise ConfigError("mirror", "http://HOST:PORT, as containerd reaches the local door") from error
    check_registries(registry for registry in registries if registry != EVERY)


def chosen(text: str, registries: Sequence[str]) -> tuple[str, ...]:
    """`registries`; where there are none, all: `EVERY`, and each that has an entry of its own. Raises Unusable."""
    there = [entry.registry for entry in read(removed(text))]
    names = list(registries or [EVERY, *there])
    if EVERY_AS_FOLDER in there and EVERY in names:
        if EVERY in there:
            raise Unusable(
                f"it has both {EVERY!r} and {EVERY_AS_FOLDER!r}, and k3s uses one of them at random; remove one"
            )
        names[names.index(EVERY)] = EVERY_AS_FOLDER
    return tuple(dict.fromkeys(names))


def applied(text: str, url: str, registries: Sequence[str]) -> str:
    """`text` with `url` as the first endpoint of `registries`; others keep what they have, ours included.

    What is there already, ours or the same by somebody's hand, is not said twice. Raises Unusable.
    """
    if all(_is_first(endpoints(text, registry), url) for registry in registries):
        _meaning(text)
        return text
    base, ours = _taken_apart(text)
    return _put(base, {**ours, **dict.fromkeys(registries, url)})


def removed(text: str, registries: Sequence[str] = ()) -> str:
    """`text` without what `applied` put there for `registries`, by default for all, whatever the URL was.

    Raises Unusable.
    """
    base, ours = _taken_apart(text)
    wanted = {*registries, EVERY_AS_FOLDER} if EVERY in registries else {*registries}  # `applied` may have chosen it
    kept = {registry: url for registry, url in ours.items() if wanted and registry not in wanted}
    return text if kept == ours else _put(base, kept)


def _taken_apart(text: str) -> tuple[str, dict[str, str]]:
    """`text` without anything of ours, and our URL by registry."""
    before = _meaning(text)
    base, urls = marks.without(text)
    if marks.MARK in base:
        line = next(place for place, each in enumerate(base.splitlines(), 1) if marks.MARK in each)
        raise Unusable(f"line {line} of what remains was peili's and is changed: take it out by hand")
    if base == text:
        return text, {}
    after = _proven(base)
    _check_removal(before, after, urls)
    return base, {
        registry: next(each for each in said["endpoint"] if each in urls)
        for registry, said in _mirrors(before).items()
        if _endpoints(before, registry) != _endpoints(after, registry)
    }


def _put(base: str, urls: Mapping[str, str]) -> str:
    """`base`, in which nothing is ours, with an endpoint in front for each registry of `urls`."""
    expected, new = _meaning(base), base
    for registry, url in urls.items():
        if _is_first(_endpoints(expected, registry), url):
            continue
        _add(expected, url, registry)
        if _endpoints(_proven(new), registry)[:1] != (url,):  # an alias may have brought it here
            new = _inserted(new, url, registry)
    if _proven(new) != expected:
        raise Unusable(_IN_THE_WAY)
    return new


def _is_first(endpoints: Sequence[str], url: str) -> bool:
    return bool(endpoints) and same_door(endpoints[0], url)


def _proven(text: str) -> dict[str, Any]:
    """The meaning of what we wrote ourselves."""
    try:
        return _meaning(text)
    except Unusable as error:
        raise Unusable(_IN_THE_WAY) from error


def _inserted(text: str, url: str, registry: str) -> str:
    try:
        return inserted(text, url, registry)
    except NoPlace as error:
        raise Unusable(str(error)) from error


def _meaning(text: str) -> dict[str, Any]:
    try:
        root = one_plain(text)
    except NotYaml as error:
        raise Unusable(f"can't be read as YAML: {error}") from error
    if root is None:
        return {}
    if not is_table(root):
        raise Unusable("a mapping with mirrors and configs is wanted at its root")
    check_form(text, root)
    return root


def _mirrors(root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    mirrors: dict[str, Any] = root.get("mirrors") or {}
    return {registry: said or {} for registry, said in mirrors.items()}


def _endpoints(root: dict[str, Any], registry: str) -> tuple[str, ...]:
    return tuple(_mirrors(root).get(registry, {}).get("endpoint") or ())


def _add(root: dict[str, Any], url: str, registry: str) -> None:
    """Say in `root` what the text shall say."""
    mirrors: dict[str, Any] = root.get("mirrors") or {}
    said: dict[str, Any] = mirrors.get(registry) or {}
    root["mirrors"], mirrors[registry] = mirrors, said
    said["endpoint"] = [url, *(said.get("endpoint") or ())]


def _check_removal(before: dict[str, Any], after: dict[str, Any], ours: frozenset[str]) -> None:
    """Nothing may be missing but `ours`, once for each registry, and what held nothing else."""
    was, now = _mirrors(before), _mirrors(after)
    fine = (
        all(after.get(key) == value for key, value in before.items() if key != "mirrors") and now.keys() <= was.keys()
    )
    for registry, said in was.items():
        left = {key: value for key, value in said.items() if key != "endpoint"}
        rest = {key: value for key, value in now.get(registry, {}).items() if key != "endpoint"}
        endpoints, remain = list(said.get("endpoint") or ()), list(now.get(registry, {}).get("endpoint") or ())
        without = next((i for i, each in enumerate(endpoints) if each in ours), len(endpoints))
        shorter = endpoints[:without] + endpoints[without + 1 :]
        fine = fine and left == rest and remain in (endpoints, shorter)
    if not fine:
        raise Unusable("without peili's lines it would say something else; take them out by hand")
