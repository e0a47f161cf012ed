"""ContAccumLoss together with what its users train with: each row of docs/sentence-transformers.md's table."""

# pytest fixtures that are imported and asked for by name
# ruff: noqa: F401, F811

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
)
from transformers import TrainerCallback

from contaccum_lite.integrations import sentence_transformers as integration
from contaccum_lite.integrations.cached import CachedContAccumLoss
from contaccum_lite.integrations.sentence_transformers import ContAccumLoss
from test_sentence_transformers import (
    Stop,
    arguments,
    bert,
    same_banks,
    sentence_transformer,
    small_bert,
    triples,
    weights,
)


def fit(model, loss, data, out, around=None, callbacks=(), resume=None, evaluator=None, **fields):
    """Train this model, with the loss or one around it."""
    trainer = SentenceTransformerTrainer(
        model,
        arguments(out, **dict(max_steps=4) | fields),
        train_dataset=data,
        loss=around if around is not None else loss,
        callbacks=[loss.callback, *callbacks],
        evaluator=evaluator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def deep_bert(folder, layers=2):
    """A small BERT of several layers, without dropout."""
    import contaccum_lite as cl
    from contaccum_lite.encoders.transformer import TransformerTower
    from contaccum_lite.encoders.vocabulary import vocabulary_for

    torch.manual_seed(0)
    vocabulary = vocabulary_for(cl.load_pairs("toy"))
    tower = TransformerTower.small_bert(vocabulary, 32, pooling="mean", layers=layers)
    tower.model.config.hidden_dropout_prob = tower.model.config.attention_probs_dropout_prob = 0.0
    tower.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def always(monkeypatch):
    """Scores are kept from the first banked pair on."""
    monkeypatch.setattr(integration, "INCREMENTAL_FROM", 1)


# --- losses around it --------------------------------------------------------------------------------


def layer_vectors(model, features):
    """Mean-pooled vectors of each layer, the last one last."""
    out = model[0].auto_model(
        input_ids=features["input_ids"],
        attention_mask=features["attention_mask"],
        output_hidden_states=True,
    )
    mask = features["attention_mask"][..., None].float()
    return [(hidden * mask).sum(1) / mask.sum(1) for hidden in out.hidden_states]


@pytest.mark.parametrize("kept", [False, True])
def test_adaptive_layers_are_compared_with_the_last_layers_bank(
    triples, tmp_path, kept, monkeypatch
):
    """Loss and gradient of several batches, against hidden states and a list as bank."""
    monkeypatch.setattr(integration, "INCREMENTAL_FROM", 1 if kept else 10**9)
    folder = deep_bert(tmp_path / "bert")
    model, other = sentence_transformer(folder), sentence_transformer(folder)
    other.load_state_dict(model.state_dict())
    model.train(), other.train()
    loss = ContAccumLoss(model, 10, mask_duplicates=False)
    around = AdaptiveLayerLoss(model, loss, n_layers_per_step=-1, kl_temperature=0)
    bank = []
    for step in range(4):
        rows = triples.select(range(4 * step, 4 * step + 4))
        columns = [rows[name] for name in ("anchor", "positive", "negative")]
        model.zero_grad(), other.zero_grad()
        value = around([model.preprocess(list(column)) for column in columns], None)
        value.backward()
        by_column = [layer_vectors(other, other.preprocess(list(column))) for column in columns]
        layers = [torch.stack(vectors, 1) for vectors in zip(*by_column)]  # (B, columns, d) each
        past = torch.stack(bank) if bank else layers[0][:0].detach()

        def contrast(local):
            queries = torch.cat([local[:, 0], past[:, 0]])
            passages = [local[:, 1], past[:, 1], local[:, 2], past[:, 2]]
            scores = normalize(queries, dim=1) @ normalize(torch.cat(passages), dim=1).T
            return cross_entropy(20 * scores, torch.arange(len(queries)))

        wanted = contrast(layers[-1]) + sum(map(contrast, layers[:-1])) / len(layers[:-1])
        wanted.backward()
        assert abs(value.item() - wanted.item()) < 2e-5
        for (name, one), two in zip(model.named_parameters(), other.parameters()):
            if "pooler" not in name:
                assert (one.grad - two.grad).abs().max() < 2e-4, name
        bank = [*bank, *layers[-1].detach()][-10:]
    stored = loss.vectors[torch.arange(10).roll(-int(loss.position[0]))]
    assert torch.allclose(stored, torch.stack(bank), atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka_in_the_trainer(bert, triples, tmp_path, cached):
    """Both losses keep full-length vectors, each pair once, and saved banks can be resumed."""
    model = sentence_transformer(bert)
    make = CachedContAccumLoss if cached else ContAccumLoss
    loss = make(model, 20)
    fit(model, loss, triples, tmp_path, MatryoshkaLoss(model, loss, [32, 16, 8]))
    assert loss.vectors.shape == (20, 3, 32) and len(loss) == 20
    assert len(loss.keys[:, 0].unique()) > 15
    assert (weights(sentence_transformer(bert)) - weights(model)).abs().max() > 1e-3


def test_matryoshka_2d_in_the_trainer(triples, tmp_path, always):
    model = sentence_transformer(deep_bert(tmp_path / "bert"))
    loss = ContAccumLoss(model, 20)
    trainer = fit(model, loss, triples, tmp_path, Matryoshka2dLoss(model, loss, [32, 16]))
    assert loss.vectors.shape == (20, 3, 32) and len(loss) == 20
    assert len(loss.keys[:, 0].unique()) > 15
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_cut_vectors_are_resumed_bit_for_bit(bert, triples, tmp_path, always):
    found = []
    for out, stops in (("whole", ()), ("halves", (Stop(2),))):
        model = sentence_transformer(bert)
        loss = ContAccumLoss(model, 20)
        saving = dict(save_strategy="steps", save_steps=2)
        around = MatryoshkaLoss(model, loss, [32, 16])
        fit(model, loss, triples, tmp_path / out, around, stops, **saving)
        found.append(weights(model))
    model = sentence_transformer(bert)
    loss = ContAccumLoss(model, 20)
    around = MatryoshkaLoss(model, loss, [32, 16])
    fit(model, loss, triples, tmp_path / "halves", around, resume=True, **saving)
    assert torch.equal(found[0], weights(model)) and not torch.equal(found[0], found[1])


# --- memory: checkpointing, LoRA, half precision ---------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_gradient_checkpointing_trains_the_same_weights(triples, tmp_path, cached):
    folder, found, seen = deep_bert(tmp_path / "bert"), [], []
    for checkpointing in (False, True):
        model = sentence_transformer(folder)
        loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
        fit(model, loss, triples, tmp_path / "out", gradient_checkpointing=checkpointing)
        found.append(weights(model))
        seen.append(model[0].auto_model.is_gradient_checkpointing)
        assert len(loss) == 20
    assert seen == [False, True] and (found[0] - found[1]).abs().max() < 1e-6
    assert (weights(sentence_transformer(folder)) - found[1]).abs().max() > 1e-3


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=4,
        lora_alpha=8,
        target_modules=["query", "value"],
    )
    model.add_adapter(config)
    return model


@pytest.mark.parametrize("cached", [False, True])
def test_lora_trains_adapters_alone_and_resumes(bert, triples, tmp_path, cached):
    saving = dict(save_strategy="steps", save_steps=2, learning_rate=2e-2)
    found = []
    for out, stops, resume in (
        ("whole", (), None),
        ("halves", (Stop(2),), None),
        ("halves", (), True),
    ):
        torch.manual_seed(3)
        model = lora(sentence_transformer(bert))
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
        fit(model, loss, triples, tmp_path / out, callbacks=stops, resume=resume, **saving)
        moved = {
            name for name, p in model.named_parameters() if not torch.equal(p.detach(), start[name])
        }
        moved -= {name for name in moved if "pooler" in name}  # in no checkpoint, and not used
        assert moved and all("lora" in name for name in moved) and len(loss) == 20
        found.append(weights(model))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert (tmp_path / "whole" / "checkpoint-4" / "contaccum.safetensors").exists()


def test_lora_with_checkpointing_and_bf16(triples, tmp_path):
    """What a large encoder needs, all at once."""
    model = lora(sentence_transformer(deep_bert(tmp_path / "bert")))
    loss = ContAccumLoss(model, 20)
    trainer = fit(model, loss, triples, tmp_path, gradient_checkpointing=True, bf16=True)
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert loss.vectors.dtype == torch.float32 and len(loss) == 20


@pytest.mark.parametrize("cached", [False, True])
def test_bf16_in_the_trainer_is_near_float32(bert, triples, tmp_path, cached, always):
    values = []
    for bf16 in (False, True):
        model = sentence_transformer(bert)
        loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
        trainer = fit(model, loss, triples, tmp_path, bf16=bf16)
        values.append(trainer.state.log_history[-1]["train_loss"])
        assert loss.vectors.dtype == torch.float32 and loss.vectors.isfinite().all()
    assert values[0] != values[1] and abs(values[0] - values[1]) < 0.05 * values[0]


@pytest.mark.parametrize("cached", [False, True])
def test_fp16_with_a_gradient_scaler(bert, triples, cached, always):
    """The trainer's fp16 asks for a GPU; autocast and the scaler are the same on a processor."""
    model = sentence_transformer(bert).train()
    loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    values = []
    for step in range(6):
        rows = triples.select(range(4 * step, 4 * step + 4))
        columns = [rows[name] for name in ("anchor", "positive", "negative")]
        with torch.autocast("cpu", dtype=torch.float16):
            value = loss([model.preprocess(list(column)) for column in columns], None)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        values.append(value.item())
    assert loss.vectors.dtype == torch.float32 and len(loss) == 20
    assert all(map(math.isfinite, values)) and scaler.get_scale() == 2.0**10
    assert (weights(sentence_transformer(bert)) - weights(model)).abs().max() > 1e-4


# --- the trainer's other habits ---------------------------------------------------------------------------


def test_several_data_sets_have_a_bank_each(bert, triples, tmp_path):
    """Also of different columns: triples and pairs."""
    model = sentence_transformer(bert)
    losses = {
        "triples": ContAccumLoss(model, 16, name="triples"),
        "pairs": ContAccumLoss(model, 12, name="pairs"),
    }
    data = DatasetDict(
        triples=triples.select(range(45)),
        pairs=triples.select(range(45, 90)).remove_columns("negative"),
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, max_steps=6, multi_dataset_batch_sampler="round_robin"),
        train_dataset=data,
        loss=losses,
        callbacks=[loss.callback for loss in losses.values()],
    )
    trainer.train()
    assert losses["triples"].vectors.shape == (16, 3, 32)
    assert losses["pairs"].vectors.shape == (12, 2, 32)
    assert (len(losses["triples"]), len(losses["pairs"])) == (16, 12)
    both = set(losses["triples"].keys[:, 0].tolist()) & set(losses["pairs"].keys[:, 0].tolist())
    assert not both


