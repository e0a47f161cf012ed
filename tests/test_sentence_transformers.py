"""ContAccumLoss: against the reference, and in the trainer that it is made for."""

import copy
import json
import math
import os
import pickle
import random
import shutil

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.util import cos_sim, dot_score
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

import contaccum_lite as cl
from contaccum_lite.data.types import Pairs
from contaccum_lite.core.loss import duplicate_mask
from contaccum_lite.core.metrics import exact_search, retrieval_metrics
from contaccum_lite.integrations.sentence_transformers import ContAccumLoss
from contaccum_lite.encoders.transformer import TransformerTower
from contaccum_lite.encoders.vocabulary import vocabulary_for

TIGHT = 1e-10


class Words(torch.nn.Module):
    """A model in float64 whose text vectors are sums of token vectors.

    Small enough for any oracle.
    """

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(50, 6, dtype=torch.float64)

    def forward(self, features):
        return {
            "sentence_embedding": (
                self.table(features["input_ids"]) * features["attention_mask"][..., None]
            ).sum(1)
        }


def texts(ids, pad_to=5):
    """Token ids (B, L) as features, padded: equal texts stay equal."""
    ids = torch.as_tensor(ids)
    extra = pad_to - ids.shape[1]
    return {
        "input_ids": torch.nn.functional.pad(ids, (0, extra)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, extra)),
    }


def batches(count, rows=4, columns=3, seed=1, repeats=True):
    """Micro-batches of (rows, columns, 3) token ids.

    Among them are queries and passages that come again.
    """
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randint(1, 50, (rows, columns, 3), generator=draw) for _ in range(count)]
    if repeats:
        made[2][1, 0], made[2][3, 1], made[3][0, 2], made[1][2, 1] = (
            made[0][0, 0],
            made[1][1, 1],
            made[1][1, 1],
            made[1][0, 1],
        )
    return made


def columns_of(batch, pad_to=5):
    return [texts(batch[:, column], pad_to) for column in range(batch.shape[1])]


# --- against MultipleNegativesRankingLoss ---------------------------------------------------------


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("similarity, scale", [(cos_sim, 20.0), (dot_score, 1.0)])
def test_without_memory_it_is_multiple_negatives_ranking(columns, similarity, scale):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    batch = batches(2, columns=columns, repeats=False)[0]
    batch[1, 1] = batch[0, 1]  # a copy of a passage is a negative there, so here too
    found = []
    for make in (MultipleNegativesRankingLoss, lambda model, **how: ContAccumLoss(model, 0, **how)):
        model = Words()
        value = make(model, scale=scale, similarity_fct=similarity)(columns_of(batch), None)
        value.backward()
        found.append((value.item(), model.table.weight.grad))
    assert abs(found[0][0] - found[1][0]) < TIGHT
    assert found[0][1].norm() > 1e-3 and (found[0][1] - found[1][1]).abs().max() < TIGHT


# --- against cl.info_nce --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns, fields",
    [
        (2, {}),
        (3, {}),
        (4, {}),
        (3, dict(bank_hard_negatives=False)),
        (3, dict(query_bank=False)),
        (3, dict(mask_duplicates=False)),
        (2, dict(query_bank=False, passage_bank=False)),
    ],
)
def test_with_banks_it_is_info_nce(columns, fields):
    """Seven micro-batches of 4 into banks of 10: partial fill, eviction round the end, copies.

    Loss, gradient and banks.
    """
    model, other = Words(), Words()
    loss = ContAccumLoss(model, 10, scale=20.0, **fields)
    keep = {
        **dict(query_bank=True, passage_bank=True, bank_hard_negatives=True, mask_duplicates=True),
        **fields,
    }
    bank, masked = [], 0
    for step, batch in enumerate(
        batches(7, columns=columns) if columns > 2 else batches(7, columns=3)
    ):
        batch = batch[:, :columns]
        model.zero_grad(), other.zero_grad()
        value = loss(columns_of(batch, pad_to=5 + step), None)
        value.backward()

        vectors = [
            normalize(other(column)["sentence_embedding"], dim=1) for column in columns_of(batch)
        ]
        hard = torch.cat(vectors[2:]) if columns > 2 else None
        past = [
            torch.stack([row[0][n] for row in bank]) if bank else vectors[0][:0].detach()
            for n in range(columns)
        ]
        past_hard = torch.cat(past[2:]) if columns > 2 and keep["bank_hard_negatives"] else None
        ids = [tuple(text.tolist()) for text in batch[:, 0]] + [row[1][0] for row in bank]
        passages = [tuple(text.tolist()) for text in batch[:, 1]] + [row[1][1] for row in bank]
        for n in range(2, columns):
            passages += [tuple(text.tolist()) for text in batch[:, n]]
        for n in range(2, columns if keep["bank_hard_negatives"] else 0):
            passages += [row[1][n] for row in bank]
        names = {}
        number = lambda items: torch.tensor([names.setdefault(item, len(names)) for item in items])
        rows = len(batch) + (len(bank) if keep["query_bank"] else 0)
        queries = torch.cat([number(ids), torch.full((len(passages) - len(ids),), -1)])
        mask = duplicate_mask(queries, number(passages), rows) if keep["mask_duplicates"] else None
        masked += 0 if mask is None else int(mask.sum())
        wanted = cl.info_nce(
            vectors[0],
            vectors[1],
            past[0] if keep["query_bank"] and bank else None,
            past[1] if bank else None,
            hard,
            1 / 20,
            bank_hard_negatives=past_hard if bank else None,
            mask=mask,
        )
        wanted.backward()
        assert abs(value.item() - wanted.item()) < TIGHT
        assert model.table.weight.grad.norm() > 1e-3
        assert (model.table.weight.grad - other.table.weight.grad).abs().max() < TIGHT
        if keep["passage_bank"]:
            bank += [
                (
                    [part[row].detach() for part in vectors],
                    [tuple(text.tolist()) for text in batch[row]],
                )
                for row in range(len(batch))
            ]
            bank = bank[-10:]
            kept = normalize(
                loss.vectors[
                    torch.arange(10).roll(-int(loss.position[0]) if len(loss) == 10 else 0)
                ][: len(loss)],
                dim=-1,
            )
            assert (kept - torch.stack([torch.stack(row[0]) for row in bank])).abs().max() < TIGHT
    assert (masked > 1) == keep["mask_duplicates"]
    assert len(loss) == (10 if keep["passage_bank"] else 0)


