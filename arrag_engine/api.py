"""The public API: load, draw, build. `arrag_engine` itself hands these names out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from . import decode, session, shipped
from .attribution import Credits, drawing_credits
from .build import BuildOptions, ReadSettings, build_from_images
from .build import build_index as build_from_folder
from .checkpoints import Checkpoint, load_checkpoint, resolve_dtype, resolve_storage
from .checkpoints.adapter import load_adapter as read_adapter
from .decode import Kept, Progress, Trace
from .editing import keep_outside
from .errors import InputError
from .faid import Faid, FaidAdapter
from .images import greys, to_tensor
from .index import AnyIndex, KeySpec, PatchIndex, open_lookup
from .layers import Layer
from .models.ops import pack_linears
from .outpainting import Outpainting, outpaint
from .paths import check_output
from .retrieval import Places
from .settings import SamplingChoice, ScheduleChoice

Parts = Callable[[int, int], None]
"""Called with (parts done, parts in all)."""


@dataclass(frozen=True)
class Drawing:
    """Pictures, and how they came to be."""

    images: list[Image.Image]
    """One per seed."""
    tokens: Tensor
    """Codes [B, height, width] int64."""
    passes: int
    """Passes of the model after the prompt."""
    notes: tuple[str, ...]
    """The values used and where they come from, the subject found, what was skipped."""
    timings: dict[str, float]
    """Seconds: plan, draw, decode."""
    grids: decode.Drawing

    @property
    def traces(self) -> list[Trace]:
        """What drew each token and what was retrieved for it, one per picture. They are made at
        first use, for they cost look-ups."""
        return self.grids.traces

    @property
    def credits(self) -> list[Credits]:
        """What each picture owes to the model and to each source; made from the traces."""
        return drawing_credits(self.grids)


def load_model(
    name: str, dtype: str = "auto", device: str = "auto", progress: Parts | None = None
) -> Checkpoint:
    """A model, ready to draw.

    Args:
        name: A shipped name (pocket), a folder as downloaded, or a file.
        dtype: Of the decoder: auto, bf16, fp16, fp32; int8 or fp8 store its weights in half the
            memory of 16 bits (see docs/models.md).
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        InputError: It cannot be read, or the device cannot be used.
    """
    place = choose_device(device)
    path = shipped.resolve(name, shipped.MODELS)
    computed, stored = resolve_dtype(dtype, place), resolve_storage(dtype)
    checkpoint = load_checkpoint(path, computed, progress=progress, storage=stored)
    settle(checkpoint.model, place)
    return checkpoint


def load_index(name: str) -> AnyIndex:
    """An index: a shipped name (pocket), a file, or the manifest of one in shards.

    Raises:
        InputError: It is none, or damaged.
    """
    return open_lookup(shipped.resolve(name, shipped.INDEXES))


def load_adapter(name: str, model: Checkpoint, progress: Parts | None = None) -> FaidAdapter:
    """A FAiD adapter for a model: a shipped name (pocket), or a file.

    Raises:
        InputError: It is none, damaged, or made for another model.
    """
    path = shipped.resolve(name, shipped.ADAPTERS)
    adapter = read_adapter(path, model, model.model.dtype, progress=progress)
    settle(adapter, model.model.device)
    return adapter


def draw(
    model: Checkpoint,
    prompt: str,
    seeds: Sequence[int] = (0,),
    layers: Sequence[Layer] = (),
    adapter: FaidAdapter | Faid | None = None,
    sampling: SamplingChoice | None = None,
    window: int = 0,
    progress: Progress | None = None,
    exact_batch: bool = False,
    negative: str = "",
    kept: Kept | None = None,
    redraw: float = 1.0,
    schedule: ScheduleChoice | None = None,
    outpainting: Outpainting | None = None,
) -> Drawing:
    """Draw a picture for each seed. What is not chosen takes its recommended value.

    Args:
        layers: The indexes to retrieve from, or none. Their weights add up to 1 at most.
        adapter: A FAiD adapter; `Faid(adapter, strength=…)` sets how it works.
        window: Tokens computed per pass; the pictures stay the same. 0 = the device's.
        exact_batch: In 16 bit, each picture of several is the one drawn alone; it takes longer.
        progress: Called with (positions decided, tokens [B, N] so far).
        negative: What guidance leads away from, in words; without effect at guidance 1.
        kept: The tokens of a picture to edit, or one for each seed, and which of them stay; see
            `keep`.
        redraw: Share of the other tokens that is drawn anew, the least probable under the model
            first; 1 = all.
        schedule: Steps, and how the grid is filled, of a model that draws in any order.
        outpainting: The tokens of a picture, or one for each seed, to continue beyond a side, in
            place of `kept`. The drawing has larger pictures and no traces.

    Raises:
        InputError: A prompt, a value, a layer, or what is kept or continued cannot be used.
    """
    faid = Faid(adapter) if isinstance(adapter, FaidAdapter) else adapter
    clock = [time.perf_counter()]
    check_one_edit(kept, redraw, outpainting)
    place = searched_on(model)
    planned = session.plan(
        *(model, prompt, sampling, layers, faid),
        place=place,
        negative=negative,
        kept=kept,
        redraw=redraw,
        schedule=schedule,
    )
    clock.append(time.perf_counter())
    if outpainting is None:
        grids = session.draw(
            model, planned, seeds, window, progress, kept=model.passes, exact_batch=exact_batch
        )
    else:
        grids = outpaint(
            *(model, planned, seeds, outpainting, progress),
            kept=model.passes,
            exact_batch=exact_batch,
        )
    clock.append(time.perf_counter())
    images = [decode_picture(model, codes) for codes in grids.tokens]
    clock.append(time.perf_counter())
    plan_s, draw_s, decode_s = (after - before for before, after in pairwise(clock))
    timings = {"plan": plan_s, "draw": draw_s, "decode": decode_s}
    notes = (*planned.notes, *grids.notes)
    return Drawing(images, grids.tokens, grids.passes, notes, timings, grids)


def check_one_edit(kept: Kept | None, redraw: float, outpainting: Outpainting | None) -> None:
    """Refuse two ways to edit at once.

    Raises:
        InputError: A picture is continued, and something is said of tokens inside it.
    """
    if outpainting is not None and (kept is not None or redraw != 1):
        raise InputError(
            "outpainting keeps all tokens of the picture; leave out kept and redraw, or outpainting"
        )


def searched_on(model: Checkpoint) -> Callable[[AnyIndex], AnyIndex] | None:
    """Where indexes are searched: on the model's GPU, if it is one and they fit beside it."""
    device = model.model.device
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return Places(device, free)


