"""Drawing in raster order, token by token or a window of tokens at a time.

Given its noise, a picture is a deterministic function: token i follows from the tokens before it.
So the next `window` tokens can be guessed, computed in one pass, and kept as far as the guesses
before them proved right (coupled Jacobi decoding, arXiv 2410.01699, 2510.24211). A window of 1 is
sequential decoding. Each step looks patches up, runs a pass, chooses the tokens and accepts those
that hold; `reference.py` is the same method without any of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from ..bounds import PASS_WINDOW
from ..models.base import RasterBackbone
from .canvas import Canvas, begin_all
from .choice import Chooser, Draft, DraftRule
from .fixed import open_fixed
from .passes import Chosen, ExactPasses, Passes, check_adapter, check_lengths
from .recipe import Drawing, Progress, Recipe
from .recorded import KeptPasses
from .trace import Cost, make_trace


@torch.inference_mode()
def draw_raster(
    model: RasterBackbone,
    recipe: Recipe,
    seeds: Sequence[int],
    window: int = 1,
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
    rule: DraftRule = "above",
) -> Drawing:
    """Draw one picture per seed; see `draw_pictures`.

    Args:
        rule: How tokens are guessed first. The picture is the same with any.
    """
    grid, vocab = model.grid, model.vocab
    device = device or model.device
    check_raster(model, recipe, window, len(seeds))
    started = time.perf_counter()
    chooser = Chooser(recipe.sampling, recipe.searched(), vocab, grid.width, rule)
    canvases = begin_all(seeds, grid.size, recipe.kept)
    passes: Passes
    if device.type == "cpu" and kept is None:
        passes = ExactPasses(model, recipe, len(seeds), device, chooser)
    else:
        passes = open_fixed(model, recipe, canvases, window, device, chooser, kept)
    try:
        fill(canvases, chooser, passes, window, recipe.adapter is not None, progress)
    finally:
        passes.close()
    tokens = torch.from_numpy(np.stack([canvas.tokens for canvas in canvases]))
    cost, layers = Cost(passes.count, time.perf_counter() - started), recipe.retrieval()
    tracers = [partial(make_trace, grid, layers, canvas, vocab, cost) for canvas in canvases]
    return Drawing(tokens.view(-1, grid.height, grid.width), passes.count, tracers, passes.notes)


def fill(
    canvases: Sequence[Canvas],
    chooser: Chooser,
    passes: Passes,
    window: int,
    adapted: bool,
    progress: Progress | None,
) -> None:
    """Draw all pictures to their ends: look up, pass, choose, accept.

    Args:
        adapted: Whether an adapter receives what is found at every position of a pass.
    """

    def report() -> None:
        if progress is not None:
            progress(min(c.decided for c in canvases), np.array([c.so_far for c in canvases]))

    while not all(canvas.done for canvas in canvases):
        draw_retrieved(canvases, chooser, report)
        ends = [passes.reach(canvas, window) for canvas in canvases]
        drafts = draft_windows(canvases, chooser, ends, window > 1)
        if adapted:
            chooser.look_up(
                (canvas, position)
                for canvas, end in zip(canvases, ends, strict=True)
                for position in range(canvas.cached, end)
            )
        chosen = passes.run(canvases, drafts)
        for canvas, mine, its in zip(canvases, drafts, chosen, strict=True):
            accept(canvas, mine, its)
        report()


def check_raster(model: RasterBackbone, recipe: Recipe, window: int, pictures: int) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: A window out of range, an adapter of another family, a prompt that leaves no
            room for the picture, tokens to keep that do not fit, an index whose queries need tokens
            that are drawn later, with a picture of which none is kept.
    """
    PASS_WINDOW.check(window)
    check_adapter(model, recipe)
    check_lengths(model, recipe)
    kept = recipe.kept
    if kept is not None:
        kept.check_fits(model.grid.size, model.vocab, pictures)
    if kept is None or not kept.mask.any(axis=1).all():
        recipe.retrieval().check_serve(model.order)


def draw_retrieved(
    canvases: Sequence[Canvas], chooser: Chooser, report: Callable[[], None]
) -> None:
    """Decide the next tokens of each picture as far as retrieval alone draws them."""
    ahead = [canvas for canvas in canvases if canvas.decided < canvas.size]
    while ahead:
        moved = []
        found = chooser.find([(canvas, canvas.decided) for canvas in ahead])
        for canvas, proposals in zip(ahead, found, strict=True):
            retrieved = chooser.retrieved(canvas, canvas.decided, proposals)
            if retrieved is not None:
                canvas.decide(*retrieved)
                moved.append(canvas)
        if moved:
            report()
        ahead = [canvas for canvas in moved if canvas.decided < canvas.size]


def draft_windows(
    canvases: Sequence[Canvas], chooser: Chooser, ends: Sequence[int], guess: bool
) -> list[list[Draft]]:
    """Guess the next tokens of each picture, up to a position each.

    A draft stands on the draft before it, so the look-ups of one place in the windows are made
    together for all pictures, and those of the next place after them.
    """
    drafts: list[list[Draft]] = [[] for _ in canvases]
    longest = max(end - c.decided for c, end in zip(canvases, ends, strict=True))
    for ahead in range(longest):
        unfinished = [
            (canvas, mine)
            for canvas, end, mine in zip(canvases, ends, drafts, strict=True)
            if canvas.decided + ahead < end
        ]
        found = chooser.find([(c, c.decided + ahead) for c, _ in unfinished], guess)
        for (canvas, mine), proposals in zip(unfinished, found, strict=True):
            position = canvas.decided + ahead
            draft = chooser.draft(canvas, position, proposals, guess)
            canvas.tokens[position] = draft.token  # later drafts look at it
            mine.append(draft)
    for canvas, mine in zip(canvases, drafts, strict=True):
        canvas.guessed = max(canvas.guessed, canvas.decided + len(mine))
    return drafts


def accept(canvas: Canvas, drafts: Sequence[Draft], chosen: Chosen) -> None:
    """Take over what a pass chose for the positions from `cached` on.

    A token is final while every guess before it was right; the first wrong guess is replaced by
    the right token, and what follows becomes the next guess. Kept tokens are always right, but what
    a pass made of them stands on the guesses before.
    """
    first, start = canvas.cached, canvas.decided
    canvas.cached = first + len(chosen.tokens)
    right_so_far = True
    for position, draft in enumerate(drafts, start):
        token = int(chosen.tokens[position - first])
        if right_so_far and not canvas.kept[position]:
            canvas.decide(token, draft.component)
        if right_so_far and token != draft.token:
            canvas.cached, right_so_far = position + 1, False
        canvas.tokens[position] = token
    span = slice(first, canvas.cached)
    canvas.p_model[span] = np.where(canvas.kept[span], 0, chosen.p_model[: canvas.cached - first])
    canvas.noise = {p: noise for p, noise in canvas.noise.items() if p >= canvas.decided}