def test_evaluation_neither_reads_nor_writes_the_banks():
    model = Words()
    loss = ContAccumLoss(model, 8)
    first, second = batches(4)[:2]
    loss(columns_of(first), None)
    before = loss.bank_state()
    alone = ContAccumLoss(Words(), 8)(columns_of(second), None).item()
    model.eval()
    assert loss(columns_of(second), None).item() == alone
    model.train()
    with torch.no_grad():
        assert loss(columns_of(second), None).item() == alone
    assert all(torch.equal(before[name], value) for name, value in loss.bank_state().items())
    assert loss(columns_of(second), None).item() != alone


def test_banks_stay_float32_under_autocast():
    model = torch.nn.Sequential()
    model.weight = torch.nn.Linear(6, 6)
    model.forward = lambda features: {"sentence_embedding": model.weight(features["vectors"])}
    loss = ContAccumLoss(model, 6, mask_duplicates=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for seed in range(3):
            features = [
                {"vectors": torch.randn(4, 6, generator=torch.Generator().manual_seed(seed + n))}
                for n in range(2)
            ]
            assert model(features[0])["sentence_embedding"].dtype == torch.bfloat16
            value = loss(features, None)
    assert loss.vectors.dtype == torch.float32
    assert value.dtype == torch.float32
    assert len(loss) == 6
    value.backward()
    assert model.weight.weight.grad.norm() > 0


def test_its_state_can_be_loaded(tmp_path):
    model = Words()
    loss, again = ContAccumLoss(model, 6), ContAccumLoss(model, 6)
    for batch in batches(4):
        loss(columns_of(batch), None)
    again.load_state_dict(loss.state_dict())
    loss.save_banks(tmp_path)
    other = ContAccumLoss(model, 6)
    other.load_banks(tmp_path)
    for one in (again, other):
        assert all(
            torch.equal(value, one.bank_state()[name]) for name, value in loss.bank_state().items()
        )
        assert (
            one(columns_of(batches(5)[4]), None).item()
            == copy.deepcopy(loss)(columns_of(batches(5)[4]), None).item()
        )
    with pytest.raises(ValueError, match="memory_size=6"):
        ContAccumLoss(model, 7).load_banks(tmp_path)
    with pytest.raises(ValueError, match="holds no banks"):
        loss.load_banks(tmp_path / "nothing")


def same_banks(one, other):
    return all(
        torch.equal(value, other.bank_state()[name]) for name, value in one.bank_state().items()
    )


@pytest.fixture(scope="module")
def filled():
    """A loss with full banks of six triples, the write position in their midst."""
    loss = ContAccumLoss(Words(), 6)
    for batch in batches(4):
        loss(columns_of(batch))
    return loss


def refuses(loss, folder, content, says):
    """That this content of a banks' file is refused in a sentence with its name.

    And that it changes nothing.
    """
    file, before = folder / "contaccum.safetensors", loss.bank_state()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says) as raised:
        loss.load_banks(folder)
    assert str(file) in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
    assert vars(loss).keys() == vars(ContAccumLoss(Words(), 6)).keys()
    assert all(torch.equal(value, loss.bank_state()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda banks: banks.pop("position"), "expected the tensors position, vectors, keys"),
        (lambda banks: banks.pop("keys"), "expected the tensors position, vectors, keys"),
        (lambda banks: banks.update(scale=torch.tensor(-5.0)), "and no others"),
        (
            lambda banks: banks.update(vectors=banks["vectors"].long()),
            r"vectors are int64 \(6, 3, 6\)",
        ),
        (
            lambda banks: banks.update(vectors=banks["vectors"][:, :1].clone()),
            r"vectors are float64 \(6, 1, 6\)",
        ),
        (
            lambda banks: banks.update(vectors=banks["vectors"][:, :, 0].clone()),
            r"vectors are float64 \(6, 3\)",
        ),
        (
            lambda banks: banks.update(vectors=banks["vectors"][:, :, :0].clone()),
            "6 pairs of no length",
        ),
        (lambda banks: banks.update(keys=banks["keys"].double()), "keys are float64"),
        (lambda banks: banks.update(keys=banks["keys"][:, :2].clone()), r"keys are int64 \(6, 2\)"),
        (lambda banks: banks.update(position=torch.tensor([2.0, 6.0])), "position is float32"),
        (lambda banks: banks.update(position=torch.tensor(2)), r"position is int64 \(\)"),
        *[
            (
                lambda banks, pair=pair: banks.update(position=torch.tensor(pair)),
                "position is .*, which no banks",
            )
            for pair in ([6, 6], [-1, 6], [0, 7], [4, 3], [-3, -3], [2, 2**60])
        ],
    ],
)
def test_a_file_of_no_such_banks_is_refused(filled, tmp_path, damage, says):
    banks = filled.bank_state()
    damage(banks)
    refuses(copy.deepcopy(filled), tmp_path, save(banks), says)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(position=[0, 7]), "which no banks of 6 pairs have"),
        (dict(keys=None), "expected the tensors"),
        (dict(position=None, vectors=None), "expected the tensors"),
    ],
)
def test_a_state_of_no_such_banks_is_refused(filled, changes, says):
    """Nothing of it is taken, whether all keys are asked for or not."""
    state = filled.state_dict()
    for name, value in changes.items():
        state[name] = torch.tensor(value) if value else None
    state = {name: value for name, value in state.items() if value is not None}
    for strict in (True, False):
        loss = ContAccumLoss(Words(), 6)
        with pytest.raises(RuntimeError, match=says):
            loss.load_state_dict(state, strict=strict)
        assert same_banks(loss, ContAccumLoss(Words(), 6))
    loss.load_state_dict({}, strict=False)
    assert same_banks(loss, ContAccumLoss(Words(), 6)) and not loss.callback.loaded


