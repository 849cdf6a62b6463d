"""Each claim of docs/security.md has a test, which exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLAIMS = re.findall(
    r"^\| (.+) \| `(tests/[\w/]+\.py)(?:::(\w+))?` \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE
)


def test_the_page_has_claims() -> None:
    assert len(CLAIMS) >= 25


@pytest.mark.parametrize(("claim", "file", "name"), CLAIMS)
def test_the_test_of_a_claim_exists(claim: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    names = [each.name for each in tree.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert name in names if name else any(each.startswith("test_") for each in names), claim
