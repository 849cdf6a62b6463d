"""`peili hosts … --format talos`: reads a machine configuration, prints a patch. It changes nothing itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from peili.adapters.talos.machineconfig import MachineConfig, Mirrors, Unusable, read
from peili.adapters.talos.patch import Patch, check, putting_first, same, taking_away
from peili.mirror import PeiliError


def run(action: str, mirror: str, registries: Sequence[str], *, file: Path | None, dry_run: bool, as_json: bool) -> int:
    """Run one action.

    Args:
        action: ``apply`` and ``remove`` print a patch; ``show`` prints what the configuration contains.
        mirror: the URL at which the machine's containerd reaches the local door.
        registries: host names, and ``*`` for all registries without an entry; empty for all.
        file: the file with the configuration; None for stdin.
        dry_run: ignored, because no action changes anything.
        as_json: make `show` print JSON.

    Returns:
        The exit code.

    Raises:
        PeiliError: the text cannot be read, or it is not a machine configuration.
    """
    check(mirror, registries)
    name = "standard input" if file is None else str(file)
    try:
        config = read(_text(file))
        if action == "show":
            return _show(config, mirror, as_json=as_json)
        change: Callable[..., Patch] = putting_first if action == "apply" else taking_away
        patch = change(config, mirror, registries)
    except OSError as error:
        raise PeiliError(f"{name}: can't be read: {error.strerror}") from error
    except (Unusable, UnicodeDecodeError) as error:
        raise PeiliError(f"{name}: {error}") from error
    if not patch.text:
        sys.stderr.write("nothing to do: there is no patch\n")
    sys.stdout.write(patch.text)
    return 0


def _text(file: Path | None) -> str:
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    return data.decode()


def _show(config: MachineConfig, mirror: str, *, as_json: bool) -> int:
    found = list(config.mirrors.values())
    if as_json:
        sys.stdout.write(json.dumps({"registries": [_as_json(each, mirror) for each in found]}) + "\n")
    else:
        texts = [_as_text(each, mirror) for each in found] or ["nothing is configured: each registry is asked itself"]
        sys.stdout.write("\n\n".join(texts) + "\n")
    return 0


def _as_json(mirrors: Mirrors, mirror: str) -> dict[str, object]:
    return {
        "registry": mirrors.registry,
        "peili_first": bool(mirrors.endpoints) and same(mirrors.endpoints[0], mirror),
        "endpoints": [{"url": each.url, "overridePath": each.override_path} for each in mirrors.endpoints],
        "skipFallback": mirrors.skip_fallback,
    }


def _as_text(mirrors: Mirrors, mirror: str) -> str:
    asked = [
        f"{each.url}{' (peili)' if same(each, mirror) else ''}{', its path as it is' if each.override_path else ''}"
        for each in mirrors.endpoints
    ]
    last = [] if mirrors.skip_fallback else ["the registry itself"]
    lines = [f"  {number}. {each}" for number, each in enumerate([*asked, *last], 1)]
    return "\n".join([mirrors.registry, *(lines or ["  nobody"])])