HOSTILE = json.dumps(
    {"keys": {"dtype": "\x1b[31m" * 99, "shape": [2], "data_offsets": [0, 16]}}
).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\0" * 8,
        b"\xff" * 100,
        b"not banks" * 30,
        len(HOSTILE).to_bytes(8, "little") + HOSTILE,
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(filled, tmp_path, content):
    refuses(copy.deepcopy(filled), tmp_path, content, "cannot be read")


def damaged(content, rng):
    """A file with one of the damages that disks, networks and editors do."""
    content, header = bytearray(content), 8 + int.from_bytes(content[:8], "little")
    kind = rng.randrange(6)
    if kind < 3:  # flips: in the header, in the body, anywhere
        bounds = [(8, header), (header, len(content)), (0, len(content))][kind]
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(*bounds)] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del content[rng.randrange(len(content)) :]
    elif kind == 4:
        content += rng.randbytes(rng.randrange(1, 64))
    else:  # a name or a number becomes another
        words = [
            b"position",
            b"vectors",
            b"keys",
            b"digest",
            b"training",
            b"I64",
            b"F64",
            b"__metadata__",
            b"6",
            b"3",
        ]
        old, new = rng.sample(words, 2)
        text = bytes(content[8:header]).replace(old, new)
        content = bytearray(len(text).to_bytes(8, "little") + text + content[header:])
    return bytes(content)


def test_damaged_files_are_refused_or_the_same_banks(filled, tmp_path):
    filled.callback.training = "0123456789abcdef"
    filled.save_banks(tmp_path)
    content, rng, refused = (tmp_path / "contaccum.safetensors").read_bytes(), random.Random(5), 0
    for _ in range(250):
        wrong = damaged(content, rng)
        loss = ContAccumLoss(Words(), 6)
        (tmp_path / "contaccum.safetensors").write_bytes(wrong)
        try:
            loss.load_banks(tmp_path)
        except ValueError as error:
            assert "contaccum.safetensors" in str(error)
            assert len(loss) == 0
            assert same_banks(loss, ContAccumLoss(Words(), 6))
            assert not loss.callback.loaded
            refused += 1
        else:
            assert same_banks(loss, filled)
    assert refused > 150


