"""Configurations of containerd for test_matrix.py: what can be written in which form, and the files for a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

CRI = "io.containerd.grpc.v1.cri"
IMAGES = "io.containerd.cri.v1.images"

LAYOUTS = ("0 cri", "0 new", "2 old", "2 new", "3 old", "3 new", "4 new")
"""The version of the files, 0 for none, and the name that they use for the CRI plug-in."""

STRUCTURE: Mapping[str, Sequence[str]] = {
    "layout": LAYOUTS,
    # Whether an imported file has the settings, or other content next to them.
    "drop-in": ("none", "settings", "relative", "next to", "over", "2", "3"),
    "folders": ("one", "two", "first missing", "colon"),
    "pull": ("default", "local", "downloads", "annotations", "sync_fs"),
    "runtimes": ("no", "yes"),
}
"""What can be written in several forms that all lead to peili. The first form of each is the usual one."""

USUAL = {
    **{name: values[0] for name, values in STRUCTURE.items()},
    "discard": "no",
    "inline": "no",
    "snapshotter": "default",
    "hosts": "ours",
    "namespaces": "all",
}

DEVIATIONS: Sequence[Mapping[str, str]] = (
    {"layout": "no file"},
    {"layout": "0 old"},
    {"layout": "4 old"},
    {"drop-in": "unversioned"},
    {"folders": "unset"},
    {"folders": "unset", "pull": "local"},
    {"folders": "empty"},
    {"folders": "empty", "pull": "downloads"},
    {"folders": "unset", "inline": "mirrors"},
    {"discard": "yes"},
    {"discard": "yes", "runtimes": "yes", "layout": "2 old"},
    {"inline": "mirrors"},
    {"inline": "tls"},
    {"inline": "auth", "folders": "two"},
    {"snapshotter": "native"},
    {"snapshotter": "native", "runtimes": "yes", "layout": "2 old"},
    {"snapshotter": "proxy"},
    {"snapshotter": "stargz"},
    {"snapshotter": "missing"},
    {"hosts": "override"},
    {"hosts": "override v2"},
    {"hosts": "second"},
    {"hosts": "no pull"},
    {"hosts": "broken"},
    {"hosts": "none"},
    {"namespaces": "k8s.io"},
    {"namespaces": "default"},
    {"disabled": CRI},
    {"disabled": IMAGES},
    {"disabled": "cri"},
    {"disabled": "cri", "layout": "0 cri"},
)
"""What else may keep containerd from using peili, one deviation at a time."""

NAMESPACES = ("all", "k8s.io", "default")

_UNRELATED = '[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0.03\n'


def files(choice: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the files for a choice, by their paths relative to the directory of config.toml.

    Args:
        choice: One value for each key of `STRUCTURE`, and possibly a deviation.
        folder: The directory with the right hosts.toml.
    """
    number, _, name = choice["layout"].partition(" ")
    if number == "no":
        return {}
    version = f"version = {number}\n" if number != "0" else ""
    if choice.get("disabled"):
        version += f'disabled_plugins = ["{choice["disabled"]}"]\n'
    plugin = {"cri": "cri", "old": CRI, "new": IMAGES}[name]
    settings = _settings(choice, plugin, folder)
    pattern = "conf.d/*.toml" if choice["drop-in"] == "relative" else f"{folder.parent}/conf.d/*.toml"
    imports = f'imports = ["{pattern}"]\n'
    if choice["drop-in"] == "none":
        return {"config.toml": version + settings}
    main, drop_in = settings, ""
    match choice["drop-in"]:
        case "settings" | "relative":
            main, drop_in = "", version + settings
        case "next to":
            drop_in = f'{version}[plugins."{plugin}"]\nstats_collect_period = 11\n'
        case "over":
            main, drop_in = f'[plugins."{plugin}".registry]\nconfig_path = "/nowhere"\n', version + settings
        case "unversioned":
            drop_in = _UNRELATED
        case another:
            drop_in = f"version = {another}\n{_UNRELATED}"
    return {"config.toml": imports + version + main, "conf.d/1.toml": drop_in}


def _settings(choice: Mapping[str, str], plugin: str, folder: Path) -> str:
    images = _images(choice)
    top = [] if plugin != IMAGES else images
    if choice["pull"] in {"local", "downloads", "sync_fs"}:
        top = [*top, _PULLS[choice["pull"]]]
    tables = {"": top, ".registry": _registry(choice, folder), **_inline(choice)}
    if plugin != IMAGES:
        tables[".containerd"] = images
        if choice["runtimes"] == "yes":
            tables[".containerd.runtimes.runc"] = ['runtime_type = "io.containerd.runc.v2"']
    written = ["\n".join([f'[plugins."{plugin}"{path}]', *lines]) + "\n" for path, lines in tables.items() if lines]
    if choice["snapshotter"] in {"proxy", "stargz"}:
        address = "/run/nowhere.sock"
        written.append(f'[proxy_plugins.{choice["snapshotter"]}]\ntype = "snapshot"\naddress = "{address}"\n')
    return "".join(written)


_PULLS = {
    "local": "use_local_image_pull = true",
    "downloads": "max_concurrent_downloads = 2",
    "sync_fs": "image_pull_with_sync_fs = true",
}


def _images(choice: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    if choice["snapshotter"] != "default":
        lines.append(f'snapshotter = "{choice["snapshotter"]}"')
    if choice["discard"] == "yes":
        lines.append("discard_unpacked_layers = true")
    if choice["pull"] == "annotations":
        lines.append("disable_snapshot_annotations = false")
    return lines


def _registry(choice: Mapping[str, str], folder: Path) -> list[str]:
    paths = {
        "one": str(folder),
        "two": f"{folder}:/etc/docker/certs.d",
        "first missing": f"/nowhere:{folder}",
        "colon": f"{folder}:",
        "empty": "",
    }
    return [f'config_path = "{paths[choice["folders"]]}"'] if choice["folders"] in paths else []


def _inline(choice: Mapping[str, str]) -> dict[str, list[str]]:
    match choice["inline"]:
        case "mirrors":
            return {'.registry.mirrors."mirrored.example"': ['endpoint = ["http://mirror.example"]']}
        case "tls":
            return {'.registry.configs."mirrored.example".tls': ["insecure_skip_verify = true"]}
        case "auth":
            return {'.registry.configs."mirrored.example".auth': ['username = "me"', 'password = "it"']}
        case _:
            return {}
