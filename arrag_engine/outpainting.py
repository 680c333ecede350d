"""Outpainting: a picture is continued beyond one of its sides, half a grid at a time.

The half of the picture beside that side moves to the other end of the model's grid, the rest of the
grid is drawn, and what was drawn is joined to what was cut off. No token that was there changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import session
from .bounds import TIMES, check_choice
from .decode import Drawing, Kept, KeptPasses, Progress, Trace
from .errors import InputError
from .grid import Grid
from .models.base import Backbone, Loaded
from .session import Plan
from .settings import SIDES, Side

FAR = 0x9E3779B97F4A7C15
"""From the seed of one turn to that of the next: no batch reaches it, so no noise comes twice."""
ACROSS, DOWN = 2, 1
"""Dimensions of tokens [B, height, width]."""


@dataclass(frozen=True, eq=False)
class Outpainting:
    """Pictures that are continued."""

    tokens: Tensor
    """Codes [B or 1, height, width] int64. Along the direction, pictures may be larger than the
    model's grid."""
    side: Side
    times: int = 1
    """How often half a grid is added."""

    def __post_init__(self) -> None:
        check_choice("side", self.side, SIDES)
        TIMES.check(self.times)

    @property
    def axis(self) -> int:
        """The dimension of the tokens that grows."""
        return ACROSS if self.side in ("left", "right") else DOWN

    def length(self, grid: Grid) -> int:
        """Positions of the model's grid along it."""
        return grid.width if self.axis == ACROSS else grid.height

    def check_fits(self, model: Backbone, pictures: int) -> None:
        """Refuse pictures that a model cannot continue.

        Args:
            pictures: How many are to be drawn.

        Raises:
            InputError: The model draws in raster order; or the tokens are of another model, or too
                few, or too many across the direction, or of another number of pictures.
        """
        if model.order.raster:
            raise InputError(
                f"the model draws in {model.order.name}, and outpainting needs one that draws in "
                "any order; choose a Show-o model"
            )
        grid, (height, width) = model.grid, self.tokens.shape[1:]
        across, other = (height, grid.height) if self.axis == ACROSS else (width, grid.width)
        along, half = self.tokens.shape[self.axis], self.length(grid) // 2
        if across != other or along < half:
            wanted = "height" if self.axis == ACROSS else "width"
            raise InputError(
                f"a picture of {height}x{width} tokens cannot be continued on the side "
                f"{self.side!r} by a model that draws {grid}; its {wanted} must be {other}, and "
                f"the other side {half} or more"
            )
        flat = self.tokens.flatten(1).numpy()
        Kept(flat, np.ones(flat.shape, bool)).check_fits(flat.shape[1], model.vocab, pictures)


def outpaint(
    checkpoint: Loaded,
    planned: Plan,
    seeds: Sequence[int],
    outpainting: Outpainting,
    progress: Progress | None = None,
    device: torch.device | None = None,
    kept: KeptPasses | None = None,
    exact_batch: bool = False,
) -> Drawing:
    """Continue a picture for each seed.

    Each turn is a drawing of one grid with seeds of its own; see `session.draw`.

    Args:
        planned: Of a drawing that keeps nothing.
        progress: Counts the positions of all turns, divided by their number; its tokens are those
            of the grid that is drawn.
        kept: Passes that former drawings with this model left, for a GPU.

    Returns:
        Whole pictures [B, height, width], larger than the model's grid. They have no traces.

    Raises:
        InputError: As `Outpainting.check_fits`, or the drawing cannot be done.
    """
    model, turns = checkpoint.model, outpainting.times
    outpainting.check_fits(model, len(seeds))
    tokens = outpainting.tokens.expand(len(seeds), -1, -1)
    half, passes = outpainting.length(model.grid) // 2, 0
    notes: tuple[str, ...] = ()
    for turn in range(turns):
        rest, beside = part(tokens, outpainting, half)
        recipe = replace(planned.recipe, kept=keep_beside(beside, outpainting, model.grid))
        drawn = session.draw(
            checkpoint,
            replace(planned, recipe=recipe),
            [seed + turn * FAR for seed in seeds],
            progress=_share_of(progress, turn, turns, model.grid.size),
            device=device,
            kept=kept,
            exact_batch=exact_batch,
        )
        notes = drawn.notes
        tokens, passes = join(rest, drawn.tokens, outpainting), passes + drawn.passes
    note = f"Outpainting: {turns} x {outpainting.length(model.grid) - half}"
    note += f" {'columns' if outpainting.axis == ACROSS else 'rows'}, side {outpainting.side!r}; "
    note += "{}x{} tokens.".format(*tokens.shape[1:])
    return Drawing(tokens, passes, [_no_trace] * len(seeds), (*notes, note))


def part(tokens: Tensor, outpainting: Outpainting, count: int) -> tuple[Tensor, Tensor]:
    """(the rest, the `count` columns or rows beside the side) of tokens [B, height, width]."""
    axis = outpainting.axis
    others = tokens.shape[axis] - count
    if outpainting.side in ("left", "up"):
        beside, rest = tokens.split([count, others], axis)
    else:
        rest, beside = tokens.split([others, count], axis)
    return rest, beside


def join(picture: Tensor, added: Tensor, outpainting: Outpainting) -> Tensor:
    """Tokens [B, height, width] with others added on the side."""
    before = outpainting.side in ("left", "up")
    return torch.cat((added, picture) if before else (picture, added), outpainting.axis)


def keep_beside(beside: Tensor, outpainting: Outpainting, grid: Grid) -> Kept:
    """The model's grid, of which one end is the part of a picture beside the side."""
    shape = list(beside.shape)
    shape[outpainting.axis] = outpainting.length(grid) - shape[outpainting.axis]
    unknown = beside.new_zeros(shape)
    tokens = join(beside, unknown, outpainting)
    stays = join(torch.ones_like(beside), unknown, outpainting)
    return Kept(tokens.flatten(1).numpy(), stays.flatten(1).bool().numpy())


def _share_of(progress: Progress | None, turn: int, turns: int, size: int) -> Progress | None:
    """The progress of one turn as a part of all."""
    if progress is None:
        return None
    return lambda decided, tokens: progress((turn * size + decided) // turns, tokens)


def _no_trace() -> Trace:
    raise InputError(
        "an outpainted picture has no trace, because it was drawn in several grids; connect the "
        "trace of a picture of the model's size"
    )