def test_prompts_are_part_of_the_text(bert, triples, tmp_path):
    keys = []
    for prompts in (None, {"anchor": "query : ", "positive": "passage : "}):
        model = sentence_transformer(bert)
        loss = ContAccumLoss(model, 20)
        fields = {} if prompts is None else dict(prompts=prompts)
        trainer = fit(model, loss, triples, tmp_path, **fields)
        keys.append(loss.keys.clone())
        assert len(loss) == 20 and math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert not (keys[0][:, :2] == keys[1][:, :2]).any()
    assert torch.equal(keys[0][:, 2], keys[1][:, 2])  # negatives have no prompt


def test_prompts_that_pooling_leaves_out_change_no_keys_on_the_way(bert, triples, tmp_path):
    """Pooling without the prompt changes the attention mask while it encodes."""
    model = sentence_transformer(bert)
    model.set_pooling_include_prompt(False)
    loss = ContAccumLoss(model, 20)
    around = MatryoshkaLoss(model, loss, [32, 16])
    fit(model, loss, triples, tmp_path, around, prompts={"anchor": "query : "})
    assert len(loss) == 20 and len(loss.keys[:, 0].unique()) > 15


class Evaluated(TrainerCallback):
    """Counts evaluations, and the banks' changes while they run."""

    def __init__(self, loss):
        self.loss, self.before, self.count = loss, None, 0

    def on_step_end(self, *_, **__):
        self.before = self.loss.bank_state()

    def on_evaluate(self, *_, **__):
        self.count += 1
        now = self.loss.bank_state()
        assert all(torch.equal(value, now[name]) for name, value in self.before.items())


