"""A net under changes of structure: what some thirty short runs gave when it was recorded.

`python tests/test_net.py` records it again. Do that only where a number is meant to change, and say
why in the commit.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contaccum_lite as cl

RECORDS = Path(__file__).parent / "records"
RECORD = RECORDS / "net.json"
SMALL = {
    "start": "random",
    "dtype": "float64",
    "dim": 8,
    "local_batch": 5,
    "accumulation_steps": 3,
    "memory_size": 12,
    "learning_rate": 0.01,
    "temperature": 1.0,
    "warmup": 2,
    "updates": 8,
    "passage_tokens": 16,
    "query_tokens": 8,
}
EXTRAS = {
    "contaccum, hard negatives": {"hard_negatives": 2},
    "contaccum, hard negatives not banked": {"hard_negatives": 1, "bank_hard_negatives": False},
    "contaccum, duplicates stay": {"mask_duplicates": False},
    "contaccum, incremental": {"similarity": "incremental", "hard_negatives": 1},
    "contaccum, one forward": {"one_forward": True},
    "contaccum, query bank dropped": {"drop_query_bank_at": 4},
    "contaccum, banks from update 3": {"bank_warmup": 3},
    "contaccum, one tower": {"shared": True, "ending": "unit", "temperature": 0.1},
    "contaccum, bank of 100": {"memory_size": 100, "clip_norm": 0.1},
    "contaccum, float32": {"dtype": "float32"},
    "contaccum, BERT": {"tower": "bert", "updates": 4},
    "grad_cache, BERT": {"tower": "bert", "updates": 4},
    "grad_cache, hard negatives": {"hard_negatives": 1},
    "contaccum_corrected, BERT": {"tower": "bert", "updates": 5, "probes": 80, "memory_size": 80},
    "contaccum_corrected, network": {"corrector": "mlp", "probes": 80, "memory_size": 80},
    "corrected_cache, write-back": {"write_back": True, "cache_oldest": 4, "probes": 20},
    "refreshed_cache, uniform": {"selection": "uniform", "cache_refresh": 3},
    "stale_cache, top k": {"selection": "top_k"},
}


def settings_of(name):
    method = name.partition(",")[0]
    fields = {**SMALL, **EXTRAS.get(name, {})}
    if "cache" in method and method != "grad_cache" or method == "static_negatives":
        fields |= {"bank_warmup": 2, "local_batch": 6}
        fields.pop("accumulation_steps")
    fixed = cl.Settings.preset(method)
    defaults = {"dpr": {"local_batch": 15}}.get(method, {})
    fields |= defaults
    for field in ("accumulation_steps", "memory_size"):
        if getattr(fixed, field) in (0, 1) and field in fields:
            fields.pop(field)
    return cl.Settings.preset(method, **fields)


NEWER = (
    "pre_batch_corrected",
    "grad_cache_bank",
    "sogclr",
    "query_only",
)  # methods that came after the record
NAMES = [*(name for name in cl.PRESETS if name not in NEWER), *EXTRAS]


def pairs_of(name):
    """47 training pairs, so that each epoch ends with a short update and a short micro-batch."""
    from contaccum_lite.data import toy_pairs

    return toy_pairs(47, 20)


def values_of(run):
    """Numbers that tell one run from another."""
    towers = [run.query_tower] if run.settings.shared else [run.query_tower, run.passage_tower]
    weights = torch.cat([p.detach().double().flatten() for t in towers for p in t.parameters()])
    waves = torch.sin(torch.arange(len(weights), dtype=torch.float64))
    return {
        "losses": [update.loss for update in run.history],
        "ratios": [update.grad_norm_ratio for update in run.history],
        "negatives": [update.negatives for update in run.history],
        "weights": [float(weights.norm()), float(weights @ waves)],
        "query bank": [len(run.query_bank), float(run.query_bank.vectors.double().sum())],
        "passage bank": [len(run.passage_bank), float(run.passage_bank.vectors.double().sum())],
        "encodes": dict(run.encodes),
        "metrics": run.evaluate(),
    }


def trained(name):
    run = cl.Run(pairs_of(name), settings_of(name))
    for _ in run:
        pass
    return run


def assert_close(values, record, tolerance):
    for key, expected in record.items():
        if isinstance(expected, dict):
            assert values[key] == pytest.approx(expected, rel=tolerance, abs=tolerance), key
        else:
            assert values[key] == pytest.approx(expected, rel=tolerance, abs=tolerance), key


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_what_was_recorded(name, record):
    tolerance = 1e-5 if "float32" in name or "BERT" in name else 1e-10
    assert_close(values_of(trained(name)), record[name], tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_is_broken_off_leaves_no_trace(name, record):
    run = cl.Run(pairs_of(name), settings_of(name))
    while run.step_count < run.settings.updates:
        if run.step_count == 4 and not run.encodes.get("probe"):
            steps = run.micro_steps()
            next(steps)
            steps.close()
        run.step()
    tolerance = 1e-5 if "float32" in name or "BERT" in name else 1e-10
    values, expected = values_of(run), dict(record[name])
    values.pop("encodes"), expected.pop("encodes")  # what was encoded twice is counted twice
    assert_close(values, expected, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_saved_and_resumed_gives_what_was_recorded(name, record, tmp_path):
    run = cl.Run(pairs_of(name), settings_of(name))
    for _ in range(run.settings.updates // 2):
        run.step()
    run.save(tmp_path)
    resumed = cl.Run.load(tmp_path, pairs_of(name))
    for _ in resumed:
        pass
    tolerance = 1e-5 if "float32" in name or "BERT" in name else 1e-10
    assert_close(values_of(resumed), record[name], tolerance)


# --- files and lines of earlier versions ----------------------------------------------------------

SAVED = (
    "contaccum, incremental",
    "momentum",
    "contaccum_corrected, network",
    "corrected_cache, write-back",
)


@pytest.mark.parametrize("name", SAVED)
def test_a_run_that_an_earlier_version_saved_goes_on(name, record, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(RECORDS / "saved" / name.replace(", ", "-"), folder)
    run = cl.Run.load(folder, pairs_of(name))
    assert run.step_count == 4
    for _ in run:
        pass
    assert_close(values_of(run), record[f"saved: {name}"], 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_share_line_of_an_earlier_version_is_read(name, record):
    assert cl.Settings.parse(record["share lines"][name]) == settings_of(name)
    line = record["share lines"][name]
    assert settings_of(name).share() == line.replace("&", "&start=random&", 1)


def test_an_answers_line_of_an_earlier_version_is_read(record):
    assert json.loads(cl.answers(record["answers"])) == json.loads(record["answers"])


# --- several processes and sentence-transformers --------------------------------------------------

TWO_PROCESSES = (
    "--start random --method contaccum --dtype float64 --dim 8 --local-batch 4 --accumulation-steps 2 --memory-size 8 "
    "--updates 6 --warmup 0 --learning-rate 0.01 --temperature 1"
)


def losses_of_two_processes(folder):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    # "--": else torchrun takes --start for the beginning of its own --start-method
    command = [*launch, "-m", "--", "contaccum_lite", "train", "toy", *TWO_PROCESSES.split()]
    root = Path(__file__).parent.parent
    subprocess.run(
        [*command, "--out", folder], cwd=root, check=True, capture_output=True, timeout=300
    )
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_give_what_was_recorded(record, tmp_path):
    assert losses_of_two_processes(tmp_path / "run") == pytest.approx(
        record["two processes"], rel=1e-10
    )


class TokenSums(torch.nn.Module):
    """A model whose text vectors are sums of token vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 6, dtype=torch.float64)

    def forward(self, features):
        vectors = self.table(features["input_ids"]) * features["attention_mask"][..., None]
        return {"sentence_embedding": vectors.sum(1)}


