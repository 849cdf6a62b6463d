"""The fuzzer of the editors: it runs, it finds faults, and a seed repeats its inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import fuzz
from bench.__main__ import main

_DOORS = ("local door", "peer door", "peer door inside TLS", "peer door, records of TLS")


def test_one_input_for_each_editor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "has_atheris", lambda: False)
    assert main(["fuzz", "--seconds", "0", "--seed", "7", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "seed 7, 0 seconds for each editor and each door",
        *(f"{name}: 1 inputs, 0 faults" for name in ("hosts.toml", "registries.yaml", "Talos")),
        *(f"{door}: not tested, because atheris is not installed" for door in _DOORS),
    ]


@pytest.mark.skipif(not fuzz.has_atheris(), reason="not installed: atheris")
def test_both_doors_answer_what_atheris_sends(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "EDITORS", {})
    assert main(["fuzz", "--seconds", "0", "--seed", "7", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [each.split(":")[0] for each in lines] == [*_DOORS]
    assert all(each.endswith(" inputs, 0 faults") for each in lines)


def test_a_fault_is_printed_with_its_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faults(data: bytes, folder: Path, chance: random.Random) -> Iterator[str]:
        yield "it is as it is"
        raise RuntimeError("broken")

    monkeypatch.setattr(fuzz, "has_atheris", lambda: False)
    monkeypatch.setattr(fuzz, "EDITORS", {"editor": fuzz.Editor([b"file"], [b"file"], faults)})
    assert main(["fuzz", "--seconds", "0", "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "editor: 1 inputs, 1 faults" in output.out
    assert "RuntimeError: broken" in output.err


def test_a_seed_makes_the_same_inputs_again() -> None:
    def inputs(seed: int) -> list[bytes]:
        chance, files = random.Random(seed), [b"one\ntwo\n", b"three\n"]
        return [fuzz.changed(chance.choice(files), [b"x", b"y"], files, chance) for _ in range(50)]

    assert inputs(1) == inputs(1) != inputs(2)