@pytest.mark.parametrize("cached", [False, True])
def test_evaluators_in_the_middle_change_nothing(bert, triples, tmp_path, cached, always):
    rows = triples.select(range(10))
    evaluator = InformationRetrievalEvaluator(
        dict(enumerate(rows["anchor"])),
        {str(number): text for number, text in enumerate(rows["positive"])},
        {number: {str(number)} for number in range(10)},
        show_progress_bar=False,
        write_csv=False,
    )
    found = []
    for often in ({}, dict(eval_strategy="steps", eval_steps=1)):
        model = sentence_transformer(bert)
        loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
        watch = Evaluated(loss)
        fit(model, loss, triples, tmp_path, callbacks=[watch], evaluator=evaluator, **often)
        found.append((weights(model), watch.count))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1], found[1][1]) == (0, 4)


def test_resume_in_the_middle_of_an_epoch(bert, triples, tmp_path, always):
    """With scores that are kept: they are computed again at each save, so both ways are equal."""
    found = []
    for out, stops, resume in (
        ("whole", (), None),
        ("halves", (Stop(3),), None),
        ("halves", (), True),
    ):
        model = sentence_transformer(bert)
        loss = ContAccumLoss(model, 20)
        saving = dict(save_strategy="steps", save_steps=3, max_steps=10)
        fit(model, loss, triples, tmp_path / out, callbacks=stops, resume=resume, **saving)
        found.append((weights(model), loss))
    assert torch.equal(found[0][0], found[2][0]) and same_banks(found[0][1], found[2][1])
    assert not torch.equal(found[0][0], found[1][0])


