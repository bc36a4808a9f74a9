"""The demo's acts, each as a test: every numbered step of the main job with real drivers.

Never add here: what only one part does; that has its own test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgleash.demo.acts import ACTS, Theatre
from pgleash.demo.stage import Stage


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_every_promise_of_the_act_is_kept(act: Callable[[Theatre], None], stage: Stage) -> None:
    theatre = Theatre(stage)
    act(theatre)
    assert theatre.failures == []
