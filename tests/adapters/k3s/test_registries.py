"""The text of a registries.yaml: what is added, and that all of it can be removed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.adapters.k3s.yamls import (
    DOCUMENTED,
    EMBEDDED,
    PEILI,
    PRIVATE,
    REWRITE,
    STYLES,
    VALUES,
    WITH_WILDCARD,
    Style,
    written,
)

from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.yaml_text import parse_one
from peili.adapters.k3s.registries import WILDCARD, chosen_registries, read_entries, with_mirror, without_mirror

OTHER = "http://127.0.0.1:6060"


def applied(text: str, url: str, registries: Sequence[str]) -> str:
    return with_mirror(text, url, chosen_registries(text, registries))


def test_an_existing_list_of_endpoints_gets_a_first_line() -> None:
    assert applied(PRIVATE, PEILI, ["docker.io"]) == PRIVATE.replace(
        "    endpoint:\n", '    endpoint:\n      - "http://127.0.0.1:5050" # added by peili\n'
    )


def test_a_registry_without_an_entry_gets_one_and_the_other_entries_stay() -> None:
    assert applied(PRIVATE, PEILI, ["ghcr.io"]) == PRIVATE.replace(
        "mirrors:\n",
        "mirrors:\n"
        '  "ghcr.io": # added by peili\n'
        "    endpoint: # added by peili\n"
        '      - "http://127.0.0.1:5050" # added by peili\n',
    )


def test_rewrites_stay() -> None:
    [entry] = read_entries(applied(REWRITE, PEILI, ["docker.io"]))
    assert entry.endpoints == (PEILI, "https://registry.example.com:5000")
    assert entry.rewrites
    assert applied(REWRITE, PEILI, ["docker.io"]).endswith('      "^rancher/(.*)": "mirrorproject/rancher-images/$1"\n')


def test_an_empty_entry_is_filled() -> None:
    text = applied(EMBEDDED, PEILI, ["registry.k8s.io"])
    assert text == EMBEDDED + '    endpoint: # added by peili\n      - "http://127.0.0.1:5050" # added by peili\n'


def test_a_flow_list_gets_a_first_item_after_the_bracket() -> None:
    text = applied(WITH_WILDCARD, PEILI, ["registry.example.com"])
    assert (
        '    endpoint: ["http://127.0.0.1:5050", # added by peili\n'
        '               "http://one.example:5000", "http://two.example:5000/v2/proxy"]\n'
    ) in text


def test_json_is_yaml() -> None:
    text = '{"mirrors": {"docker.io": {"endpoint": ["https://a.example"]}}}'
    new = applied(text, PEILI, ())
    assert {entry.registry: entry.endpoints for entry in read_entries(new)} == {
        WILDCARD: (PEILI,),
        "docker.io": (PEILI, "https://a.example"),
    }
    assert without_mirror(new) == text


@pytest.mark.parametrize("name", DOCUMENTED)
def test_by_default_peili_is_first_for_every_registry(name: str) -> None:
    text = DOCUMENTED[name]
    before = {entry.registry: entry for entry in read_entries(text)}
    after = {entry.registry: entry for entry in read_entries(applied(text, PEILI, ()))}
    assert set(after) == {WILDCARD, *before}
    for registry, entry in after.items():
        assert entry.endpoints == (PEILI, *(before[registry].endpoints if registry in before else ()))
    assert parse_one(applied(text, PEILI, ())).get("configs") == parse_one(text).get("configs")


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("registries", [(), ("docker.io",), (WILDCARD, "quay.io", "registry.example.com")], ids=str)
def test_applying_again_changes_nothing_and_removing_restores_the_text(name: str, registries: tuple[str, ...]) -> None:
    text = DOCUMENTED[name]
    once = applied(text, PEILI, registries)
    assert applied(once, PEILI, registries) == once
    assert without_mirror(once) == text


def test_a_new_url_replaces_the_old_one() -> None:
    moved = applied(applied(PRIVATE, PEILI, ()), OTHER, ())
    assert moved == applied(PRIVATE, OTHER, ())
    assert PEILI not in moved


def test_registries_are_added_and_removed_one_by_one() -> None:
    docker = applied(WITH_WILDCARD, PEILI, ["docker.io"])
    both = applied(docker, OTHER, ["quay.io"])
    assert {entry.registry: entry.endpoints[0] for entry in read_entries(both)} == {
        "docker.io": PEILI,
        "quay.io": OTHER,
        "*": "https://registry.example.com:5000",
        "registry.example.com": "http://one.example:5000",
    }
    for registries, others in ((["quay.io"], {"docker.io"}), (["docker.io", "ghcr.io"], {"quay.io"})):
        assert {entry.registry for entry in read_entries(without_mirror(both, registries))} == {
            *others,
            "*",
            "registry.example.com",
        }
    assert without_mirror(both, ["quay.io"]) == docker
    assert without_mirror(both, ["ghcr.io"]) == both
    assert applied(both, PEILI, ["docker.io"]) == both
    assert without_mirror(both) == WITH_WILDCARD


def test_an_endpoint_that_a_user_put_first_is_not_changed() -> None:
    text = f"mirrors:\n  docker.io:\n    endpoint: [{PEILI}]\n"
    assert applied(text, PEILI, ["docker.io"]) == text
    assert without_mirror(text) == text


def test_the_list_of_an_anchor_is_changed_once() -> None:
    text = "mirrors:\n  docker.io: &all\n    endpoint:\n      - https://a.example\n  quay.io: *all\n"
    new = applied(text, PEILI, ())
    assert [entry.endpoints for entry in read_entries(new)] == [(PEILI,), *[(PEILI, "https://a.example")] * 2]
    assert without_mirror(new) == text
    with pytest.raises(CannotEdit, match="the changed file would mean something else, because of an anchor"):
        applied(text, PEILI, ["quay.io"])


EDITS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "another registry": (
        "",
        lambda text: text + "  quay.io: {}\n",
        "mirrors:\n  quay.io: {}\n",
    ),
    "another endpoint": (
        "",
        lambda text: text + "      - https://a.example\n",
        'mirrors:\n  "*":\n    endpoint:\n      - https://a.example\n',
    ),
    "a rewrite": (
        "",
        lambda text: text + "    rewrite: {a: b}\n",
        'mirrors:\n  "*":\n    rewrite: {a: b}\n',
    ),
    "credentials": (
        EMBEDDED,
        lambda text: "configs: {}\n" + text,
        "configs: {}\n" + EMBEDDED,
    ),
    "the URL of the mirror": (
        PRIVATE,
        lambda text: text.replace(PEILI, OTHER),
        PRIVATE,
    ),
    "the other endpoints are gone": (
        '{"mirrors": {"docker.io": {"endpoint": ["https://a.example"]}}}',
        lambda text: text.replace('"https://a.example"', ""),
        '{"mirrors": {"docker.io": {"endpoint": []}}}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edits_by_others_stay(name: str) -> None:
    before, edit, remaining_text = EDITS[name]
    assert without_mirror(edit(applied(before, PEILI, ()))) == remaining_text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mirrors: [", "can't be read as YAML: line 1, column 11: "),
        ("a: 1\n---\nb: 2\n", "can't be read as YAML: 2 documents, but only one is allowed"),
        ("mirrors: {a: {}, a: {}}", "can't be read as YAML: line 1, column 18: found duplicate key"),
        ("- mirrors", "its root must be a mapping with mirrors and configs"),
        ("mirrors: [docker.io]", "mirrors: must be a mapping of registries"),
        ("mirrors: {1: {}}", "mirrors: must have the names of registries as keys, not 1"),
        ("mirrors: {docker.io: https://a}", "mirrors.docker.io: must be a mapping with endpoint and rewrite"),
        ("mirrors: {docker.io: {endpoint: x}}", "mirrors.docker.io.endpoint: must be a list of URLs"),
        ("mirrors: {docker.io: {endpoint: [1]}}", "mirrors.docker.io.endpoint: must be a list of URLs"),
        ("mirrors: null\n", "line 1: the mapping is missing; remove the key"),
        ("mirrors: {docker.io: null}\n", "line 1: the mapping is missing; remove the key"),
        ("mirrors: {docker.io: {endpoint: ~}}", "line 1: the list is missing; remove the key"),
        ("? mirrors\n: ghcr.io: {}\n", "the changed file would mean something else"),
        ("mirrors: {docker.io: !x {}}", "can't be read as YAML: line 1, column 22: could not determine a constructor"),
        ("mirrors: {docker.io: {at: 2001-99-99}}", "can't be read as YAML: ValueError: month must be in 1..12"),
    ],
)
def test_a_text_that_cannot_be_changed_is_one_line(text: str, why: str) -> None:
    with pytest.raises(CannotEdit) as raised:
        applied(text, PEILI, ["docker.io", "quay.io"])
    assert str(raised.value).startswith(why)
    assert "\n" not in str(raised.value)


def test_a_marked_line_that_a_user_changed_is_named() -> None:
    text = applied(PRIVATE, PEILI, ["docker.io"]).replace(f'"{PEILI}"', "'http://peili'")
    with pytest.raises(
        CannotEdit, match=r"^peili added line 4 of what remains, and somebody changed it: remove it by hand$"
    ):
        without_mirror(text)


def test_aliases_of_aliases_are_bounded() -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    with pytest.raises(CannotEdit, match="more than 200000 values"):
        read_entries(f"a0: &a0 [x]\n{levels}\n")


def applied_or_why(text: str, registries: list[str]) -> str | CannotEdit:
    try:
        return applied(text, PEILI, registries)
    except CannotEdit as error:
        return error


@settings(max_examples=40)
@given(
    VALUES, STYLES, st.lists(st.sampled_from(["docker.io", "*", "ghcr.io", "localhost:80"]), max_size=3, unique=True)
)
def test_any_style_of_yaml_is_changed_as_intended_and_restored(value: Any, style: Style, registries: list[str]) -> None:
    text = written(value, style)
    assert (parse_one(text) or None) == (value or None), "the test's own writer"
    new = applied_or_why(text, registries)
    if isinstance(new, CannotEdit):
        assert "remove the key" in str(new), text
        return
    was = {entry.registry: entry for entry in read_entries(text)}
    for entry in read_entries(new):
        before = was[entry.registry].endpoints if entry.registry in was else ()
        first = entry.registry in chosen_registries(text, registries) and before[:1] != (PEILI,)
        assert entry.endpoints == ((PEILI, *before) if first else before)
    assert {entry.registry for entry in read_entries(new)} == {*was, *chosen_registries(text, registries)}
    assert applied(new, PEILI, registries) == new
    assert without_mirror(new) == text


@given(
    st.text(st.sampled_from("mirrorsndpt:*&! -{}[],#'\"|>\n\r\t?~01\x85\u2028é\ufeff"), max_size=60)
    | st.text(max_size=60)
)
@example("mirrors: &a\n  *a")
@example("\r")
@example("# a\r")
@example("mirrors: !!timestamp 2001-99-99")
@example("[" * 500)
@example("&a [*a]")
def test_any_text_is_changed_and_restored_or_refused(text: str) -> None:
    new = applied_or_why(text, ["docker.io"])
    if isinstance(new, CannotEdit):
        assert len(str(new).splitlines()) == 1
        return
    assert without_mirror(new) == text
    assert applied(new, PEILI, ["docker.io"]) == new
