"""What a dying worker, engine, wire or database must not break. README.md has the switch and the tests."""

from __future__ import annotations

import os

#: Every case, and the long forms. Else, as in CI: one case of each test, and the short forms.
FULL = os.environ.get("CM_FAULTS") == "full"
