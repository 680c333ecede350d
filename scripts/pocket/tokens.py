"""Scenes as the decoder sees them: prompt ids and image codes, made once and kept in a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from backgrounds import SIZE, STEP
from data import Composer
from patches import patch_contents
from tokenizer import tokenizer_json
from torch import Tensor
from tqdm import tqdm
from train_vq import skip_idle, to_images

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.models.janus.prompt import PromptEncoder
from arrag_engine.models.janus.vq import VQConfig, VQModel
from arrag_engine.models.tokenizing import UNKNOWN

ENCODE_BATCH = 8
"""Scenes at once; 32 are a third slower on a CPU."""
PATCHES = (SIZE // STEP) ** 2
USAGE = "usage.npz"
"""File name of a saved `Usage`."""


@dataclass(frozen=True)
class Usage:
    """The code that stands for a patch content: the commonest one that the encoder gave it.

    Which of several codes for the same pixels the encoder picks hangs on the rest of the picture:
    noise that a small decoder would spend most of its effort on. Things stand on the raster of the
    patches, so most contents come again and again.
    """

    contents: np.ndarray
    """[known] uint64, ascending."""
    codes: np.ndarray
    """[known]."""

    @classmethod
    def of(cls, contents: np.ndarray, codes: np.ndarray) -> Usage:
        """From contents and codes of one shape; among equally common codes the smallest wins."""
        order = np.lexsort((codes.ravel(), contents.ravel()))
        pairs = np.stack([contents.ravel()[order], codes.ravel()[order].astype(np.uint64)])
        first = np.flatnonzero(np.r_[True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])
        times = np.diff(np.r_[first, pairs.shape[1]])
        pairs = pairs[:, first]
        best = np.lexsort((-times, pairs[0]))
        known, where = np.unique(pairs[0][best], return_index=True)
        return cls(known, pairs[1][best][where].astype(codes.dtype))

    def save(self, path: Path) -> None:
        np.savez(path, contents=self.contents, codes=self.codes)

    @classmethod
    def load(cls, path: Path) -> Usage:
        with np.load(path) as file:
            return cls(file["contents"], file["codes"])

    def settle(self, contents: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """`codes` with those of known contents replaced by the one that stands for them."""
        place = np.searchsorted(self.contents, contents).clip(max=len(self.contents) - 1)
        return np.where(self.contents[place] == contents, self.codes[place], codes)


@dataclass(frozen=True)
class TokenCache:
    """Encoded scenes: captions, codes and patch contents [scenes, positions]."""

    captions: list[str]
    codes: np.ndarray
    contents: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        captions = np.array(self.captions)
        np.savez(partial, captions=captions, codes=self.codes, contents=self.contents)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TokenCache:
        with np.load(path) as file:
            return cls(file["captions"].tolist(), file["codes"], file["contents"])

    @classmethod
    def join(cls, parts: list[TokenCache]) -> TokenCache:
        captions = [caption for part in parts for caption in part.captions]
        codes, contents = (
            np.concatenate([getattr(p, n) for p in parts]) for n in ("codes", "contents")
        )
        return cls(captions, codes, contents)

    def usage(self) -> Usage:
        return Usage.of(self.contents, self.codes)

    def settled(self, usage: Usage) -> TokenCache:
        codes = usage.settle(self.contents, self.codes)
        return TokenCache(self.captions, codes, self.contents)


def load_vq(path: Path) -> VQModel:
    """The averaged weights of a tokenizer checkpoint, ready to encode and decode."""
    state = torch.load(path, weights_only=True)
    config = state["config"] | {"channel_multiplier": tuple(state["config"]["channel_multiplier"])}
    vq = VQModel(VQConfig(**config)).to(memory_format=torch.channels_last)
    skip_idle(vq)
    vq.load_state_dict(state["average"])
    return vq.eval().requires_grad_(False)


@torch.inference_mode()
def encode_scenes(vq: VQModel, composer: Composer, seed: tuple[int, int], count: int) -> TokenCache:
    """`count` scenes from the generator seed `seed`."""
    rng = np.random.default_rng(seed)
    captions: list[str] = []
    # Filled in place: small arrays kept between large ones would hold on to gigabytes.
    codes = np.empty((count, PATCHES), dtype=np.uint16)
    contents = np.empty((count, PATCHES), dtype=np.uint64)
    for start in tqdm(range(0, count, ENCODE_BATCH), desc="encode scenes", unit="batch"):
        scenes = [composer.scene(rng) for _ in range(min(ENCODE_BATCH, count - start))]
        pixels = [scene.pixels for scene in scenes]
        rows = slice(start, start + len(scenes))
        captions += [scene.caption for scene in scenes]
        contents[rows] = patch_contents(np.stack(pixels))
        codes[rows] = vq.encode(to_images(pixels))[0].flatten(1).numpy()
    return TokenCache(captions, codes, contents)


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
