"""Every test of methods and runs once more, with the incremental softmax wherever it is valid."""

import pytest

from contaccum_lite.core import trainer

from test_methods import *  # noqa: F403
from test_run import *  # noqa: F403


@pytest.fixture(autouse=True)
def kept_scores(monkeypatch):
    monkeypatch.setattr("contaccum_lite.core.options.INCREMENTAL_FROM", 1)
    monkeypatch.setattr(trainer, "EXTENSIONS", [*trainer.EXTENSIONS, observe])


def observe(run):
    """These tests look at every matrix."""
    run.learner.observed = True
