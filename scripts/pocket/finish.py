"""From checkpoints to what is shipped: contact sheets, the model file, pictures for the index."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from concepts import LEARNT, UNSEEN
from data import Composer, Scene, make_composer
from patches import patch_contents
from PIL import Image, ImageDraw
from sprites import Sprites
from tokenizer import tokenizer_json
from tokens import USAGE, Usage, load_vq
from tqdm import tqdm
from train_decoder import make_config
from train_vq import HELD_OUT_SEED
from training import scaled

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.build import BuildOptions, ReadSettings, build_index
from arrag_engine.checkpoints import describe_config, load_checkpoint, write_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.index import KeySpec, PatchIndex, SourceTable, create_index, save_index
from arrag_engine.models.janus.layouts import official_name
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.janus.prompt import PromptEncoder
from arrag_engine.models.pixels import to_uint8
from arrag_engine.settings import Sampling

PROMPTS = (
    "an apple", "a car", "a house", "a tree", "a cat", "a castle", "a star", "a mushroom",
    "an elephant", "a penguin", "a rocket", "an octopus at night", "a lion in the desert",
    "a snowman in the snow", "a train", "a sunflower on the grass",
    "a red car", "a blue star", "a purple elephant", "a green heart", "a yellow book",
    "a blue umbrella on the beach", "a pink house at sunset", "an orange fish",
    "two apples", "three balloons", "four stars", "two dogs on the grass", "three mushrooms",
    "four ducks", "two red hats on a green background", "three cakes",
    "an apple and a car", "a dog and a ball", "a cake and a cup", "a rabbit and a carrot",
    "a crown and a key", "a pizza and a burger on a yellow background",
    "a house right of a tree", "a cat above a ball", "a fish left of a turtle",
    "a bus below a cloud", "a heart above a gift on a pink background", "a moon left of a castle",
    "a red car and a blue house", "a green apple and a purple cup",
    "a yellow flower and a red butterfly", "a blue cat and a pink pig on the grass",
)  # fmt: skip
SAMPLING = Sampling(cfg=1.5, temperature=0.3)
KEYS = KeySpec("causal-8", "zero", "encoder", 2.0)
"""Of the index: with these unseen things come back from flat backgrounds, too."""
LABEL_HEIGHT = 22
COLUMNS = 8
FLUENT, GOOGLE = "MIT (Fluent Emoji, Microsoft)", "Apache-2.0 (Noto Emoji, Google)"


def load_trained(work: Path) -> JanusPro:
    """The averaged weights of all trained parts."""
    vq = load_vq(work / "refined.pt")
    model = JanusPro(make_config(vq.config)).eval().requires_grad_(False)
    model.load_state_dict(torch.load(work / "decoder.pt", weights_only=True)["average"])
    model.vq.load_state_dict(vq.state_dict())
    return model


def write_samples(
    path: Path, models: Sequence[tuple[JanusPro, PromptEncoder, Sampling]], scale: float = 1.0
) -> None:
    """A contact sheet of PROMPTS at seed 0, drawn by one or more models side by side."""
    prompts = PROMPTS[: scaled(len(PROMPTS), scale)]
    height, width = models[0][0].config.image_size
    cell, rows = len(models) * width + 8, -(-len(prompts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * (height + LABEL_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(tqdm(prompts, desc="draw samples")):
        x, y = i % COLUMNS * cell, i // COLUMNS * (height + LABEL_HEIGHT)
        for number, (model, encoder, sampling) in enumerate(models):
            prompt = encoder.encode(text)
            recipe = Recipe(prompt.ids, prompt.unconditional, sampling)
            drawing = draw_pictures(model, recipe, [0], window=16)
            picture = to_uint8(model.vq.decode(drawing.tokens))[0].numpy()
            sheet.paste(Image.fromarray(picture), (x + number * width, y))
        label = "\n".join(textwrap.wrap(text, cell // 5)[:2])
        pen.text((x, y + height), label, fill="black", font_size=9)
    sheet.save(path)


def export_model(model: JanusPro, path: Path) -> None:
    """Write the model in half precision under the official names."""
    tensors = {official_name(name): t.half() for name, t in model.state_dict().items()}
    config = model.config
    described = describe_config(config, SAMPLING)
    write_checkpoint(path, tensors, config.grid, described, tokenizer_json())


def write_picture(folder: Path, number: int, scene: Scene) -> None:
    """A PNG with a caption file: `0001-a-red-car.png`, `0001-a-red-car.txt`."""
    stem = f"{number:04d}-{re.sub(r'[^a-z]+', '-', scene.caption)}"
    Image.fromarray(scene.pixels).save(folder / f"{stem}.png")
    (folder / f"{stem}.txt").write_text(scene.caption + "\n", encoding="utf-8")


def write_pictures(folder: Path, archives: Path, scale: float = 1.0) -> None:
    """Held-out pictures for indexes, in three folders.

    `known`: scenes of what the decoder learnt; `unseen`: single things that it never saw;
    `style`: single things and scenes in the style that it never saw. Leave folders out for an index
    that lacks the unseen things or the style.
    """
    rng = np.random.default_rng(HELD_OUT_SEED + 1)
    known = make_composer(archives, LEARNT, split="held_out")
    style = make_composer(archives, LEARNT, "google", "held_out")
    scenes = {
        "known": [known.scene(rng) for _ in range(scaled(640, scale))],
        "unseen": singles(known.sprites, UNSEEN, rng, scaled(10, scale)),
        "style": singles(style.sprites, LEARNT, rng, scaled(4, scale))
        + [style.scene(rng) for _ in range(scaled(128, scale))],
    }
    for name, drawn in scenes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(drawn, 1):
            write_picture(folder / name, number, scene)


def singles(
    sprites: Sprites, names: Sequence[str], rng: np.random.Generator, times: int
) -> list[Scene]:
    """`times` held-out pictures of each named thing alone, in its own colour."""
    composers = [Composer(sprites, (name,), "held_out") for name in names]
    return [c.scene(rng, "single_object") for c in composers for _ in range(times)]


def export_index(
    model_path: Path,
    pictures: Path,
    work: Path,
    path: Path,
    keys: KeySpec = KEYS,
    structure: str = "auto",
) -> None:
    """Build the index from the model as shipped: its rounded codebook is what must fit."""
    model = load_checkpoint(model_path, torch.float32).model
    options = BuildOptions(keys, ReadSettings(licence=FLUENT), structure)
    index = build_index(model, pictures, work / "encoded.safetensors", options).index
    usage = Usage.load(work / USAGE)
    save_index(licensed_index(settled_index(index, pictures, usage)), path)


def licensed_index(index: PatchIndex) -> PatchIndex:
    """The index with the licence of each picture: the folder `style` is Google's."""
    sources = (
        replace(source, licence=GOOGLE if source.name.startswith("style/") else FLUENT)
        for source in index.sources
    )
    return replace(index, sources=SourceTable.from_sources(sources))


def settled_index(index: PatchIndex, pictures: Path, usage: Usage) -> PatchIndex:
    """The index with the codes that the decoder has learnt, where a patch shows what it has seen.

    The encoder's own choice among many codes for the same pixels would be proposed to a decoder
    that never saw it. Patches of unseen things keep what the encoder gave them.
    """
    names = [source.name for source in index.sources]
    pixels = np.stack([np.asarray(Image.open(pictures / name).convert("RGB")) for name in names])
    tokens = usage.settle(patch_contents(pixels), index.tokens)
    moved = tokens != index.tokens
    vectors = index.vectors
    if vectors is not None:
        vectors = np.where(moved[..., None], index.codebook[tokens], vectors)
    kind = index.searcher.kind
    return create_index(
        index.grid, tokens, vectors, index.codebook, index.sources, index.spec, kind
    )
