"""Any `transformers` encoder as a tower."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from contaccum_lite.encoders.files import check_tokenizes, read_object, refusing
from contaccum_lite.encoders.pretrained import check_encodes, load_pretrained
from contaccum_lite.encoders.tokens import Tokens, encode_texts, tokenizer_hash
from contaccum_lite.encoders.vocabulary import SPECIAL_TOKENS

POOLINGS = ("cls", "mean")


class TransformerTower(nn.Module):
    """Any `transformers` encoder with CLS or mean pooling. Notebook 09.

    As in DPR there is no projection and no normalisation.

    Args:
        model: an encoder with a `last_hidden_state`.
        tokenizer: its tokenizer, with a padding token.
        pooling: "cls" (the first token's vector) or "mean". Another raises `ValueError`, as does a
            tokenizer whose padding token the encoder does not know.
    """

    def __init__(self, model, tokenizer, pooling: str = "cls"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}: choose one of {', '.join(POOLINGS)}.")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token: "
                "set tokenizer.pad_token before making the tower."
            )
        # a few encoders read characters, without a table of embeddings
        self.embeddings = getattr(model.config, "vocab_size", math.inf)
        if tokenizer.pad_token_id >= self.embeddings:
            raise ValueError(
                "the tokenizer's padding token has the number "
                f"{tokenizer.pad_token_id}, and the encoder has embeddings for 0 to "
                f"{self.embeddings - 1}: choose another padding token."
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a layer on top of [CLS] that DPR does not use
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.pad, self.dim = tokenizer.pad_token_id, model.config.hidden_size
        self.tokenizer_hash = tokenizer
        if tokenizer.is_fast:
            self.tokenizer_hash = tokenizer_hash(tokenizer.backend_tokenizer)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (B, dim) of these token ids (B, L), padded with the tokenizer's padding."""
        mask = (ids != self.pad).long()  # (B, L)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, dim)
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def tokenize(
        self, texts: Sequence[str], titles: Sequence[str] | None = None, length: int = 64
    ) -> Tokens:
        """The token ids of each text, cut to `length`.

        With titles, a text is `[CLS] title [SEP] text [SEP]`.
        """

        def encode(*columns: list[str]) -> list[list[int]]:
            encodings = self.tokenizer(*columns, truncation=True, max_length=length, padding=False)
            return encodings["input_ids"]

        columns = [texts] if titles is None else [titles, texts]
        return encode_texts(encode, columns, length, self.pad, self.embeddings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder and its tokenizer as `transformers` does, and the pooling."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / "pooling.json").write_text(json.dumps({"pooling": self.pooling}))

    @classmethod
    def from_pretrained(cls, folder: str | Path, pooling: str | None = None) -> TransformerTower:
        """An encoder from a folder or, by its name on the hub, from the cache or the network.

        Only safetensors are read, and no code that comes with the encoder is run. `pooling`: None
        takes the saved one, or "cls". Raises `ValueError` for an encoder that cannot be read.
        """
        path = Path(folder) / "pooling.json"
        if pooling is None and path.is_file():
            pooling = read_object(path).get("pooling")
            if pooling not in POOLINGS:
                raise ValueError(
                    f"{path} has pooling={pooling!r}: expected one of {', '.join(POOLINGS)}."
                )
        model, tokenizer = load_pretrained(folder)
        files = f"{folder} (config.json, tokenizer_config.json)"
        with refusing(files, "an encoder of texts and its tokenizer"):
            tower = cls(model, tokenizer, pooling or "cls")
        check_tokenizes(tower, folder)
        check_encodes(tower, folder)
        return tower

    @classmethod
    def small_bert(
        cls, tokenizer, dim: int, pooling: str = "cls", layers: int = 2, heads: int = 4
    ) -> TransformerTower:
        """A BERT of random weights over a WordPiece vocabulary, of a size that one core trains."""
        from tokenizers.processors import TemplateProcessing
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        if dim % heads:
            below, above = dim // heads * heads, (dim // heads + 1) * heads
            raise ValueError(
                f"dim is {dim}, not a multiple of the {heads} attention heads: "
                f"choose {below or heads} or {above}."
            )
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * dim,
        )
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        special_tokens = dict(zip(names, SPECIAL_TOKENS))
        fast_tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)
        return cls(BertModel(config), fast_tokenizer, pooling)
