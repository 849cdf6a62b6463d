"""Patches of a Talos machine configuration.

Talos merges documents with the same name, appends lists, and removes a document with `$patch: delete`. A document
overrides the older form. This was checked with Talos's config packages, 1.12.0 and 1.13.0, on the patches that this
module contains in full.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peili.adapters.files.yaml_text import dump, parse_all, parse_documents
from peili.adapters.talos import (
    InvalidMachineConfig,
    MirrorEndpoint,
    RegistryMirrors,
    merge_patch,
    parse_config,
    patch_to_apply,
    patch_to_remove,
)
from peili.mirror import ConfigError

PEILI = "http://127.0.0.1:5050"

OLD = """\
version: v1alpha1
machine:
  type: worker
  registries:
    mirrors:
      ghcr.io:
        endpoints:
          - https://harbor.example/v2/proxy-ghcr.io
        overridePath: true
        skipFallback: true
cluster:
  controlPlane:
    endpoint: https://1.2.3.4:6443
"""

NEW = """\
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: docker.io # the registry
# asked in this order
endpoints:
  - url: "https://harbor.example/v2/proxy-docker.io" # Harbor
    overridePath: true
  - url: https://my-mirror.local:5000
skipFallback: true
"""

OTHERS = """\
---
apiVersion: v1alpha1
kind: RegistryTLSConfig
name: harbor.example
insecureSkipVerify: true
"""

HARBOR = MirrorEndpoint("https://harbor.example/v2/proxy-docker.io", override_path=True)


def test_an_existing_document_is_deleted_and_added_again_with_its_comments() -> None:
    assert (
        patch_to_apply(parse_config(OLD + NEW + OTHERS), PEILI, ["docker.io"]).text
        == """\
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: docker.io
$patch: delete
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: docker.io # the registry
# asked in this order
endpoints:
  - url: http://127.0.0.1:5050
  - url: "https://harbor.example/v2/proxy-docker.io" # Harbor
    overridePath: true
  - url: https://my-mirror.local:5000
skipFallback: true
"""
    )


def test_the_older_form_becomes_a_document() -> None:
    assert (
        patch_to_apply(parse_config(OLD), PEILI, ["ghcr.io"]).text
        == """\
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: ghcr.io
endpoints:
  - url: http://127.0.0.1:5050
  - url: https://harbor.example/v2/proxy-ghcr.io
    overridePath: true
skipFallback: true
"""
    )


def test_a_registry_without_mirrors_still_falls_back() -> None:
    assert (
        patch_to_apply(parse_config(OLD), PEILI, ["quay.io", "*"]).text
        == """\
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: quay.io
endpoints:
  - url: http://127.0.0.1:5050
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: '*'
endpoints:
  - url: http://127.0.0.1:5050
"""
    )


def test_by_default_all_registries_are_changed() -> None:
    patch = patch_to_apply(parse_config(OLD + NEW), PEILI)
    first, harbor = MirrorEndpoint(PEILI), MirrorEndpoint("https://harbor.example/v2/proxy-ghcr.io", override_path=True)
    local = MirrorEndpoint("https://my-mirror.local:5000")
    assert patch.mirrors == (
        RegistryMirrors("*", (first,)),
        RegistryMirrors("ghcr.io", (first, harbor), skip_fallback=True),
        RegistryMirrors("docker.io", (first, HARBOR, local), skip_fallback=True),
    )
    assert merge_patch(parse_config(OLD + NEW), patch.text) == {each.registry: each for each in patch.mirrors}


def test_nothing_changes_if_peili_is_first_already() -> None:
    text = NEW.replace("endpoints:\n", f"endpoints:\n  - url: {PEILI}/\n")
    assert patch_to_apply(parse_config(text), PEILI, ["docker.io"]).text == ""


def test_peili_is_moved_up_if_it_is_not_first() -> None:
    [mirrors] = patch_to_apply(
        parse_config(f"{NEW}".replace("skip", f"  - url: {PEILI}\nskip")), PEILI, ["docker.io"]
    ).mirrors
    assert [each.url for each in mirrors.endpoints] == [PEILI, HARBOR.url, "https://my-mirror.local:5000"]


def test_a_document_without_endpoints_gets_some_and_keeps_its_other_keys() -> None:
    text = "apiVersion: v1alpha1\nkind: RegistryMirrorConfig\nname: docker.io\nskipFallback: false\nnewer: [1]\n"
    deleted, document = parse_all(patch_to_apply(parse_config(text), PEILI, ["docker.io"]).text)
    assert list(document) == ["apiVersion", "kind", "name", "endpoints", "skipFallback", "newer"]
    assert document["newer"] == [1]
    assert deleted["$patch"] == "delete"


def test_the_patch_to_remove_restores_the_mirrors() -> None:
    before = parse_config(OLD + NEW)
    there = parse_config(OLD + patched(NEW, patch_to_apply(before, PEILI).text))
    patch = patch_to_remove(there, PEILI)
    assert (
        patch.text
        == """\
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: ghcr.io
$patch: delete
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: '*'
$patch: delete
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: docker.io
$patch: delete
---
apiVersion: v1alpha1
kind: RegistryMirrorConfig
name: docker.io # the registry
# asked in this order
endpoints:
  - url: "https://harbor.example/v2/proxy-docker.io" # Harbor
    overridePath: true
  - url: https://my-mirror.local:5000
