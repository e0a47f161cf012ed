import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a network for anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import contaccum_lite as cl

torch.set_num_threads(1)

# Which tests the fast tier leaves out (a plain `pytest`); `make test` runs all.
SLOW_FILES = {
    "test_cache.py",
    "test_checkpoint.py",
    "test_cli.py",
    "test_damage.py",
    "test_data.py",
    "test_folders.py",
    "test_gate.py",
    "test_incremental_again.py",
    "test_index.py",
    "test_lab.py",
    "test_options.py",
    "test_pages.py",
    "test_readers.py",
    "test_recipes.py",
    "test_sentence_transformers.py",
    "test_sentence_transformers_combined.py",
    "test_tower_files.py",
    "test_views.py",
}
SLOW_TESTS = (
    "a_thousand_changes",
    "broken_off",
    "compiled_encoder",
    "drawn_sequences",
    "drawn_trainings",
    "it_runs_as_a_program",
    "learns_the_toy",
    "new_process",
    "no_drift_in_float32",
    "no_verdict_survives",
    "quick_version",
    "records_come_with_the_package",
    "saved_and_resumed",
    "short_run",
    "sixty_micro_batches",
    "text_of_others",
    "the_floor",
    "two_thousand",
    "until_the_bank",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix != ".py":
            item.add_marker(pytest.mark.slow)  # a notebook
            continue
        if item.path.name in SLOW_FILES or any(words in item.name for words in SLOW_TESTS):
            item.add_marker(pytest.mark.slow)
        if item.path.name == "test_parallel.py" or "two_processes" in item.name:
            item.add_marker(pytest.mark.processes)
        if item.path.name == "test_browser.py" or "page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def toy():
    return cl.load_pairs("toy")


@pytest.fixture(scope="session")
def docs():
    return cl.load_pairs("python-docs")


@pytest.fixture
def jsonl(tmp_path):
    """Write rows as JSON lines and give the path."""

    def write(rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def family():
    """Runs commands of the command line in processes of their own."""
    from family import Family

    made = Family()
    yield made
    made.close()
