"""The conformance kit, run on the built-in stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.conformance.stores import intact_store, memory_store, oci_layout_store, selected_store

from peili.mirror import Store
from peili.mirror.testing import StoreFactory, check_options, check_store
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("factory", [memory_store, oci_layout_store, selected_store, intact_store])
async def test_a_store_conforms(factory: StoreFactory) -> None:
    await check_store(factory)


@pytest.mark.parametrize(("store", "options"), [(MemoryStore, {}), (OciLayoutStore, {"path": "/nowhere"})])
def test_a_store_checks_its_options(store: type[Store], options: Mapping[str, Any]) -> None:
    check_options(store, options)
