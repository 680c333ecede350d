"""Scenes as the decoder sees them: prompt ids and image codes, made once and kept in a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import Composer
from tokenizer import tokenizer_json
from torch import Tensor
from tqdm import tqdm
from train_vq import skip_idle

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.prompt import UNKNOWN, PromptEncoder
from arrag_engine.vq import VQConfig, VQModel

ENCODE_BATCH = 32


@dataclass(frozen=True)
class TokenCache:
    """Encoded scenes: captions, and codes [scenes, positions] uint16."""

    captions: list[str]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, captions=np.array(self.captions), codes=self.codes)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TokenCache:
        with np.load(path) as file:
            return cls(file["captions"].tolist(), file["codes"])

    @classmethod
    def join(cls, parts: list[TokenCache]) -> TokenCache:
        captions = [caption for part in parts for caption in part.captions]
        return cls(captions, np.concatenate([part.codes for part in parts]))


def load_vq(path: Path) -> VQModel:
    """The averaged weights of a tokenizer checkpoint, ready to encode and decode."""
    state = torch.load(path, weights_only=True)
    model = VQModel(VQConfig(**state["config"])).eval().requires_grad_(False)
    model.load_state_dict(state["average"])
    skip_idle(model)
    return model.to(memory_format=torch.channels_last)


@torch.inference_mode()
def encode_scenes(vq: VQModel, composer: Composer, seed: tuple[int, int], count: int) -> TokenCache:
    """`count` scenes from the generator seed `seed`."""
    rng = np.random.default_rng(seed)
    captions, codes = [], []
    for start in tqdm(range(0, count, ENCODE_BATCH), desc="encode scenes", unit="batch"):
        scenes = [composer.scene(rng) for _ in range(min(ENCODE_BATCH, count - start))]
        pixels = torch.from_numpy(np.stack([s.pixels for s in scenes])).permute(0, 3, 1, 2)
        captions += [s.caption for s in scenes]
        codes.append(vq.encode(pixels.float() / 127.5 - 1)[0].flatten(1).numpy())
    return TokenCache(captions, np.concatenate(codes).astype(np.uint16))


class Batches:
    """Training batches: right-padded prompt and image ids in one sequence."""

    def __init__(self, cache: TokenCache, drop_prompt: float, drop_word: float) -> None:
        encoder = PromptEncoder(tokenizer_json())
        self.codes = torch.from_numpy(cache.codes.astype(np.int64))
        self.prompts = [np.array(encoder.encode(c).ids) for c in cache.captions]
        self.pad_id = encoder.pad_id
        self.unknown_id = encoder.tokenizer.token_to_id(UNKNOWN)
        self.drop_prompt, self.drop_word = drop_prompt, drop_word

    def prompt(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Prompt ids of a scene, sometimes without their text, or with a word made unknown."""
        ids = self.prompts[index].copy()
        if rng.random() < self.drop_prompt:
            ids[1:-1] = self.pad_id
            return ids
        words = np.arange(3, len(ids) - 3)  # between "<|User|>:" and "<|Assistant|>:"
        ids[words[rng.random(len(words)) < self.drop_word]] = self.unknown_id
        return ids

    def __call__(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """(prompt ids [B, T] right-padded, lengths [B], codes [B, N])."""
        prompts = [self.prompt(i, rng) for i in indices]
        lengths = torch.tensor([len(p) for p in prompts])
        padded = torch.full((len(prompts), int(lengths.max())), self.pad_id)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.from_numpy(prompt)
        return padded, lengths, self.codes[torch.from_numpy(indices)]
