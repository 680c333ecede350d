"""Whether a checkpoint is what it should be: its sizes, its text ids, what it draws."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from ...checkpoints import Checkpoint
from ...models.janus.prompt import PromptEncoder as JanusEncoder
from ...models.showo.prompt import PromptEncoder as ShowOEncoder
from ...models.tokenizing import TextTokenizer
from ..pictures import decode_tokens
from .material import Material

SPOKEN = "Hello, how are you?"
JANUS_IDS = (17464, 11, 946, 418, 340, 30)
"""Of SPOKEN in the tokenizer of Janus-Pro, whose text has 102,400 ids."""
JANUS_TEXT, JANUS_BEGIN, JANUS_PAD = 102_400, 100_000, 100_002
SHOW_O_IDS = (15496, 11, 703, 389, 345, 30)
"""The same in the tokenizer of Phi-1.5, which is GPT-2's, whose text has 50,295 ids in Show-o."""
SHOW_O_TEXT = 50_295
FLAT = 0.9
"""A picture of which more of the tokens are equal shows nothing."""
LEAST_PSNR = 18.0
"""In dB: a picture tokenizer that does worse has the wrong weights."""
THUMBNAIL = 192


@dataclass(frozen=True)
class Check:
    """What was looked at, and whether it is right; None where nothing is known of such a model."""

    name: str
    right: bool | None
    detail: str


def check_checkpoint(checkpoint: Checkpoint, material: Material, drawn: np.ndarray) -> list[dict]:
    """The checks of a model that has loaded, as JSON has them.

    Args:
        drawn: Tokens [N] of a picture drawn without retrieval.
    """
    checks = [
        sizes(checkpoint),
        text_ids(checkpoint),
        look(drawn),
        round_trip(checkpoint, material),
    ]
    return [asdict(check) for check in checks]


def sizes(checkpoint: Checkpoint) -> Check:
    """Loading has compared all keys and shapes already."""
    model = checkpoint.model
    height, width = model.config.image_size
    detail = (
        f"all tensors are there and fit together: {sum(p.numel() for p in model.parameters()):,} "
        f"weights, {model.vocab} picture codes, {model.grid.height}x{model.grid.width} tokens, "
        f"{width}x{height} pixels"
    )
    return Check("keys and sizes", True, detail)


def text_ids(checkpoint: Checkpoint) -> Check:
    """The ids of a sentence, where the tokenizer should be a known one."""
    encoder = checkpoint.prompt_encoder
    assert isinstance(encoder, TextTokenizer)
    found = tuple(encoder.encoded(SPOKEN).ids)
    wanted, special = None, True
    if isinstance(encoder, JanusEncoder):
        if encoder.vocab_size == JANUS_TEXT:
            wanted = JANUS_IDS
            special = (encoder.bos_id, encoder.pad_id) == (JANUS_BEGIN, JANUS_PAD)
    elif isinstance(encoder, ShowOEncoder) and encoder.vocabulary.text == SHOW_O_TEXT:
        wanted = SHOW_O_IDS
    detail = f"{SPOKEN!r} has the ids {', '.join(map(str, found))}"
    if wanted is None:
        return Check("text ids", None, f"{detail}; the tokenizer is none of the known ones")
    if found == wanted and special:
        return Check("text ids", True, f"{detail}, as it should")
    return Check(
        "text ids",
        False,
        f"{detail}; they should be {', '.join(map(str, wanted))}, so "
        "tokenizer.json is another model's",
    )


def look(drawn: np.ndarray) -> Check:
    """Whether a drawn picture has something on it."""
    share = np.bincount(drawn).max() / len(drawn)
    detail = f"{len(np.unique(drawn))} different tokens, the most frequent one has {share:.0%}"
    return Check("a drawn picture", bool(share < FLAT), detail)


def round_trip(checkpoint: Checkpoint, material: Material) -> Check:
    """How near pictures come back from the tokenizer, by a second passage through it."""
    held = material.held_out[0].tokens[None]
    pixels = decode_tokens(checkpoint, held)[0].astype(np.float64)
    again = encode_pixels(checkpoint, pixels)
    second = decode_tokens(checkpoint, again)[0].astype(np.float64)
    error = ((pixels - second) ** 2).mean()
    psnr = 99.0 if error == 0 else 10 * np.log10(255**2 / error)
    same = (again == held).mean()
    return Check(
        "picture tokenizer",
        bool(psnr >= LEAST_PSNR),
        f"a picture comes back from a second passage with {psnr:.1f} dB, {same:.0%} of its tokens "
        "the same",
    )


def encode_pixels(checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    """Tokens [1, N] of a picture [H, W, 3]."""
    from ...images import to_tensor

    model = checkpoint.model
    image = to_tensor([Image.fromarray(pixels.astype(np.uint8))]).to(model.device)
    return model.vq.encode(image)[0].flatten(1).cpu().numpy()


def thumbnail(checkpoint: Checkpoint, tokens: np.ndarray) -> str:
    """A small JPEG of a picture's tokens [N], in base 64."""
    image = Image.fromarray(decode_tokens(checkpoint, tokens[None])[0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return b64encode(buffer.getvalue()).decode()