def test_what_does_not_fit_is_said():
    model = Words()
    for wrong, says in (
        (dict(memory_size=-1), "memory_size is -1"),
        (dict(memory_size=4, scale=0), "scale 0"),
        (dict(memory_size=4, passage_bank=False), "needs passage_bank=True"),
    ):
        with pytest.raises(ValueError, match=says):
            ContAccumLoss(model, **wrong)
    for name, values in dict(
        memory_size=[True, 2.0, "8", None, 2**40],
        scale=[math.nan, math.inf, -1, True, "20", None],
        query_bank=[1, None],
        passage_bank=[2],
        bank_hard_negatives=["no"],
        past_encoder=[0],
        mask_duplicates=[1.0],
        gather_across_devices=[None],
        similarity_fct=["cosine", None],
        name=[
            "",
            "a/b",
            "..",
            "a\\b",
            "a\nb",
            "a\udcffb",
            3,
            None,
            " a",
            "x" * 300,
            "model",
            "adapter_model",
            "Model-00001-of-00002",
        ],
    ).items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} is|{name}|expected"):
                ContAccumLoss(model, **dict(memory_size=4) | {name: value})
    loss = ContAccumLoss(model, 8)
    with pytest.raises(ValueError, match="1 column"):
        loss(columns_of(batches(4)[0])[:1], None)
    loss(columns_of(batches(4)[0]), None)
    with pytest.raises(ValueError, match="2 columns"):
        loss(columns_of(batches(4)[0])[:2], None)
    with pytest.raises(ValueError, match="mask_duplicates=False"):
        loss([{"pixels": torch.zeros(2, 3)}, {"pixels": torch.zeros(2, 3)}], None)


def gives_pairs_alone(queries, passages):
    return (queries[: len(queries)] * passages[: len(queries)]).sum(1)


def test_a_similarity_of_pairs_alone_is_refused():
    loss = ContAccumLoss(Words(), 8, similarity_fct=gives_pairs_alone)
    with pytest.raises(ValueError, match=r"gave \(4,\) similarities of 4 queries and 8 passages"):
        loss(columns_of(batches(4)[0]))


def test_a_micro_batch_that_overflowed_is_not_remembered():
    model = Words()
    loss = ContAccumLoss(model, 8)
    first, second = batches(4)[:2]
    loss(columns_of(first)).backward()
    with torch.no_grad():
        kept = model.table.weight[second[2, 1, 0]].clone()
        model.table.weight[second[2, 1, 0]] = math.inf
    assert not loss(columns_of(second)).isfinite()
    with torch.no_grad():
        model.table.weight[second[2, 1, 0]] = kept
    assert len(loss) == 4
    assert loss(columns_of(second)).isfinite()
    assert len(loss) == 8


@pytest.mark.parametrize(
    "narrow", [torch.nn.Module.half, torch.nn.Module.bfloat16, lambda loss: loss.to(torch.float16)]
)
def test_half_precision_leaves_the_banks(filled, narrow):
    loss = copy.deepcopy(filled)
    narrow(loss)
    assert loss.model.table.weight.dtype.itemsize == 2 and same_banks(loss, filled)
    assert loss.double().vectors.dtype == torch.float64 and same_banks(loss, filled)


def test_banks_that_were_loaded_come_to_the_device_of_the_vectors(filled):
    loss = copy.deepcopy(filled)
    loss._init_banks(torch.zeros(4, 3, 6, device="meta"))
    assert loss.vectors.device.type == loss.keys.device.type == "meta" and len(loss) == 6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_of_a_loss_empties_banks_of_its_own(copied):
    loss = ContAccumLoss(Words(), 8, past_encoder=False)
    first, second = batches(4)[:2]
    loss(columns_of(first))  # whose backward pass has not come
    other = copied(loss)
    assert same_banks(loss, other) and other.callback._loss[0] is other
    optimizer = torch.optim.SGD(other.model.parameters(), 0.1)
    other(columns_of(second)).backward()
    optimizer.step()
    assert (len(loss), len(other)) == (4, 0)


@pytest.mark.parametrize(
    "load",
    [
        lambda loss, other, folder: loss.load_banks(folder),
        lambda loss, other, folder: loss.load_state_dict(other.state_dict()),
    ],
)
def test_banks_loaded_in_inference_mode_are_trained_with(filled, tmp_path, load):
    filled.save_banks(tmp_path)
    loss = ContAccumLoss(Words(), 6)
    with torch.inference_mode():
        load(loss, filled, tmp_path)
    loss(columns_of(batches(5)[4])).backward()
    assert len(loss) == 6 and not same_banks(loss, filled)


# --- in the trainer -------------------------------------------------------------------------------


class Plain(TransformerTower):
    """A tower that reads passages as sentence-transformers does: title and text as one."""

    def tokenize(self, texts, titles=None, length=64):
        return super().tokenize(
            [f"{title} {text}" for title, text in zip(titles, texts)] if titles else texts,
            length=length,
        )


