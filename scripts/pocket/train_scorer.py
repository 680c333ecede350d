"""Train the detector that scores drawn pictures, on composed scenes alone.

    python scripts/pocket/train_scorer.py --work WORK --minutes 25

Pictures are blurred, shifted and made noisy, so that the softness of a VQ does not throw the
detector off; it never sees a reconstruction. `eval pocket` tells how often it is right on real
scenes and on reconstructions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import training
from backgrounds import SIZE
from concepts import LEARNT, UNSEEN
from data import Composer, Scene, Thing, make_composer
from sprites import COLORS, STYLES
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.pocket.bench.scorer import CELL, Labels, Scorer, load_scorer, save_scorer

NAMES = (*LEARNT, *UNSEEN)
LABELS = Labels(NAMES, tuple(COLORS), STYLES)
SCORER = "scorer.safetensors"
BATCH = 32
LR = 3e-3
LOOSE = 0.3
SECOND_STYLE = 0.35
"""Share of scenes in the style that the decoder never sees."""
HARD, HARD_KINDS = 0.6, ("colors", "color_attr", "counting")
"""Share of scenes that are of the kinds that are hardest to tell: named colours, small things."""
SHUFFLED = 0.04
"""Share of pictures whose patches change places: nothing is on them."""
SHIFT = 4
MIDDLE, FAR = 6, 14
"""Pixels from a thing's middle: cells within the first show it, beyond the second nothing is."""
IGNORED = -100


def make_targets(things: list[list[tuple[Thing, str]]]) -> tuple[Tensor, Tensor, Tensor]:
    """What each cell should say: names, colours, styles [B, h, w], IGNORED where nothing matters.

    Args:
        things: of each picture, with their drawing style.
    """
    side = SIZE // CELL
    shape = (len(things), side, side)
    names = np.zeros(shape, np.int64)
    colors, styles = np.full(shape, IGNORED), np.full(shape, IGNORED)
    middles = (np.mgrid[:side, :side] + 0.5) * CELL
    for b, placed in enumerate(things):
        for thing, style in placed:
            left, top, right, bottom = thing.box
            y, x = (top + bottom) / 2, (left + right) / 2
            distance = np.hypot(middles[0] - y, middles[1] - x)
            names[b][(distance < FAR) & (names[b] == 0)] = IGNORED
            here = distance <= MIDDLE
            names[b][here] = 1 + NAMES.index(thing.name)
            colors[b][here] = (None, *COLORS).index(thing.color)
            styles[b][here] = STYLES.index(style)
    return torch.from_numpy(names), torch.from_numpy(colors), torch.from_numpy(styles)


def soften(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture [H, W, 3] in 0..1 blurred, uneven and noisy by chance."""
    if rng.random() < 0.6:
        t = np.arange(-3, 4)
        kernel = np.exp(-0.5 * (t / rng.uniform(0.4, 1.5)) ** 2)
        kernel = (kernel / kernel.sum()).astype(np.float32)
        padded = np.pad(pixels, ((3, 3), (3, 3), (0, 0)), mode="edge")
        padded = sum(k * padded[i : i + SIZE] for i, k in enumerate(kernel))
        pixels = sum(k * padded[:, i : i + SIZE] for i, k in enumerate(kernel))
    if rng.random() < 0.5:
        patches = rng.standard_normal((SIZE // CELL, SIZE // CELL, 3), np.float32)
        patches = patches * rng.uniform(0, 0.05)
        pixels = pixels + patches.repeat(CELL, axis=0).repeat(CELL, axis=1)
    if rng.random() < 0.5:
        pixels = pixels + rng.uniform(0, 0.06) * rng.standard_normal(pixels.shape, np.float32)
    return (pixels - 0.5) * rng.uniform(0.95, 1.05) + 0.5 + rng.uniform(-0.02, 0.02)


def shift(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, list[Thing]]:
    """The scene moved by some pixels, its edges repeated."""
    down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
    padded = np.pad(scene.pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    pixels = padded[SHIFT - down :][:SIZE, SHIFT - right :][:, :SIZE]
    step = np.array((right, down, right, down))
    things = [Thing(t.name, t.color, tuple((t.box + step).tolist())) for t in scene.things]
    return pixels, things


def shuffle_patches(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = SIZE // CELL
    patches = pixels.reshape(side, CELL, side, CELL, 3).transpose(0, 2, 1, 3, 4)
    patches = rng.permutation(patches.reshape(side * side, CELL, CELL, 3))
    return patches.reshape(side, side, CELL, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(pixels.shape)


def make_batch(composers: list[Composer], rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Images [B, 3, H, W] in [-1, 1] and their targets."""
    images, placed = [], []
    for _ in range(BATCH):
        kind = str(rng.choice(HARD_KINDS)) if rng.random() < HARD else None
        scene = composers[int(rng.random() < SECOND_STYLE)].scene(rng, kind)
        pixels, things = shift(scene, rng)
        if rng.random() < SHUFFLED:
            pixels, things = shuffle_patches(pixels, rng), []
        images.append(soften(pixels.astype(np.float32) / 255, rng))
        placed.append([(thing, scene.style) for thing in things])
    batch = torch.from_numpy(np.stack(images)).float().clamp(0, 1)
    return batch.permute(0, 3, 1, 2) * 2 - 1, *make_targets(placed)


def loss_of(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropies; cells with a thing weigh as much as all the empty ones."""
    names, colors, styles = (x.float() for x in outputs)
    each = F.cross_entropy(names, targets[0], reduction="none", ignore_index=IGNORED)
    something = targets[0] > 0
    loss = each[something].sum() / something.sum() + each[targets[0] == 0].mean()
    loss = loss + F.cross_entropy(colors, targets[1], ignore_index=IGNORED)
    return loss + 0.5 * F.cross_entropy(styles, targets[2], ignore_index=IGNORED)


def train(args) -> Scorer:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    composers = [make_composer(args.archives, NAMES, s, "train", LOOSE) for s in STYLES]
    model = Scorer(LABELS) if args.start is None else load_scorer(args.start)
    model.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.02)
    average = training.Average(model, 0.995)
    budget, log, steps = training.Budget(args.minutes), training.Log(args.work / "scorer.jsonl"), 0
    bar = tqdm(total=100, desc="train", unit="%")
    while budget.progress < 1:
        images, *targets = make_batch(composers, rng)
        training.set_lr([optimizer], training.schedule(budget.progress))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        steps += 1
        bar.update(100 * budget.progress - bar.n)
        if steps % 50 == 0:
            log(step=steps, loss=float(loss), minutes=budget.elapsed / 60)
    model.load_state_dict(average.weights)
    return model.eval().requires_grad_(False)


def main() -> None:
    parser = training.make_parser(__doc__, 25)
    parser.add_argument("--out", type=Path, help=f"scorer file to write (WORK/{SCORER})")
    parser.add_argument("--start", type=Path, help="scorer file to go on from")
    args = training.parse_arguments(parser)
    torch.set_num_threads(1)
    out = args.out or args.work / SCORER
    if out.exists():
        print(f"{out} is there already")
    else:
        save_scorer(train(args), out)


if __name__ == "__main__":
    main()
