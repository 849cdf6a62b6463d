"""Few combinations of many values that still try each value together with each other one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

_CANDIDATES = 40


def combinations(values: Mapping[str, Sequence[str]], strength: int) -> list[dict[str, str]]:
    """Choices of one value for each name, such that any `strength` names meet in all combinations of their values:
    2 is pairwise, and as many as there are names is everything. The same ones at each call.
    """
    if strength >= len(values):
        return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    chance = random.Random(0)
    missing = {
        tuple(zip(names, each, strict=True)): None
        for names in itertools.combinations(values, strength)
        for each in itertools.product(*(values[name] for name in names))
    }
    chosen: list[dict[str, str]] = []
    while missing:
        needed = dict(next(iter(missing)))
        tries = [
            {name: needed.get(name) or chance.choice(choices) for name, choices in values.items()}
            for _ in range(_CANDIDATES)
        ]
        best = max(tries, key=lambda each: sum(met in missing for met in _met(each, strength)))
        for met in _met(best, strength):
            missing.pop(met, None)
        chosen.append(best)
    return chosen


def _met(choice: Mapping[str, str], strength: int) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations(choice.items(), strength)
