"""`peili hosts … --format talos`: reads a machine configuration and prints a patch for it. It changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peili.adapters.talos.machine_config import InvalidMachineConfig, MachineConfig, RegistryMirrors, parse_config
from peili.adapters.talos.patches import check_arguments, is_door, patch_to_apply, patch_to_remove
from peili.mirror import PeiliError


def run(action: str, mirror: str, registries: Sequence[str], *, file: Path | None, dry_run: bool, as_json: bool) -> int:
    """Run one action.

    Args:
        action: ``apply`` and ``remove`` print a patch; ``show`` prints the mirrors in the configuration.
        mirror: The URL at which the machine's containerd reaches the local door.
        registries: Host names, and ``*`` for all registries without an entry; empty for all.
        file: The file with the configuration; None for stdin.
        dry_run: Ignored, because no action changes anything.
        as_json: Make `show` print JSON.

    Returns:
        The exit code.

    Raises:
        PeiliError: The text cannot be read, or it is not a machine configuration.
    """
    check_arguments(mirror, registries)
    name = "standard input" if file is None else str(file)
    try:
        config = parse_config((sys.stdin.buffer.read() if file is None else file.read_bytes()).decode())
        if action == "show":
            return _show(config, mirror, as_json=as_json)
        make_patch = patch_to_apply if action == "apply" else patch_to_remove
        patch = make_patch(config, mirror, registries)
    except OSError as error:
        raise PeiliError(f"{name}: can't be read: {error.strerror}") from error
    except (InvalidMachineConfig, UnicodeDecodeError) as error:
        raise PeiliError(f"{name}: {error}") from error
    if not patch.text:
        sys.stderr.write("nothing to do: there is no patch\n")
    sys.stdout.write(patch.text)
    return 0


def _show(config: MachineConfig, mirror: str, *, as_json: bool) -> int:
    found = list(config.mirrors.values())
    if as_json:
        registries = [
            {
                "registry": each.registry,
                "peili_first": bool(each.endpoints) and is_door(each.endpoints[0], mirror),
                "endpoints": [{"url": one.url, "overridePath": one.override_path} for one in each.endpoints],
                "skipFallback": each.skip_fallback,
            }
            for each in found
        ]
        sys.stdout.write(json.dumps({"registries": registries}) + "\n")
    else:
        nothing = "nothing is configured: containerd asks each registry itself"
        sys.stdout.write("\n\n".join([_as_text(each, mirror) for each in found] or [nothing]) + "\n")
    return 0


def _as_text(mirrors: RegistryMirrors, mirror: str) -> str:
    names = [
        f"{each.url}{' (peili)' if is_door(each, mirror) else ''}{' (overridePath)' if each.override_path else ''}"
        for each in mirrors.endpoints
    ]
    fallback = [] if mirrors.skip_fallback else ["the registry itself"]
    lines = [f"  {number}. {each}" for number, each in enumerate([*names, *fallback], 1)]
    return "\n".join([mirrors.registry, *(lines or ["  nothing is asked"])])
