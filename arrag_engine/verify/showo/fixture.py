"""A folder of Show-o's golden numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ...checkpoints import open_showo, read_model
from ...checkpoints.weights import open_weights, read_json
from ...errors import InputError
from ...grid import Grid
from ...models.pixels import to_uint8
from ...models.showo.layouts import TOKENIZER
from ...models.showo.model import ShowO, Vocabulary
from ...models.showo.prompt import text_ids
from ...models.showo.vq import code_vectors
from ..golden import LEVELS, Golden, Values

CFG_LOGITS, PROBS = 1e-3, 1e-4
OTHER_LEVELS = 0.01
"""Share of a picture's values that may be a level apart."""
NEEDED_SETTINGS = (
    *("grid_width", "image_size", "image_vocab", "mask_token_id", "max_text_len"),
    *("special_ids", "total_vocab"),
)


class ShowOFixture:
    """A folder of Show-o's golden numbers: settings, model, and the tensors of each group."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        missing = [key for key in NEEDED_SETTINGS if key not in settings]
        if missing:
            raise InputError(f"{folder / 'settings.json'} lacks {', '.join(missing)}")
        side = settings["grid_width"]
        self.grid = Grid(side, side)
        self.slots = settings["max_text_len"] + 1
        self.end = settings["special_ids"]["<|eot|>"]

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.safetensors").is_file()

    def golden(self, group: str) -> Golden:
        return Golden(self.folder / f"{group}.safetensors")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.settings["total_vocab"], self.settings["image_vocab"])

    @cached_property
    def codebook(self) -> np.ndarray:
        """Code vectors [codes, bits]."""
        codes = self.settings["image_vocab"]
        return code_vectors(torch.arange(codes), codes.bit_length() - 1).numpy()

    @cached_property
    def model(self) -> ShowO:
        """In float32; what the checkpoint leaves out stands in the language model's config."""
        config = read_json(self.folder / "config.json")
        config["llm_config"] = read_json(self.folder / "llm_config.json")
        config["max_text_len"] = self.settings["max_text_len"]
        decoder, vq = (
            open_weights([self.folder / f"{name}.safetensors"])
            for name in ("showo_model", "vq_model")
        )
        opened = open_showo(self.folder, decoder.joined(vq, TOKENIZER), config, "", self.grid)
        return cast(ShowO, read_model(opened, torch.float32))

    @cached_property
    def words(self) -> list[list[int]]:
        """Text ids of the prompts."""
        golden, found = self.golden("prompts"), []
        while f"text_ids.{len(found)}" in golden:
            found.append(golden[f"text_ids.{len(found)}"].tolist())
        return found

    def ids(self, words: Sequence[int]) -> list[int]:
        """A prompt's ids."""
        return text_ids(words, self.vocabulary, self.end, self.settings["max_text_len"])

    def padded(self, ids: Sequence[int]) -> list[int]:
        """A prompt's ids, filled up on the left as the official program does."""
        return [self.vocabulary.special("pad")] * (self.slots - len(ids)) + list(ids)

    def sequences(self, prompts: Tensor, tokens: Tensor, known: Tensor) -> Tensor:
        """What the official program feeds [rows, L] of padded prompts [rows, T] and pictures."""
        vocabulary = self.vocabulary
        ids = (tokens + vocabulary.first_code).where(known, vocabulary.mask)
        begin_end = (prompts.new_full((len(ids), 1), vocabulary.special(n)) for n in ("soi", "eoi"))
        first, last = begin_end
        return torch.cat((prompts, first, ids, last), dim=1)

    def allowed(self, sequences: Tensor) -> Tensor:
        """Who sees whom [rows, L, L] in sequences [rows, L]: text what stands before it, the
        picture everything, nobody behind them the pads."""
        length = sequences.shape[1]
        pads = (sequences == self.vocabulary.special("pad")).cumprod(1).bool()
        row, column = torch.arange(length)[:, None], torch.arange(length)
        picture = row >= self.slots
        seen = (column <= row) | picture
        return seen & (~pads[:, None] | pads[:, :, None])


def level_values(name: str, golden: Golden, images: Tensor) -> Values:
    """Pixels as people see them: how far the worst is off, and how many are."""
    if name in golden:
        levels = to_uint8(images)
        yield name, LEVELS, levels
        apart = (levels != golden[name]).double().mean()[None]
        yield f"{name} (share of other levels)", OTHER_LEVELS, apart, torch.zeros(1)
