"""Tokens that stand before a drawing begins, wherever they are: the part of a picture that an edit
leaves as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Kept:
    """Tokens of pictures, and which of them stay. One row serves all pictures of a batch.

    Raises:
        InputError: The arrays do not belong together.
    """

    tokens: np.ndarray
    """[B or 1, N] int64."""
    mask: np.ndarray
    """[B or 1, N] bool; True = stays."""

    def __post_init__(self) -> None:
        tokens, mask = self.tokens, self.mask
        if tokens.ndim != 2 or mask.ndim != 2 or tokens.shape[1] != mask.shape[1]:
            raise InputError(
                f"tokens of shape {list(tokens.shape)} and a mask of shape {list(mask.shape)}; "
                "give both a row for each picture, or one for all, and a column for each position"
            )
        if tokens.dtype.kind not in "iu" or mask.dtype != bool:
            raise InputError(
                f"tokens of type {tokens.dtype} and a mask of type {mask.dtype}; give whole "
                "numbers, and true or false"
            )
        if len({len(tokens), len(mask)} - {1}) > 1:
            raise InputError(
                f"the tokens are of {len(tokens)} pictures and the mask of {len(mask)}; give one "
                "mask, or one for each picture"
            )

    @classmethod
    def first(cls, tokens: np.ndarray, size: int) -> Kept:
        """The first tokens [n] of pictures of `size` tokens."""
        whole = np.zeros((1, size), np.int64)
        whole[0, : len(tokens)] = tokens
        return cls(whole, np.arange(size)[None] < len(tokens))

    @property
    def pictures(self) -> int:
        """Rows that differ; 1 serves any number of pictures."""
        return max(len(self.tokens), len(self.mask))

    def of(self, picture: int) -> Kept:
        """That of one picture of a batch."""
        return Kept(*(a if len(a) == 1 else a[picture : picture + 1] for a in self.rows))

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens, self.mask

    def check_fits(self, size: int, vocab: int, pictures: int = 0) -> None:
        """Refuse tokens that a model does not draw.

        Args:
            size: Tokens of a picture.
            vocab: Number of image codes.
            pictures: Pictures to draw; 0 = not known yet.

        Raises:
            InputError: They are of another size, vocabulary or batch.
        """
        if self.tokens.shape[1] != size:
            raise InputError(
                f"{self.tokens.shape[1]} tokens of a picture are given, the model draws {size}; "
                "encode the picture with this model"
            )
        if not 0 <= self.tokens.min() <= self.tokens.max() < vocab:
            raise InputError(
                f"the tokens are {self.tokens.min()} to {self.tokens.max()}, the model has 0 to "
                f"{vocab - 1}; encode the picture with this model"
            )
        if pictures and self.pictures not in (1, pictures):
            raise InputError(
                f"{self.pictures} pictures are given to edit, and {pictures} are to be drawn; give "
                "one, or as many as are to be drawn"
            )
