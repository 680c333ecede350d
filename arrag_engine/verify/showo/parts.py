"""Checks of pictures, prompts and one pass of the decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from ...checkpoints.weights import open_weights
from ...images import square
from ...models.showo.model import MaskedAttention
from ...models.showo.phi import rotary_angles
from ...models.showo.pixels import BICUBIC, mask_shares, masked_cells, to_pixels, to_unit
from ...sampling import guide
from ..golden import EXACT, LOGITS, PIXELS, Golden, Values
from .fixture import CFG_LOGITS, PROBS, ShowOFixture, level_values

PIXELS_IN = 1e-6


def check_preprocess(fixture: ShowOFixture, golden: Golden) -> Values:
    side, width = fixture.settings["image_size"], fixture.grid.width
    sources = [Image.fromarray(golden[f"source{i}_u8"].numpy()) for i in range(2)]
    for i, source in enumerate(sources):
        yield f"pixels{i}", PIXELS_IN, to_pixels(square(source, side, BICUBIC))
    bilinear = square(sources[1], side, Image.Resampling.BILINEAR)
    yield "arrag_pixels1", PIXELS_IN, to_pixels(bilinear)
    painted = Image.fromarray(golden["mask_source_u8"].numpy())
    pixels = to_unit(square(painted, side, BICUBIC))
    yield "mask_pixels", PIXELS_IN, pixels
    yield "mask_interp", PROBS, mask_shares(pixels, width)
    yield "mask_grid", EXACT, masked_cells(painted, side, width)


def check_vq(fixture: ShowOFixture, golden: Golden) -> Values:
    vq, source = fixture.model.vq, fixture.golden("preprocess")
    images = torch.stack((source["pixels0"], source["pixels1"]))
    codes, vectors = vq.encode(images)
    yield "z_pre_quant", LOGITS, vq.encoder(images)
    yield "z_quantised", LOGITS, vectors.permute(0, 3, 1, 2)
    yield "codes", EXACT, codes
    decoded = vq.decode(codes)
    yield "decoded", PIXELS, decoded
    yield from level_values("image_u8", golden, decoded)
    height, width = fixture.settings["vq"]["rect_shape"]
    rectangle = vq.decode(golden["rect.codes"].long().view(1, height, width))
    yield "rect.decoded", PIXELS, rectangle


def check_prompts(fixture: ShowOFixture, golden: Golden) -> Values:
    prompts = torch.tensor([fixture.padded(fixture.ids(words)) for words in fixture.words])
    unknown = torch.zeros(len(prompts), fixture.grid.size, dtype=torch.long)
    sequences = fixture.sequences(prompts, unknown, unknown.bool())
    yield "sequence", EXACT, sequences
    yield "attention_allowed", EXACT, fixture.allowed(sequences)


def check_vanilla(fixture: ShowOFixture, golden: Golden) -> Values:
    model, ids, slots = fixture.model, golden["input_ids"].long(), fixture.slots
    allowed = fixture.allowed(ids)
    yield "attention_allowed", EXACT, allowed
    states, attend = [model.embed(ids)], MaskedAttention(allowed[:, None])
    rotary = rotary_angles(model.config.phi, torch.arange(ids.shape[1]))
    for i, layer in enumerate(model.phi.layers):
        states.append(layer(states[-1], rotary, attend, i)[0])
    final = model.phi.final_layernorm(states[-1])
    yield "hidden_states", LOGITS, torch.stack([*states[:-1], final])
    weights = open_weights([fixture.folder / "showo_model.safetensors"])
    head = (weights.read(f"showo.lm_head.{part}") for part in ("weight", "bias"))
    yield "logits_full", LOGITS, F.linear(final, *head)
    picture = ids[:, slots + 1 : -1]
    known, first = picture != fixture.vocabulary.mask, fixture.vocabulary.first_code
    tokens = (picture - first).where(known, 0)
    yield "masked", EXACT, ~known[0]
    logits = model.masked_logits(model.open(ids[:, :slots]), tokens, known)
    codes = golden["logits_full"][:, slots + 1 : -1, first : first + model.vocab]
    yield "logits_full (text computed once)", LOGITS, logits, codes
    yield "image_logits_cfg_w3", CFG_LOGITS, guide(logits, 1 + fixture.settings["vanilla"]["cfg_w"])
