"""Every test of methods and runs once more, with the incremental softmax wherever it is valid."""

import pytest

from test_methods import *  # noqa: F403
from test_run import *  # noqa: F403


@pytest.fixture(autouse=True)
def kept_scores(monkeypatch):
    monkeypatch.setattr("contaccum_lite.settings.INCREMENTAL_FROM", 1)
