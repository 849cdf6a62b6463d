"""Combinatorial test design: few combinations of parameter values that cover all pairs of values (or triples, …)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

_CANDIDATES = 40


def combinations(values: Mapping[str, Sequence[str]], strength: int) -> list[dict[str, str]]:
    """Return combinations of one value per name that cover all interactions of `strength` names.

    For any `strength` names, each combination of their values is in at least one of the results. The results are the
    same at each call.

    Args:
        values: The values of each name.
        strength: 2 is pairwise. The number of names, or more, returns all combinations.
    """
    if strength >= len(values):
        return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    rng = random.Random(0)
    uncovered = {
        tuple(zip(names, each, strict=True)): None
        for names in itertools.combinations(values, strength)
        for each in itertools.product(*(values[name] for name in names))
    }
    chosen: list[dict[str, str]] = []
    while uncovered:
        needed = dict(next(iter(uncovered)))
        candidates = [
            {name: needed.get(name) or rng.choice(choices) for name, choices in values.items()}
            for _ in range(_CANDIDATES)
        ]
        best = max(candidates, key=lambda each: sum(part in uncovered for part in _interactions(each, strength)))
        for part in _interactions(best, strength):
            uncovered.pop(part, None)
        chosen.append(best)
    return chosen


def _interactions(choice: Mapping[str, str], strength: int) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations(choice.items(), strength)