skipFallback: true
"""
    )
    assert merge_patch(there, patch.text) == before.mirrors
    assert patch_to_remove(before, PEILI).text == ""


def patched(text: str, patch: str) -> str:
    """Return the documents of a configuration, without the first one, after Talos has merged the patch."""
    new = {each["name"]: each for each in parse_documents(text)}
    for each in parse_documents(patch):
        if "$patch" in each:
            del new[each["name"]]
        else:
            new[each["name"]] = each
    return "---\n" + dump(list(new.values()))


def test_the_resource_that_talosctl_prints_is_accepted() -> None:
    head = {
        "node": "172.20.0.2",
        "metadata": {"namespace": "config", "type": "MachineConfigs.config.talos.dev", "id": "v1alpha1"},
    }
    assert parse_config(dump([{**head, "spec": OLD + NEW}])).mirrors == parse_config(OLD + NEW).mirrors
    assert parse_config(dump([{**head, "spec": parse_all(OLD)[0]}])).mirrors == parse_config(OLD).mirrors


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty; a machine configuration is expected"),
        ("a: [", "can't be read as YAML: line 1, column 5: "),
        ("[]", "each document must be a mapping"),
        ("name: x\n", "a document has neither kind nor machine; a machine configuration is expected"),
        ("kind: RegistryMirrorConfig\nname: a.b\n", "RegistryMirrorConfig: apiVersion must be v1alpha1, not None"),
        ("kind: RegistryMirrorConfig\napiVersion: v1alpha1\n", "RegistryMirrorConfig: name is missing"),
        (NEW + NEW, "two documents RegistryMirrorConfig for docker.io; Talos allows one"),
        (NEW.replace("true", "maybe"), "RegistryMirrorConfig docker.io: overridePath: must be true or false"),
        (NEW.replace("- url", "- uri"), "RegistryMirrorConfig docker.io: url: must be a URL"),
        (OLD.replace("true", "1"), "machine.registries.mirrors.ghcr.io.overridePath: must be true or false"),
        ("machine: {registries: {mirrors: []}}", "machine.registries.mirrors: must be a mapping"),
        (
            "machine: {registries: {mirrors: {a.b: {endpoints: x}}}}",
            "machine.registries.mirrors.a.b: endpoints must be ",
        ),
    ],
)
def test_an_invalid_machine_configuration_is_one_line(text: str, why: str) -> None:
    with pytest.raises(InvalidMachineConfig) as raised:
        parse_config(text)
    assert str(raised.value).startswith(why)
    assert "\n" not in str(raised.value)


def test_wrong_arguments_are_one_line() -> None:
    for change in (patch_to_apply, patch_to_remove):
        with pytest.raises(ConfigError, match=r"^mirror: http://HOST:PORT, as containerd reaches the "):
            change(parse_config(OLD), "peili")
        with pytest.raises(ConfigError, match=r"^registries: host names such as docker\.io, not 'a/b'$"):
            change(parse_config(OLD), PEILI, ["a/b"])


_NAMES = st.sampled_from(["*", "docker.io", "ghcr.io", "localhost:5000"])
_ENDPOINTS = st.lists(
    st.builds(MirrorEndpoint, st.sampled_from([PEILI, "https://a.example", "https://b.example/v2/x"]), st.booleans()),
    max_size=3,
)
_MIRRORS = st.dictionaries(_NAMES, st.tuples(_ENDPOINTS, st.booleans()), max_size=4)


@settings(max_examples=25)
@given(_MIRRORS, _MIRRORS, st.lists(_NAMES, unique=True))
def test_peili_is_first_and_the_other_mirrors_follow_in_any_configuration(
    old: dict[str, tuple[list[MirrorEndpoint], bool]],
    new: dict[str, tuple[list[MirrorEndpoint], bool]],
    registries: list[str],
) -> None:
    first = {
        name: {
            "endpoints": [each.url for each in endpoints],
            "overridePath": any(each.override_path for each in endpoints),
            "skipFallback": skip,
        }
        for name, (endpoints, skip) in old.items()
    }
    second = [
        {
            "apiVersion": "v1alpha1",
            "kind": "RegistryMirrorConfig",
            "name": name,
            "endpoints": [{"url": each.url, "overridePath": each.override_path} for each in endpoints],
            "skipFallback": skip,
        }
        for name, (endpoints, skip) in new.items()
    ]
    config = parse_config(dump([{"machine": {"registries": {"mirrors": first}}}, *second]))
    ours = MirrorEndpoint(PEILI)
    after = merge_patch(config, patch_to_apply(config, PEILI, registries).text)
    for name in registries or {"*", *old, *new}:
        was = config.mirrors.get(name, RegistryMirrors(name))
        now = after[name]
        assert now.endpoints[0] == ours
        assert now.skip_fallback == was.skip_fallback
        assert [each for each in now.endpoints if each != ours] == [each for each in was.endpoints if each != ours]
    without = merge_patch(config, patch_to_remove(config, PEILI, registries).text)
    for name, was in config.mirrors.items():
        now = without.get(name, RegistryMirrors(name))
        chosen = name in registries or not registries
        assert now.endpoints == tuple(each for each in was.endpoints if each != ours or not chosen)
