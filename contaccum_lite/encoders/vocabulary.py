"""A WordPiece vocabulary learned from the pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from contaccum_lite.encoders.files import make_tokenizer
from contaccum_lite.utils.files import cached_json

VOCABULARY = 8192  # tokens
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
#: Goes up when the training of a vocabulary changes, so that no old one is taken from the cache.
_VERSION = 2


def train_vocabulary(texts: Sequence[str], size: int = VOCABULARY):
    """A lower-case WordPiece `tokenizers.Tokenizer` learned from the texts. Token 0 is padding.

    The same texts give the same tokenizer. `tokenizers` numbers single characters in the order of a
    hash table that differs from process to process, and breaks ties in the training by those
    numbers. So the characters are numbered here, as if they were special tokens.
    """
    from tokenizers import models, normalizers, trainers

    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    alphabet, rare = _split_characters(texts, normalizer, limit=max(1, min(1000, size // 8)))
    if rare:
        spaces = dict.fromkeys(map(ord, rare), " ")
        texts = [text.translate(spaces) for text in texts]
    numbered = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=numbered, limit_alphabet=10**6, show_progress=False
    )
    trained = _make_tokenizer(models.WordPiece(unk_token="[UNK]"), normalizer)
    trained.train_from_iterator(texts, trainer)

    vocabulary = trained.get_vocab()
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64)
    tokenizer = _make_tokenizer(model, normalizer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def _make_tokenizer(model, normalizer):
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _split_characters(texts: list[str], normalizer, limit: int) -> tuple[list[str], list[str]]:
    """(the most frequent normalized characters, sorted; the characters that need any other)."""
    raw_counts = Counter()
    for text in texts:
        raw_counts.update(text)
    normalized = {c: normalizer.normalize_str(c).strip() for c in raw_counts}
    counts = Counter()
    for character, count in raw_counts.items():
        for normal_character in normalized[character]:
            counts[normal_character] += count
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    rare = [c for c in raw_counts if not set(normalized[c]) <= set(alphabet)]
    return sorted(alphabet), rare


def vocabulary_for(pairs, size: int = VOCABULARY):
    """The WordPiece tokenizer of these pairs' training texts, from the cache if it is there."""
    from tokenizers import Tokenizer

    def build() -> dict:
        texts = []
        for pair in pairs.train:
            texts += [pair.query, f"{pair.title} {pair.passage}"]
        return json.loads(train_vocabulary(texts, size).to_str())

    key = ("vocabulary", size)
    if key not in pairs.memo:
        name = f"wordpiece-{size}-{_VERSION}-{pairs.fingerprint}.json"
        pairs.memo[key] = json.dumps(cached_json(name, build, _check_vocabulary))
    return Tokenizer.from_str(pairs.memo[key])


def _check_vocabulary(value) -> None:
    """Refuse what `train_vocabulary` cannot have made."""
    tokenizer = make_tokenizer(value, "the vocabulary in the cache")
    ids = sorted(tokenizer.get_vocab().values())
    special_tokens = [tokenizer.id_to_token(token) for token in range(len(SPECIAL_TOKENS))]
    if ids != list(range(len(ids))) or special_tokens != SPECIAL_TOKENS:
        raise ValueError("its tokens have other numbers than a trained vocabulary's")
