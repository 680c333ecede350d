"""The decoding loop: draw pictures token by token, or a window of tokens at a time.

Given its noise, a picture is a deterministic function: token i follows from the tokens before it.
So the next `window` tokens can be guessed, worked out all at once, and kept as far as the guesses
they stood on proved right (coupled Jacobi decoding, arXiv 2410.01699, 2510.24211). A window of 1 is
sequential decoding. With DAiD a position first chooses where it draws from; one that draws from the
retrieved patches needs no pass of the model at all. With FAiD the passes hear the retrieved patches
of every position they work on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from .bounds import WINDOW
from .daid import Proposal, Retrieval, mix
from .errors import InputError
from .faid import Blending, Faid
from .janus import JanusPro
from .llama import Augmentation
from .sampling import SEEDS, Noise, Sampling, draw, guide, model_distribution, position_noise
from .trace import Trace, make_trace

Progress = Callable[[int, np.ndarray], None]
"""Called for every step with the number of positions that all pictures have decided, and the
tokens [B, N] so far (later positions hold guesses). What it raises ends the drawing."""


@dataclass
class Canvas:
    """One picture on its way: tokens[:decided] are final, tokens[decided:guessed] are guesses."""

    seed: int
    tokens: np.ndarray
    """[N] int64."""
    p_model: np.ndarray
    """[N] probability of each decided token under the model."""
    decided: int = 0
    guessed: int = 0
    cached: int = 0
    """Positions whose input stands in the key/value cache."""
    from_retrieval: np.ndarray = field(init=False)
    proposals: dict[int, Proposal] = field(default_factory=dict)
    noise: dict[int, Noise] = field(default_factory=dict)
    """Of positions not yet decided that were asked for: making it is not for nothing."""

    def __post_init__(self) -> None:
        self.from_retrieval = np.zeros(len(self.tokens), dtype=bool)


@dataclass(frozen=True)
class Drawing:
    """Finished token grids."""

    tokens: Tensor
    """Codes [B, height, width] int64."""
    passes: int
    """Passes of the model after the prompt."""
    tracers: list[Callable[[], Trace]]
    """What makes the traces."""

    @cached_property
    def traces(self) -> list[Trace]:
        """One per picture when retrieval ran, else empty. Made when first asked for: a trace looks
        up what drawing had no need of."""
        return [trace() for trace in self.tracers]


@torch.inference_mode()
def draw_pictures(
    model: JanusPro,
    prompt: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    seeds: Sequence[int],
    retrieval: Retrieval | None = None,
    window: int = 1,
    progress: Progress | None = None,
    device: torch.device | None = None,
    faid: Faid | None = None,
    given: np.ndarray | None = None,
) -> Drawing:
    """Draw one picture per seed for one prompt.

    The same model, prompt, settings and seed give the same picture whatever the batch or window
    (in float32; in lower precision up to rounding).

    Args:
        prompt: Text ids [T], the last one opening the picture.
        pad_id: Stands in for the text in the unconditional stream.
        window: Tokens worked out per pass, 1 = sequential.
        progress: See `Progress`.
        device: Where the model computes; where its weights lie when absent.
        faid: An adapter that hears what `retrieval` finds, whatever the weight λ is; without
            retrieval it hears nothing. At strength 0 it is not there at all.
        given: The first tokens [n] of the pictures, which then stand.

    Raises:
        InputError: No seed, a window out of range, a prompt that leaves no room for the picture, or
            an index whose queries need tokens that are drawn later.
    """
    size = model.config.grid.size
    limit = model.config.llama.max_positions
    if not seeds:
        raise InputError("there is no seed to draw a picture of; give one or more")
    WINDOW.check(window)
    if len(prompt) + size > limit:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and the picture {size}, the model takes {limit} "
            "together; shorten the prompt"
        )
    device = device or model.device
    blending = None
    if faid is not None and faid.strength > 0:
        blending = Blending(faid, model, len(seeds), device)
        retrieval = retrieval and replace(retrieval, candidates=blending.candidates)
    if retrieval is not None and any(map(retrieval.looks_up, range(size))):
        retrieval.retriever.check_causal()
    painter = Painter(
        model, prompt, pad_id, sampling, retrieval, window, len(seeds), device, blending
    )
    start = np.zeros(0, np.int64) if given is None else given
    canvases = [begin(s % SEEDS, start, size) for s in seeds]

    def report() -> None:
        if progress is not None:
            progress(min(c.decided for c in canvases), np.stack([c.tokens for c in canvases]))

    passes = 0
    while any(canvas.cached < size for canvas in canvases):
        for canvas in canvases:
            painter.look_ahead(canvas, report)
        painter.run_pass(canvases)
        passes += 1
        report()
    tokens = torch.from_numpy(np.stack([c.tokens for c in canvases]))
    grid = model.config.grid
    tracers = [painter.tracer(canvas) for canvas in canvases] if retrieval else []
    return Drawing(tokens.view(-1, grid.height, grid.width), passes, tracers)


def begin(seed: int, given: np.ndarray, size: int) -> Canvas:
    """A picture whose first tokens are given."""
    canvas = Canvas(seed, np.zeros(size, np.int64), np.zeros(size), decided=len(given))
    canvas.tokens[: len(given)] = given
    return canvas


class Painter:
    """The settings of one drawing and its key/value cache."""

    def __init__(
        self,
        model: JanusPro,
        prompt: Sequence[int],
        pad_id: int,
        sampling: Sampling,
        retrieval: Retrieval | None,
        window: int,
        batch: int,
        device: torch.device,
        blending: Blending | None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.retrieval = retrieval
        self.blending = blending
        self.window = window
        self.device = device
        self.size = model.config.grid.size
        self.vocab = model.config.vq.codebook_size
        self.prefix = len(prompt) - 1  # the prompt's last id is the input of position 0
        self.streams = 1 if sampling.cfg == 1 else 2
        self.cache = model.new_cache(self.streams * batch, self.prefix + self.size, device)
        self.opening = self.embed_prompt(prompt, pad_id)

    def embed_prompt(self, prompt: Sequence[int], pad_id: int) -> Tensor:
        """Run all but the last prompt id into the cache; return the last one's embedding [hidden].

        The unconditional stream sees pads for everything but the first and the last id. All
        pictures share the prompt, so it is run once and copied.
        """
        cond = torch.tensor(prompt, device=self.device)
        uncond = torch.full_like(cond, pad_id)
        uncond[0], uncond[-1] = cond[0], cond[-1]
        x = self.model.embed_text(
            torch.stack((cond, uncond)[: self.streams])
        )  # [streams, T, hidden]
        if self.prefix:
            shared = self.model.new_cache(self.streams, self.prefix, self.device)
            extra = None if self.blending is None else self.blending.prompt
            self.model.llama(x[:, :-1], None, shared, extra)
            batch = self.cache.keys.shape[1] // self.streams
            for mine, theirs in (
                (self.cache.keys, shared.keys),
                (self.cache.values, shared.values),
            ):
                mine[:, :, :, : self.prefix] = theirs.repeat_interleave(batch, dim=1)
        return x[0, -1]

    def noise(self, canvas: Canvas, position: int) -> Noise | None:
        if self.sampling.greedy:
            return None
        known = canvas.noise.get(position)
        if known is None:
            known = canvas.noise[position] = position_noise(canvas.seed, position, self.vocab)
        return known

    def needs_retrieval(self, canvas: Canvas, position: int) -> bool:
        """Whether the token may depend on the neighbours: its mixture component may be retrieval
        (z_i = [u_i < λ_i]), or the argmax of the whole mixture is wanted."""
        if self.retrieval is None or not self.retrieval.active(position):
            return False
        noise = self.noise(canvas, position)
        return (0.0 if noise is None else noise.uniform) < self.retrieval.largest_weight

    def propose(self, canvas: Canvas, position: int) -> Proposal:
        """Retrieval's answer at an active position, given the tokens before it."""
        assert self.retrieval is not None
        known = canvas.proposals.get(position)
        if known is None or not self.retrieval.still_holds(known, canvas.tokens, position):
            [known] = self.retrieval.propose(canvas.tokens, [position])
            canvas.proposals[position] = known
        return known

    def p_retrieval(self, proposal: Proposal) -> Tensor:
        """Distribution [vocab] over the codes that the neighbours propose."""
        assert self.retrieval is not None
        return self.retrieval.distribution(proposal, self.vocab)

    def draw_retrieved(self, canvas: Canvas, position: int) -> bool:
        """Draw the token from retrieval alone if that is its component; say whether it was."""
        if not self.needs_retrieval(canvas, position):
            return False
        noise = self.noise(canvas, position)
        proposal = self.propose(canvas, position)
        assert self.retrieval is not None
        if noise is None or noise.uniform >= self.retrieval.weight(proposal):
            return False
        canvas.tokens[position] = draw(self.p_retrieval(proposal), noise)
        return True

    def look_ahead(self, canvas: Canvas, report: Callable[[], None]) -> None:
        """Decide the tokens that retrieval draws alone, then guess the rest of the window."""
        while canvas.decided < self.size and self.draw_retrieved(canvas, canvas.decided):
            canvas.from_retrieval[canvas.decided] = True
            canvas.decided += 1
            report()
        end = self.window_end(canvas)
        for position in range(canvas.decided, end):
            if not self.draw_retrieved(canvas, position) and position >= canvas.guessed:
                self.guess(canvas, position)
        canvas.guessed = max(canvas.guessed, end)
        if self.blending is not None:
            self.look_up(canvas, range(canvas.cached, end))

    def look_up(self, canvas: Canvas, positions: range) -> None:
        """Ask for what the blenders hear at these positions, all at once."""
        retrieval, known = self.retrieval, canvas.proposals
        if retrieval is None:
            return
        missing = [
            p
            for p in positions
            if retrieval.looks_up(p)
            and not (p in known and retrieval.still_holds(known[p], canvas.tokens, p))
        ]
        if missing:
            answers = retrieval.propose(canvas.tokens, missing)
            known.update(zip(missing, answers, strict=True))

    def window_end(self, canvas: Canvas) -> int:
        return min(canvas.decided + self.window, self.size)

    def guess(self, canvas: Canvas, position: int) -> None:
        """A first guess: what retrieval would draw, else the token above, else the one before."""
        if self.window == 1:
            return  # a sequential pass stands on no guess, a search for one would be wasted
        if self.retrieval is not None and self.retrieval.looks_up(position):
            proposal = self.propose(canvas, position)
            if proposal.found:
                canvas.tokens[position] = draw(
                    self.p_retrieval(proposal), self.noise(canvas, position)
                )
                return
        width = self.model.config.grid.width
        above = position - width if position >= width else position - 1
        canvas.tokens[position] = canvas.tokens[above] if above >= 0 else 0

    def run_pass(self, canvases: list[Canvas]) -> None:
        """One pass over every input not yet cached and the window, then accept what holds.

        Pictures stand at different positions; a shorter or finished one starts further back, which
        only writes the same keys and values again.
        """
        length = max(self.window_end(c) - c.cached for c in canvases)
        firsts = [min(c.cached, self.size - length) for c in canvases]
        inputs = torch.stack(
            [self.inputs(c, a, length) for c, a in zip(canvases, firsts, strict=True)]
        )
        starts = [self.prefix + a for a in firsts]
        logits = self.model.logits(
            inputs.repeat(self.streams, 1, 1),
            starts * self.streams,
            self.cache,
            self.augmentation(canvases, firsts, length),
        )
        guided = guide(logits, self.sampling.cfg).cpu()  # [B, L, vocab]
        if not guided.isfinite().all():
            raise InputError(
                f"the model's logits are not numbers in {self.model.dtype}; load it as bf16 or "
                "fp32, or download its weights again"
            )
        for canvas, first, rows in zip(canvases, firsts, guided, strict=True):
            if canvas.cached < self.size:
                rows = rows[canvas.cached - first : self.window_end(canvas) - first]
                self.accept(canvas, model_distribution(rows, self.sampling))

    def augmentation(
        self, canvases: list[Canvas], firsts: list[int], length: int
    ) -> Augmentation | None:
        """What the adapter adds to a pass: its blenders hear the nearest neighbours' codes."""
        if self.blending is None:
            return None
        positions = np.array(firsts)[:, None] + np.arange(length)  # [B, L]
        codes = np.full((*positions.shape, self.blending.candidates), -1)
        active = np.zeros(positions.shape, dtype=bool)
        for row, canvas in enumerate(canvases):
            for column, position in enumerate(positions[row]):
                proposal = canvas.proposals.get(int(position))
                if proposal is not None:
                    nearest = proposal.neighbors.codes[0, : self.blending.candidates]
                    codes[row, column, : len(nearest)] = nearest
                    active[row, column] = True
        return self.blending.at(positions, codes, active)

    def inputs(self, canvas: Canvas, first: int, length: int) -> Tensor:
        """Input embeddings [L, hidden] that predict positions first .. first + L - 1."""
        before = canvas.tokens[max(first - 1, 0) : first + length - 1]
        x = self.model.embed_codes(torch.from_numpy(before).to(self.device))
        return torch.cat((self.opening[None], x)) if first == 0 else x

    def accept(self, canvas: Canvas, probs: Tensor) -> None:
        """Work out the window from p_model [P, vocab] of positions cached .. cached + P - 1.

        A token is final while every guess before it was right; the first wrong guess is replaced
        by the right token, and what follows it becomes the next guess.
        """
        first = canvas.cached
        right_so_far = True
        for position in range(canvas.decided, first + len(probs)):
            token, retrieved = self.choose(canvas, position, probs[position - first])
            if right_so_far:
                canvas.decided = position + 1
                canvas.from_retrieval[position] = retrieved
            right_so_far &= token == canvas.tokens[position]
            canvas.tokens[position] = token
        canvas.cached = canvas.decided
        canvas.noise = {p: noise for p, noise in canvas.noise.items() if p >= canvas.decided}
        done = np.arange(first, canvas.decided)
        canvas.p_model[done] = probs[done - first, canvas.tokens[done]].numpy()

    def choose(self, canvas: Canvas, position: int, p_model: Tensor) -> tuple[int, bool]:
        """(token, whether retrieval alone drew it) at an undecided position of the window.

        The proposal is the one that `look_ahead` asked for: it stands on the guesses this pass
        stood on, and it counts only if they were right.
        """
        noise = self.noise(canvas, position)
        if self.needs_retrieval(canvas, position):
            assert self.retrieval is not None
            proposal = canvas.proposals[position]
            weight = self.retrieval.weight(proposal)
            if noise is None:
                p_model = mix(p_model, self.p_retrieval(proposal), weight)
            elif noise.uniform < weight:
                return int(canvas.tokens[position]), True
        return draw(p_model, noise), False

    def tracer(self, canvas: Canvas) -> Callable[[], Trace]:
        """Tells what retrieval did for a finished picture; keeps no hold on the model."""
        assert self.retrieval is not None
        return partial(
            make_trace,
            self.model.config.grid,
            self.retrieval,
            canvas.proposals,
            canvas.tokens,
            canvas.from_retrieval,
            canvas.p_model,
            self.vocab,
        )
