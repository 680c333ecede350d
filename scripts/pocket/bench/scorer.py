"""The detector that scores drawn pictures: what is on them, where, in which colour and style.

A small convolutional net with a decision per cell of 8 pixels. It is trained on composed scenes
alone, never on what a model drew or a VQ gave back, so it favours neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arrag_engine.checkpoints.weights import open_weights
from arrag_engine.errors import InputError

CELL = 8
"""Pixels along one side of a cell."""
PEAK = 0.5
"""How sure a cell must be that the middle of a thing lies in it."""
REACH = 2
"""Cells around a thing's middle that say what it is."""
APART = 3
"""Cells around a thing's middle in which no other thing has its own."""
WIDTH = 128


@dataclass(frozen=True)
class Labels:
    """What the detector tells apart."""

    names: tuple[str, ...]
    colors: tuple[str, ...]
    """Besides a thing's own."""
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Detection:
    """A thing on a picture."""

    name: str
    color: str | None
    """None: its own."""
    style: str
    x: float
    """Its middle, as a share of the picture's width."""
    y: float
    score: float
    """How sure the detector is that something is there, 0..1."""


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    norm.num_batches_tracked = torch.zeros(())  # a float can be averaged and rounded as the rest
    return norm


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()


class Scorer(nn.Module):
    """The net; channels of its output: nothing and the names, own and the colours, the styles."""

    def __init__(self, labels: Labels, width: int = WIDTH) -> None:
        super().__init__()
        self.labels = labels
        self.sizes = (1 + len(labels.names), 1 + len(labels.colors), len(labels.styles))
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width // 2, 6, stride=4, padding=1, bias=False),
            _norm(width // 2),
            nn.ReLU(),
            Residual(width // 2),
            nn.Conv2d(width // 2, width, 2, stride=2, bias=False),
            _norm(width),
            nn.ReLU(),
            Residual(width),
            Residual(width),
        )
        self.head = nn.Conv2d(width, sum(self.sizes), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of names [B, 1 + names, h, w], colours [B, 1 + colours, h, w] and styles
        [B, styles, h, w] of images [B, 3, H, W] in [-1, 1]."""
        names, colors, styles = self.head(self.trunk(images)).split(self.sizes, dim=1)
        return names, colors, styles

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> np.ndarray:
        """What the net sees in pictures [B, H, W, 3] uint8, averaged over the cells [B, width]."""
        chunks = [self.trunk(_images(chunk)).mean(dim=(2, 3)) for chunk in _chunks(pixels)]
        return torch.cat(chunks).numpy()

    @torch.inference_mode()
    def detect(self, pixels: np.ndarray) -> list[list[Detection]]:
        """The things on each of pictures [B, H, W, 3] uint8, the surest first."""
        found = []
        for chunk in _chunks(pixels):
            logits = self(_images(chunk))
            names, colors, styles = (x.softmax(dim=1).numpy() for x in logits)
            found += [self._things(*maps) for maps in zip(names, colors, styles, strict=True)]
        return found

    def _things(self, names: np.ndarray, colors: np.ndarray, styles: np.ndarray) -> list[Detection]:
        """Take the surest cell with the cells around it for one thing, and go on with the rest."""
        height, width = names.shape[1:]
        something = 1 - names[0]
        left = something.copy()
        things = []
        while left.max() >= PEAK:
            row, column = divmod(int(left.argmax()), width)
            rows, columns = _around(row, REACH), _around(column, REACH)
            share = left[rows, columns] * (left[rows, columns] >= PEAK)
            share = share / share.sum()
            name, color, style = (
                (maps[:, rows, columns] * share).sum(axis=(1, 2))
                for maps in (names[1:], colors, styles)
            )
            ys, xs = np.mgrid[:height, :width][:, rows, columns] + 0.5
            things.append(
                Detection(
                    self.labels.names[name.argmax()],
                    (None, *self.labels.colors)[color.argmax()],
                    self.labels.styles[style.argmax()],
                    float((xs * share).sum() / width),
                    float((ys * share).sum() / height),
                    float(left[row, column]),
                )
            )
            left[_around(row, APART), _around(column, APART)] = 0
        return things


def _around(cell: int, reach: int) -> slice:
    return slice(max(0, cell - reach), cell + reach + 1)


def _chunks(pixels: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [pixels[i : i + size] for i in range(0, len(pixels), size)]


def _images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_scorer(scorer: Scorer, path: Path) -> None:
    """Write the weights in half precision, the labels in the header."""
    tensors = {name: t.half().contiguous() for name, t in scorer.state_dict().items()}
    save_file(tensors, path, {"labels": json.dumps(asdict(scorer.labels))})


def load_scorer(path: Path) -> Scorer:
    """A detector ready to use.

    Raises:
        InputError: The file is missing, damaged or something else.
    """
    try:
        weights = open_weights([path])
        labels = json.loads(weights.metadata["labels"])
        tensors = {name: weights.read(name) for name in weights.shapes}
        names, colors, styles = (tuple(labels[key]) for key in ("names", "colors", "styles"))
        width = tensors["head.weight"].shape[1]
        scorer = Scorer(Labels(names, colors, styles), width)
        scorer.load_state_dict(tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"{path} is not a scorer ({reason}); train one with scripts/pocket/train_scorer.py"
        ) from error
    return scorer.eval().requires_grad_(False)
