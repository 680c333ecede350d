"""From checkpoints to what is shipped: contact sheets, the model file, pictures for the index."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from concepts import LEARNT
from data import make_composer
from PIL import Image, ImageDraw
from tokenizer import tokenizer_json
from tokens import TokenCache, load_vq, plain_colors
from tqdm import tqdm
from train_decoder import CACHES, make_config
from train_vq import HELD_OUT_SEED

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.build import build_index
from arrag_engine.checkpoint import describe_config, load_checkpoint, write_checkpoint
from arrag_engine.decode import draw_pictures
from arrag_engine.index import PatchIndex, save_index
from arrag_engine.janus import JanusPro
from arrag_engine.layouts import official_name
from arrag_engine.prompt import PromptEncoder
from arrag_engine.sampling import Sampling
from arrag_engine.vq import to_uint8

PROMPTS = (
    "an apple", "a car", "a house", "a tree", "a cat", "a castle", "a star", "a mushroom",
    "a red car", "a blue star", "a purple elephant", "a green heart", "a yellow book",
    "a car on a pink background", "a green elephant on a pink background",
    "an apple on a black background", "two apples", "three balloons", "four stars",
    "two red hats on a green background", "a house right of a tree", "a cat above a ball",
    "an apple and a car", "a blue fish left of a turtle",
)  # fmt: skip
LABEL_HEIGHT = 22
COLUMNS = 8
LICENCE = "MIT (Fluent Emoji, Microsoft)"


def load_trained(work: Path) -> JanusPro:
    """The averaged weights of both trained parts."""
    vq = load_vq(work / "vq.pt")
    model = JanusPro(make_config(vq.config)).eval().requires_grad_(False)
    model.load_state_dict(torch.load(work / "decoder.pt", weights_only=True)["average"])
    return model


def write_samples(model: JanusPro, path: Path, cfg: float = 4.0, seed: int = 0) -> None:
    """A contact sheet of PROMPTS drawn at temperature 1."""
    encoder = PromptEncoder(tokenizer_json())
    height, width = model.config.image_size
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + 8), rows * (height + LABEL_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(tqdm(PROMPTS, desc="draw samples")):
        prompt = encoder.encode(text)
        drawing = draw_pictures(model, prompt.ids, prompt.pad_id, Sampling(cfg), [seed], window=16)
        picture = to_uint8(model.vq.decode(drawing.tokens))[0].numpy()
        x, y = i % COLUMNS * (width + 8), i // COLUMNS * (height + LABEL_HEIGHT)
        sheet.paste(Image.fromarray(picture), (x, y))
        pen.text((x, y + height), f"{text[:17]}\n{text[17:]}", fill="black", font_size=9)
    sheet.save(path)


def export_model(model: JanusPro, path: Path) -> None:
    """Write the model in half precision under the official names."""
    tensors = {official_name(name): t.half() for name, t in model.state_dict().items()}
    config = model.config
    write_checkpoint(path, tensors, config.grid, describe_config(config), tokenizer_json())


def write_pictures(folder: Path, archives: Path, count: int) -> None:
    """Held-out scenes as PNG with a caption file each: `0001-a-red-car.png`, `.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    composer = make_composer(archives, LEARNT)
    rng = np.random.default_rng(HELD_OUT_SEED + 1)
    for number in range(1, count + 1):
        scene = composer.scene(rng)
        stem = f"{number:04d}-{re.sub(r'[^a-z]+', '-', scene.caption)}"
        Image.fromarray(scene.pixels).save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(scene.caption + "\n", encoding="utf-8")


def export_index(model_path: Path, pictures: Path, work: Path, path: Path) -> None:
    """Build the index from the model as shipped: its rounded codebook is what must fit."""
    model = load_checkpoint(model_path, torch.float32).model
    index = build_index(model, pictures, licence=LICENCE).index
    save_index(settled_index(index, pictures, TokenCache.load(work / CACHES[0])), path)


def settled_index(index: PatchIndex, pictures: Path, learnt: TokenCache) -> PatchIndex:
    """The index with the codes for plain patches that the decoder has learnt.

    The encoder's own choice among many codes for one colour would be proposed to a decoder that
    never saw it.
    """
    names = [source.name for source in index.sources]
    pixels = np.stack([np.asarray(Image.open(pictures / name).convert("RGB")) for name in names])
    plain = plain_colors(pixels)
    captions = [source.caption for source in index.sources]
    cache = TokenCache(captions, index.tokens, plain).settled(learnt.plain_codes())
    moved = cache.codes != index.tokens
    assert index.vectors is not None
    vectors = np.where(moved[..., None], index.codebook[cache.codes], index.vectors)
    return replace(index, tokens=cache.codes, vectors=vectors)
