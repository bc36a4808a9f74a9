"""Which fixtures exist, and what holds for the whole run.

Never add here: a fixture. One concern per file in tests/fixtures.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from hypothesis import settings

pytest_plugins = ["fixtures.gateway", "fixtures.holds", "fixtures.servers", "fixtures.twins"]

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("long", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _end(signum: int, _: FrameType | None) -> None:
    # Servers stop and temporary directories go in exit handlers; a plain SIGTERM would skip them.
    sys.exit(128 + signum)


signal.signal(signal.SIGTERM, _end)