def two_towers(folder):
    """One encoder for queries and one for passages, which start equal."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer

    towers = []
    for _ in range(2):
        body = Transformer(folder, max_seq_length=64)
        towers.append([body, Pooling(body.get_embedding_dimension(), "mean")])
    router = Router.for_query_document(query_modules=towers[0], document_modules=towers[1])
    return SentenceTransformer(modules=[router], device="cpu")


@pytest.mark.parametrize("cached", [False, True])
def test_two_towers_both_learn(bert, triples, tmp_path, cached, always):
    """The paper's own shape: a tower for queries, and one for passages."""
    model = two_towers(bert)
    loss = (CachedContAccumLoss if cached else ContAccumLoss)(model, 20)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    mapping = {"anchor": "query", "positive": "document", "negative": "document"}
    fit(model, loss, triples, tmp_path, router_mapping=mapping)
    moved = {name for name, p in model.named_parameters() if (p - start[name]).abs().max() > 1e-4}
    for route in ("query", "document"):
        assert any(f"sub_modules.{route}" in name for name in moved)
    query = model.encode(["a text"], task="query", convert_to_tensor=True)
    document = model.encode(["a text"], task="document", convert_to_tensor=True)
    assert (query - document).abs().max() > 1e-3 and len(loss) == 20


def test_two_towers_inside_matryoshka(bert, triples, tmp_path):
    model = two_towers(bert)
    loss = ContAccumLoss(model, 20)
    mapping = {"anchor": "query", "positive": "document", "negative": "document"}
    around = MatryoshkaLoss(model, loss, [32, 16])
    fit(model, loss, triples, tmp_path, around, router_mapping=mapping)
    assert loss.vectors.shape == (20, 3, 32) and len(loss) == 20