def small_bert(pairs, dim, folder):
    """A small BERT without dropout, saved.

    The same weights for a Run and for a SentenceTransformer.
    """
    torch.manual_seed(0)
    tower = TransformerTower.small_bert(vocabulary_for(pairs), dim, pooling="mean", layers=1)
    tower.model.config.hidden_dropout_prob = tower.model.config.attention_probs_dropout_prob = 0.0
    tower.save_pretrained(folder)
    return str(folder)


def sentence_transformer(folder, length=64):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(folder, max_seq_length=length)
    return SentenceTransformer(
        modules=[body, Pooling(body.get_embedding_dimension(), "mean")], device="cpu"
    )


def arguments(out, **fields):
    return SentenceTransformerTrainingArguments(
        **{
            **dict(
                output_dir=str(out),
                per_device_train_batch_size=4,
                gradient_accumulation_steps=3,
                max_steps=8,
                learning_rate=2e-3,
                lr_scheduler_type="linear",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=1,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            **fields,
        }
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return small_bert(cl.load_pairs("toy"), 32, tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def triples():
    chosen = cl.load_pairs("toy").train[:90]
    return Dataset.from_dict(
        {
            "anchor": [p.query for p in chosen],
            "positive": [p.passage for p in chosen],
            "negative": [p.hard_negatives[0].text for p in chosen],
        }
    )


class Stop(TrainerCallback):
    """Ends a training before its time, as a machine that goes away does."""

    def __init__(self, update):
        self.update = update

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.update


def train(bert, triples, out, loss_fields={}, resume=None, callbacks=(), **fields):
    model = sentence_transformer(bert)
    loss = ContAccumLoss(model, 20, **loss_fields)
    trainer = SentenceTransformerTrainer(
        model,
        arguments(out, **fields),
        train_dataset=triples,
        eval_dataset=triples.select(range(12)),
        loss=loss,
        callbacks=[loss.callback, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, model, loss


def weights(model):
    return torch.cat(
        [p.detach().flatten() for name, p in model.named_parameters() if "pooler" not in name]
    )


def test_training_resumed_is_training_that_was_not_interrupted(bert, triples, tmp_path):
    """Past the end of an epoch, with evaluations on the way.

    An epoch of 90 pairs is 7 full updates and a short one.
    """
    often = dict(
        save_strategy="steps", save_steps=5, eval_strategy="steps", eval_steps=2, max_steps=11
    )
    whole = train(bert, triples, tmp_path / "whole", **often)
    train(bert, triples, tmp_path / "halves", callbacks=[Stop(5)], **often)
    saved = sorted(path.name for path in (tmp_path / "halves" / "checkpoint-5").iterdir())
    assert "contaccum.safetensors" in saved and not any(name.startswith(".") for name in saved)
    again = train(bert, triples, tmp_path / "halves", resume=True, **often)
    assert whole[0].state.global_step == again[0].state.global_step == 11
    assert len(whole[2]) == 20 and whole[2].vectors.shape == (20, 3, 32)
    for name, value in whole[2].bank_state().items():
        assert torch.equal(value, again[2].bank_state()[name]), name
    assert torch.equal(weights(whole[1]), weights(again[1]))
    assert (weights(whole[1]) - weights(sentence_transformer(bert))).abs().max() > 1e-3

    os.remove(tmp_path / "halves" / "checkpoint-5" / "contaccum.safetensors")
    with pytest.raises(ValueError, match="resumes at update 5 without its banks"):
        train(
            bert,
            triples,
            tmp_path / "halves",
            resume=str(tmp_path / "halves" / "checkpoint-5"),
            **often,
        )


SAVING = dict(save_strategy="steps", save_steps=3, max_steps=6)


def test_resume_takes_the_banks_of_the_checkpoint_it_resumes_from(bert, triples, tmp_path):
    """Of the folder A, where the new training's folder B has a checkpoint of the same update."""
    whole = train(bert, triples, tmp_path / "whole", **SAVING)
    train(bert, triples, tmp_path / "A", callbacks=[Stop(3)], **SAVING)
    train(bert, triples, tmp_path / "B", **SAVING | dict(seed=2, max_steps=3))
    again = train(
        bert, triples, tmp_path / "B", resume=str(tmp_path / "A" / "checkpoint-3"), **SAVING
    )
    assert again[0].state.global_step == 6 and same_banks(whole[2], again[2])
    assert torch.equal(weights(whole[1]), weights(again[1]))


def test_resume_takes_no_banks_of_another_training(bert, triples, tmp_path):
    """A checkpoint that was moved is not searched for; what is given by hand is taken."""
    whole = train(bert, triples, tmp_path / "A", **SAVING)
    train(bert, triples, tmp_path / "B", **SAVING | dict(seed=2, max_steps=3))
    moved = str((tmp_path / "A").rename(tmp_path / "C") / "checkpoint-3")
    with pytest.raises(
        ValueError, match="without its banks.*written by another training.*load_banks"
    ):
        train(bert, triples, tmp_path / "B", resume=moved, **SAVING)
    model = sentence_transformer(bert)
    loss = ContAccumLoss(model, 20)
    loss.load_banks(moved)
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path / "B", **SAVING),
        train_dataset=triples,
        loss=loss,
        callbacks=[loss.callback],
    )
    trainer.train(resume_from_checkpoint=moved)
    assert same_banks(whole[2], loss) and torch.equal(weights(whole[1]), weights(model))

    shutil.copy(
        tmp_path / "B" / "checkpoint-3" / "contaccum.safetensors", moved
    )  # as after a training that
    with pytest.raises(ValueError, match="written by another training"):  # ended between two files
        train(bert, triples, tmp_path / "C", resume=moved, **SAVING)


def test_checkpoints_without_numbers_of_trainings_are_resumed(bert, triples, tmp_path):
    """They were written before banks knew their training."""
    whole = train(bert, triples, tmp_path, **SAVING)
    folder = tmp_path / "checkpoint-3"
    save_file(load_file(folder / "contaccum.safetensors"), folder / "contaccum.safetensors")
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["stateful_callbacks"].pop("ContAccumLoss")["contaccum"]["folder"] == str(tmp_path)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    again = train(bert, triples, tmp_path, resume=str(folder), **SAVING)
    assert same_banks(whole[2], again[2]) and torch.equal(weights(whole[1]), weights(again[1]))


def test_processes_with_banks_of_their_own_resume_with_them(tmp_path):
    from test_parallel import launch

    small_bert(cl.load_pairs("toy"), 32, tmp_path / "bert")
    process = launch(2, tmp_path, "apart", script="sharded_worker.py")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    files = {path.name for path in (tmp_path / "A" / "checkpoint-2").glob("contaccum*")}
    assert files == {"contaccum-0.safetensors", "contaccum-1.safetensors"}


def two_losses(bert, triples, out, names, resume=None, memory=(20, 20)):
    """A training of two data sets, each with a loss of its own."""
    model = sentence_transformer(bert)
    losses = {
        data: ContAccumLoss(model, size, **fields)
        for data, fields, size in zip(("one", "two"), names, memory)
    }
    data = DatasetDict(one=triples.select(range(45)), two=triples.select(range(45, 90)))
    trainer = SentenceTransformerTrainer(
        model,
        arguments(out, **SAVING | dict(multi_dataset_batch_sampler="round_robin")),
        train_dataset=data,
        loss=losses,
        callbacks=[loss.callback for loss in losses.values()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, losses


def test_two_losses_never_share_a_file(bert, triples, tmp_path):
    for names in ([{}, {}], [{}, dict(name="CONTACCUM")]):  # some file systems know no capitals
        with pytest.raises(ValueError, match="two losses .* name of its own"):
            two_losses(bert, triples, tmp_path, names)
    assert not list(tmp_path.glob("checkpoint-*"))
    names = [{}, dict(name="second")]
    model, losses = two_losses(bert, triples, tmp_path, names)
    assert not same_banks(*losses.values())
    again, resumed = two_losses(bert, triples, tmp_path, names, str(tmp_path / "checkpoint-3"))
    assert all(same_banks(losses[data], resumed[data]) for data in losses)
    assert torch.equal(weights(model), weights(again))


def test_a_loss_without_memory_leaves_the_banks_of_others(bert, triples, tmp_path):
    _, losses = two_losses(bert, triples, tmp_path, [{}, {}], memory=(20, 0))
    saved = ContAccumLoss(Words(), 20)
    saved.load_banks(tmp_path / "checkpoint-6")
    assert len(saved) == 20 and same_banks(saved, losses["one"])


def test_a_second_training_starts_with_empty_banks(bert, triples, tmp_path):
    class Watch(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            sizes.append(len(loss))

    sizes, model = [], sentence_transformer(bert)
    loss = ContAccumLoss(model, 20)
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, max_steps=3),
        train_dataset=triples,
        loss=loss,
        callbacks=[loss.callback, Watch()],
    )
    for _ in range(2):
        trainer.train()
    assert len(loss) == 20
    loss.save_banks(tmp_path)
    loss.load_banks(tmp_path)  # these are wanted
    trainer.train()
    loss.load_state_dict(loss.state_dict())
    trainer.train()
    assert sizes == [0, 0, 20, 20]


def test_trials_of_a_search_save_no_banks_beside_their_checkpoints(tmp_path):
    loss = ContAccumLoss(Words(), 4)
    for searches in (True, False):
        state = TrainerState(global_step=3, is_hyper_param_search=searches)
        loss.callback.on_save(arguments(tmp_path), state, None)
        assert (tmp_path / "checkpoint-3").exists() != searches


def test_a_batch_may_come_again_after_its_backward_pass():
    loss = ContAccumLoss(Words(), 20)
    batch = columns_of(batches(4)[0])
    for _ in range(2):
        loss(batch).backward()
    loss(batch)
    with torch.no_grad():
        loss(batch)
    assert len(loss) == 12
    before = loss.bank_state()
    loss(batch)  # before its backward pass: the same batch once more
    assert all(torch.equal(before[name], value) for name, value in loss.bank_state().items())


def test_without_past_encoders_the_banks_are_emptied_by_each_update(bert, triples, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            seen.append(len(loss))

        def on_step_end(self, args, state, control, **_):
            seen.append(len(loss))

    model = sentence_transformer(bert)
    loss = ContAccumLoss(model, 20, past_encoder=False)
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, max_steps=3),
        train_dataset=triples,
        loss=loss,
        callbacks=[loss.callback, Watch()],
    )
    trainer.train()
    assert seen == [4, 8, 0] * 3
    another = Words()
    loss([model.preprocess(["a b", "c d"]) for _ in range(3)], None)
    optimizer = torch.optim.SGD(another.parameters(), 0.1)
    another(texts([[1, 2, 3]]))["sentence_embedding"].sum().backward()
    optimizer.step()
    assert len(loss) == 2  # another model's optimiser empties nothing


def test_evaluation_in_the_trainer_leaves_the_banks(bert, triples, tmp_path):
    trainer, _, loss = train(bert, triples, tmp_path, max_steps=2)
    before = loss.bank_state()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert all(torch.equal(before[name], value) for name, value in loss.bank_state().items())


def test_python_docs_end_to_end_reaches_what_a_run_reaches(docs, tmp_path):
    """The same model, pairs, order and settings.

    A Run and a SentenceTransformerTrainer end at the same Top@20.
    """
    updates, local, steps, memory = 80, 16, 3, 32
    passages = docs.passages[:2000]
    known = {passage.id for passage in passages}
    train, test = (
        [pair for pair in part if pair.passage_id in known] for part in (docs.train, docs.test)
    )
    some = Pairs(
        "some", train[: len(train) // (local * steps) * local * steps], test, passages
    )  # whole updates: the trainer's epochs are other ones
    folder = small_bert(some, 64, tmp_path / "bert")
    tower = Plain.from_pretrained(folder)
    run = cl.Run(
        some,
        cl.Settings.preset(
            "contaccum",
            tower=folder,
            shared=True,
            local_batch=local,
            accumulation_steps=steps,
            memory_size=memory,
            temperature=1.0,
            learning_rate=2e-3,
            updates=updates,
            warmup=0,
            clip_norm=2.0,
            pooling="mean",
            query_tokens=48,
            passage_tokens=48,
        ),
        towers=(tower, tower),
    )
    start = run.evaluate()["top@20"]
    order = [
        int(row)
        for update in range(updates)
        for batch in run.sampler.batches(update)
        for row in batch.pair_ids
    ]
    for _ in run:
        pass
    wanted = run.evaluate()["top@20"]

    model = sentence_transformer(folder, length=48)
    loss = ContAccumLoss(model, memory, scale=1.0, similarity_fct=dot_score)
    chosen = [some.train[row] for row in order]
    data = Dataset.from_dict(
        {
            "anchor": [p.query for p in chosen],
            "positive": [f"{p.title} {p.passage}" for p in chosen],
        }
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments(
            tmp_path / "out",
            per_device_train_batch_size=local,
            gradient_accumulation_steps=steps,
            max_steps=updates,
            max_grad_norm=2.0,
            learning_rate=2e-3,
            batch_sampler=_in_order,
            adam_epsilon=1e-8,
        ),
        train_dataset=data,
        loss=loss,
        callbacks=[loss.callback],
    )
    trainer.train()
    queries = model.encode([p.query for p in some.test], convert_to_numpy=True, batch_size=256)
    passages = model.encode(
        [f"{p.title} {p.text}" for p in some.passages], convert_to_numpy=True, batch_size=256
    )
    _, rows = exact_search(queries, passages, 100)
    found = retrieval_metrics(rows, [{some.row_of[p.passage_id]: 1} for p in some.test])["top@20"]
    assert wanted > start + 0.05 and abs(found - wanted) < 0.02, (start, wanted, found)
    assert len(loss) == memory
    print("top@20", start, wanted, found)


def _in_order(dataset, batch_size, drop_last, **_):
    return torch.utils.data.BatchSampler(range(len(dataset)), batch_size, drop_last)


def test_equal_texts_of_a_static_embedding_are_known_by_its_offsets():
    """Token ids that lie end to end, with offsets, are masked as padded rows are."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    pairs = cl.load_pairs("toy")
    torch.manual_seed(0)
    model = SentenceTransformer(
        modules=[StaticEmbedding(vocabulary_for(pairs), embedding_dim=8)], device="cpu"
    )
    queries, passages = ["a set", "a list", "a set"], ["one two", "three", "one two"]
    loss = ContAccumLoss(model, memory_size=4)
    features = [model.preprocess(column) for column in (queries, passages)]
    vectors = [
        normalize(model.encode(column, convert_to_tensor=True)) for column in (queries, passages)
    ]
    mask = torch.tensor([[False, False, True], [False] * 3, [True, False, False]])
    expected = cl.info_nce(*vectors, temperature=1 / loss.scale, mask=mask)
    model.train()  # in training alone does a batch go into the banks
    assert torch.allclose(loss(features), expected, atol=1e-6)
    keys = loss.bank_state()["keys"]
    assert keys[0].equal(keys[2]) and not keys[0].equal(keys[1])


# --- other objectives, directions and masks -----------------------------------------------------------


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("query_bank", [True, False])
@pytest.mark.parametrize("directions", ["query", "both", "all"])
@pytest.mark.parametrize("objective", ["info_nce", "decoupled"])
def test_objectives_and_directions_are_those_of_the_library(
    objective, directions, query_bank, margin
):
    """Loss and weights' gradient against `core.directions.contrast`, with a bank and negatives."""
    from contaccum_lite.core.directions import contrast
    from contaccum_lite.core.masks import with_margin
    from contaccum_lite.core.objectives import STATELESS

    function = STATELESS[objective]
    function = function if margin is None else with_margin(function, margin)
    model, other = Words(), Words()
    how = dict(objective=objective, directions=directions, mask_margin=margin)
    loss = ContAccumLoss(model, 6, scale=5.0, query_bank=query_bank, mask_duplicates=False, **how)
    for batch in batches(4, repeats=False):
        features = columns_of(batch)
        model.zero_grad(), other.zero_grad()
        bank = normalize(loss.vectors[: len(loss)], dim=-1)
        value = loss(features, None)
        value.backward()
        vectors = [normalize(other(column)["sentence_embedding"], dim=1) for column in features]
        is_filled = len(bank) > 0
        wanted = contrast(
            *(v.detach() for v in vectors[:2]),
            bank[:, 0] if is_filled and query_bank else None,
            bank[:, 1] if is_filled else None,
            vectors[2].detach(),
            1 / 5,
            bank_hard_negatives=bank[:, 2] if is_filled else None,
            directions=directions,
            objectives=(function, function),
        )
        torch.autograd.backward(vectors, wanted.gradients)
        assert abs(value.item() - wanted.loss.item()) < TIGHT
        assert model.table.weight.grad.norm() > 1e-3
        assert (model.table.weight.grad - other.table.weight.grad).abs().max() < TIGHT
    assert len(loss) == 6


def test_objectives_that_need_a_run_are_refused_and_the_full_matrix_is_said(caplog):
    with pytest.raises(ValueError, match="objective is 'sogclr', which keeps numbers of its own"):
        ContAccumLoss(Words(), 8, objective="sogclr")
    with pytest.raises(ValueError, match="directions is 'up': choose one of query, both, all"):
        ContAccumLoss(Words(), 8, directions="up")
    with pytest.raises(ValueError, match="mask_margin is 'x'"):
        ContAccumLoss(Words(), 8, mask_margin="x")
    loss = ContAccumLoss(Words(), 300, objective="decoupled")
    assert loss.get_config_dict()["objective"] == "decoupled"
    for batch in batches(4):
        loss(columns_of(batch), None).backward()
    assert caplog.text.count("whole similarity matrix") == 1 and "'decoupled'" in caplog.text


@pytest.mark.parametrize("directions", ["query", "both", "all"])
def test_copies_are_left_out_of_the_other_objectives_too(directions):
    """The mask of equal texts, given to the library's own function, gives the same loss."""
    from contaccum_lite.core.directions import contrast
    from contaccum_lite.core.objectives import decoupled_loss

    batch = batches(1, repeats=False)[0][[0, 1, 2, 2], :2]  # pairs 2 and 3 are copies
    model, features = Words(), columns_of(batch)
    vectors = [normalize(model(f)["sentence_embedding"], dim=1).detach() for f in features]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2, 3] = mask[3, 2] = True
    how = dict(objective="decoupled", directions=directions)
    functions = (decoupled_loss, decoupled_loss)
    wanted = contrast(
        *vectors, temperature=1 / 20, mask=mask, directions=directions, objectives=functions
    )
    found = ContAccumLoss(model, 4, **how)(features, None)
    assert abs(found.item() - wanted.loss.item()) < TIGHT
    with_copies = ContAccumLoss(model, 4, mask_duplicates=False, **how)(features, None)
    assert abs(with_copies.item() - found.item()) > 1e-3