def decode_picture(model: Checkpoint, codes: Tensor) -> Image.Image:
    """The picture of codes [height, width]."""
    return Image.fromarray(model.decode(codes[None])[0].numpy())


@torch.inference_mode()
def encode(model: Checkpoint, image: Image.Image) -> Tensor:
    """Codes [height, width] of a picture, which is resized and centre-cropped to the size that the
    model draws."""
    fitted = model.model.frame.fit(image.convert("RGB"))
    return model.model.vq.encode(to_tensor([fitted]).to(model.model.device))[0][0].cpu()


def keep(model: Checkpoint, image: Image.Image, mask: Image.Image | None = None) -> Kept:
    """What stays of a picture that is edited.

    Args:
        mask: A picture of any size, white = drawn anew: all tokens with a white pixel in their
            place. Without it everything is, as far as `redraw` says.

    Raises:
        InputError: The mask is black.
    """
    white = None if mask is None else greys(mask)[None]
    return keep_outside(encode(model, image)[None].numpy(), white, model.model.grid)


def build_index(
    model: Checkpoint,
    images: str | Path | Sequence[Image.Image],
    out: str | Path,
    captions: Sequence[str] = (),
    keys: KeySpec | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PatchIndex:
    """Build an index and write it to a file (.safetensors).

    Args:
        images: A folder, with caption files beside the pictures, or pictures.
        captions: Of pictures; one each, or none.
        keys: How patches are found; a drawing can choose others where the search is exact.
        progress: Called with (what is done, how much of it, of how much).

    Raises:
        InputError: No picture can be read, or the file cannot be written.
    """
    target = check_output(Path(out), ".safetensors")
    options = BuildOptions(keys or KeySpec(), ReadSettings())
    if isinstance(images, (str, Path)):
        built = build_from_folder(model.model, Path(images), target, options, progress=progress)
    else:
        pictures = [image.convert("RGB") for image in images]
        built = build_from_images(
            model.model, pictures, captions, target, options, progress=progress
        )
    return built.index


def choose_device(name: str, called: str = "device") -> torch.device:
    """The device of a name; auto: a GPU if there is one.

    Args:
        called: What a message calls the setting.

    Raises:
        InputError: It cannot be used here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{called} {name} is not usable here ({reason}); try cpu") from error
    return device


def settle(module: nn.Module, device: torch.device) -> None:
    """Put weights where they compute, in the form in which they compute."""
    module.to(device)
    if device.type == "cpu":
        pack_linears(module)
