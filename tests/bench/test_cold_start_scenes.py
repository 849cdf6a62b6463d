"""`python -m bench coldstart faults --only TEXT` measures the scenes and the faults that have the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.rows.coldstart import chosen_scenes
from bench.rows.faults import chosen_faults
from bench.setting import Setting


def _names(only: str) -> list[str]:
    scenes = chosen_scenes(Setting(Path(), only=only))
    return [scene.name(image) for scene in scenes for image in scene.images]


def test_scenes_are_chosen_by_their_names() -> None:
    assert len(_names("")) > len(_names("16 hosts")) == 2
    assert _names("40 x 1 MiB") == ["8 hosts, 40 Mbit/s, 40 x 1 MiB"]


def test_a_text_in_no_name_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no scene has '9 hosts' in its name"):
        chosen_scenes(Setting(Path(), only="9 hosts"))
    with pytest.raises(RuntimeError, match="no fault has '9 hosts' in its description"):
        chosen_faults(Setting(Path(), only="9 hosts"))


def test_faults_are_chosen_by_their_descriptions() -> None:
    assert len(chosen_faults(Setting(Path()))) == 18
    assert [each.what.rpartition("'s ")[2] for each in chosen_faults(Setting(Path(), only="is stopped"))] == [
        "containerd is stopped",
        "client is stopped",
        "peili is stopped",
    ]
