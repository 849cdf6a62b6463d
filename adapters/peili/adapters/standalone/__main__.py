"""``python -m peili.adapters.standalone``."""

from __future__ import annotations

import sys

from peili.adapters.standalone.entry import main

sys.exit(main())
