import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a network for anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import contaccum_lite as cl

torch.set_num_threads(1)


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