def losses_of_sentence_transformers():
    """Ten updates of ContAccumLoss on drawn tokens, two columns and three."""
    from contaccum_lite.sentence_transformers import ContAccumLoss

    losses = []
    for columns in (2, 3):
        model = TokenSums()
        loss = ContAccumLoss(model, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rng = torch.Generator().manual_seed(1)
        for _ in range(10):
            tokens = torch.randint(1, 50, (4, columns, 3), generator=rng)
            features = []
            for column in tokens.unbind(1):
                features.append({"input_ids": column, "attention_mask": torch.ones_like(column)})
            value = loss(features, None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


def test_the_sentence_transformers_loss_gives_what_was_recorded(record):
    pytest.importorskip("sentence_transformers")
    losses = losses_of_sentence_transformers()
    assert losses == pytest.approx(record["sentence-transformers"], rel=1e-10)


# --- recording ------------------------------------------------------------------------------------


def record_again(with_saved_runs):
    import tempfile

    record = {name: values_of(trained(name)) for name in NAMES}
    record["share lines"] = {name: settings_of(name).share() for name in NAMES}
    record["answers"] = json.dumps({"01.a": "B", "02.b": 3.5, "03.c": [[0.0, 1.0], [1.0, 2.0]]})
    with tempfile.TemporaryDirectory() as folder:
        record["two processes"] = losses_of_two_processes(Path(folder) / "run")
    record["sentence-transformers"] = losses_of_sentence_transformers()
    if with_saved_runs:
        save_runs(record)
    else:
        earlier = json.loads(RECORD.read_text())
        record |= {name: earlier[name] for name in earlier if name.startswith("saved: ")}
    RECORDS.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def save_runs(record):
    """Files as this version writes them; small, and never to be written again by a later one."""
    for name in SAVED:
        run = cl.Run(pairs_of(name), settings_of(name).replace(dim=2))
        for _ in range(4):
            run.step()
        run.save(RECORDS / "saved" / name.replace(", ", "-"))
        for _ in run:
            pass
        record[f"saved: {name}"] = values_of(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record_again("--saved" in sys.argv)
