"""Scenes as the decoder sees them: prompt ids and image codes, made once and kept in a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import SIZE, STEP, Composer
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
    """Encoded scenes: captions, codes [scenes, positions] uint16, and the colour of each patch
    that is plain (-1 where something is drawn) [scenes, positions] int32."""

    captions: list[str]
    codes: np.ndarray
    plain: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, captions=np.array(self.captions), codes=self.codes, plain=self.plain)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TokenCache:
        with np.load(path) as file:
            return cls(file["captions"].tolist(), file["codes"], file["plain"])

    @classmethod
    def join(cls, parts: list[TokenCache]) -> TokenCache:
        captions = [caption for part in parts for caption in part.captions]
        codes, plain = (np.concatenate([getattr(p, n) for p in parts]) for n in ("codes", "plain"))
        return cls(captions, codes, plain)

    def plain_codes(self) -> dict[int, int]:
        """The commonest code of the plain patches of each colour."""
        colors = np.unique(self.plain[self.plain >= 0])
        return {int(c): int(np.bincount(self.codes[self.plain == c]).argmax()) for c in colors}

    def settled(self, plain_codes: dict[int, int]) -> TokenCache:
        """With the one given code for all plain patches of a colour.

        Which of many codes for a plain colour the encoder picks hangs on the rest of the picture:
        noise that a small decoder would spend most of its effort on.
        """
        codes = self.codes.copy()
        for color, code in plain_codes.items():
            codes[self.plain == color] = code
        return TokenCache(self.captions, codes, self.plain)


def plain_colors(pixels: np.ndarray) -> np.ndarray:
    """Colour (a number) of each patch of pixels [B, SIZE, SIZE, 3] that is plain, else -1.

    Returns:
        [B, positions] int32 in raster order.
    """
    side = SIZE // STEP
    patches = pixels.reshape(-1, side, STEP, side, STEP, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(len(pixels), side * side, STEP * STEP, 3).astype(np.int32)
    plain = (np.ptp(patches, axis=2) <= 3).all(axis=-1)
    color = (patches[:, :, 0] // 4) @ np.array([64 * 64, 64, 1], dtype=np.int32)
    return np.where(plain, color, -1)


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
    captions, codes, plain = [], [], []
    for start in tqdm(range(0, count, ENCODE_BATCH), desc="encode scenes", unit="batch"):
        scenes = [composer.scene(rng) for _ in range(min(ENCODE_BATCH, count - start))]
        pixels = np.stack([s.pixels for s in scenes])
        captions += [s.caption for s in scenes]
        plain.append(plain_colors(pixels))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        codes.append(vq.encode(images.float() / 127.5 - 1)[0].flatten(1).numpy())
    return TokenCache(captions, np.concatenate(codes).astype(np.uint16), np.concatenate(plain))


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
