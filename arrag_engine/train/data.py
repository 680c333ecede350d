"""Training data: tokens of pictures, their captions, and the codes retrieved for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..build import Report, encode_folder
from ..errors import InputError
from ..index import PatchIndex, Source, SourceTable, load_index
from ..models.base import PromptEncoder
from ..models.families import ImageModel
from ..retrieval import Retriever, make_retriever
from .settings import TrainSettings

if TYPE_CHECKING:
    from .masking import Masks

Progress = Callable[[int, int], None]
MEAN_SHARE = 2 / math.pi
"""Of unknown tokens, where some are masked."""


@dataclass(frozen=True)
class Examples:
    """Encoded pictures."""

    tokens: np.ndarray
    """[M, N] int64."""
    captions: list[str]
    digests: np.ndarray
    """sha256 of the picture files [M, 32] uint8."""
    codes: np.ndarray
    """Retrieved codes [M, N, K] int32, nearest first, -1 = none. K is 0 for a model that draws in
    any order, where they depend on what is known of a picture (`masking.py`)."""
    active: np.ndarray
    """[N] where retrieval runs."""
    skipped: Sequence[str] = ()
    """Pictures that could not be read, and why."""
    notes: Sequence[str] = ()
    """Further remarks about the folders."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> Examples:
        """Some of them."""
        return Examples(
            self.tokens[rows],
            [self.captions[i] for i in rows],
            self.digests[rows],
            self.codes[rows],
            self.active,
        )

    def join(self, other: Examples) -> Examples:
        """These, then the others."""
        return Examples(
            np.concatenate((self.tokens, other.tokens)),
            [*self.captions, *other.captions],
            np.concatenate((self.digests, other.digests)),
            np.concatenate((self.codes, other.codes)),
            self.active,
        )

    def split(self, share: float) -> tuple[Examples, Examples]:
        """(to train on, held out); the choice depends only on the pictures' hashes.

        Raises:
            InputError: Nothing would be left to train on.
        """
        order = sorted(range(len(self)), key=lambda i: self.digests[i].tobytes())
        count = max(1, round(share * len(self))) if share > 0 else 0
        if len(self) - count < 1:
            raise InputError(
                f"{len(self)} pictures are too few to train on with {count} held out; "
                "use more pictures"
            )
        return self.take(np.array(sorted(order[count:]))), self.take(np.array(order[:count], int))


def prepare_examples(
    model: ImageModel,
    places: Sequence[Path],
    index: PatchIndex | None,
    k: int,
    encoding: Progress | None = None,
    searching: Progress | None = None,
) -> Examples:
    """Encode pictures and look up their patches, each in the other pictures only.

    Args:
        places: Folders of pictures with captions, or indexes made of such pictures, whose tokens
            are taken as they are.
        index: To retrieve from; nothing is retrieved when absent.
        k: Codes to retrieve for each position.
        encoding, searching: Called with (done, in all).

    Raises:
        InputError: No readable picture, one without a caption, an index that does not fit.
    """
    retriever = None
    if index is not None:
        retriever = make_retriever(index, model.config.grid, model.vq.codebook(model.device))
        image_hashes(index.sources)  # raises before anything is encoded
    tokens, sources, report = [], [], Report()
    for place in places:
        found, its, read = _tokens_of(model, place, [s.sha256 for s in sources], encoding)
        tokens.append(found.astype(np.int64))
        sources += its
        report.add(read)
    skipped = [f"{name}: {why}" for name, why in report.unreadable]
    _check_sources(places, sources, skipped)
    grids = np.concatenate(tokens)
    digests = np.stack([np.frombuffer(bytes.fromhex(s.sha256), np.uint8) for s in sources])
    size, k = model.config.grid.size, k if model.order.raster else 0
    codes, active = np.full((len(grids), size, k), -1, np.int32), np.zeros(size, bool)
    if retriever is not None and k:
        codes, active = retrieve_codes(retriever, grids, digests, k, searching), retriever.active
    return Examples(
        grids, [s.caption for s in sources], digests, codes, active, skipped, report.notes
    )


def _tokens_of(
    model: ImageModel, place: Path, known: list[str], progress: Progress | None
) -> tuple[np.ndarray, list[Source], Report]:
    """(token grids [M, N], sources, report) of a folder or of an index."""
    if place.is_file():
        index = load_index(place)
        index.check_fits(model.config.grid, model.vq.codebook(model.device))
        return index.tokens, list(index.sources), Report()
    names = dict.fromkeys(known, "")
    encoded = encode_folder(model, place, None, names, False, progress=progress)
    return encoded.tokens, list(encoded.sources), encoded.report


def _check_sources(places: Sequence[Path], sources: list[Source], skipped: list[str]) -> None:
    where = ", ".join(map(str, places))
    if not sources:
        reasons = "".join(f"; {line}" for line in skipped[:3])
        raise InputError(f"{where} holds no readable picture{reasons}; choose another folder")
    if missing := [s.name for s in sources if not s.caption]:
        raise InputError(
            f"{len(missing)} of {len(sources)} pictures in {where} have no caption, the first is "
            f"{missing[0]}; write what it shows into {Path(missing[0]).with_suffix('.txt')}"
        )
    if not all(s.sha256 for s in sources):
        raise InputError(f"an index in {where} lacks the SHA-256 of its pictures; build it again")


def retrieve_codes(
    retriever: Retriever,
    tokens: np.ndarray,
    digests: np.ndarray,
    k: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Codes [M, N, k] of the nearest patches of other pictures; -1 where there are none.

    Args:
        tokens: [M, N].
        digests: sha256 of the pictures [M, 32]; index rows of the same are left out.

    Raises:
        InputError: The index lacks the hashes of its pictures.
    """
    rows = pictures_by_hash(image_hashes(retriever.source.sources))
    active = np.flatnonzero(retriever.active)
    codes = np.full((*tokens.shape, k), -1, np.int32)
    for i, (grid, digest) in enumerate(zip(tokens, digests, strict=True)):
        own = rows.get(digest.tobytes(), [])
        nearest = retriever.lookup(grid, active, k, [own] * len(active)).codes
        codes[i, active, : nearest.shape[1]] = nearest
        if progress is not None:
            progress(i + 1, len(tokens))
    return codes


def pictures_by_hash(hashes: np.ndarray) -> dict[bytes, list[int]]:
    """The numbers of the pictures with each sha256, of hashes [images, 32]."""
    rows: dict[bytes, list[int]] = {}
    for image, digest in enumerate(hashes):
        rows.setdefault(digest.tobytes(), []).append(image)
    return rows


def image_hashes(sources: Sequence[Source]) -> np.ndarray:
    """sha256 of an index's pictures [images, 32] uint8.

    Raises:
        InputError: It lacks them.
    """
    assert isinstance(sources, SourceTable)  # `load_index` reads no other
    hashes = np.asarray(sources.sha256)
    if not hashes.any(axis=1).all():
        raise InputError(
            "the index lacks the SHA-256 of its pictures, so a picture could retrieve its own "
            "patches; build the index again from the pictures"
        )
    return hashes


@dataclass(frozen=True)
class Batch:
    """B pictures as the model takes them."""

    text: Tensor
    """Prompt ids [B, T], padded on the left."""
    padding: list[int]
    """How many ids of each row are padding."""
    tokens: Tensor
    """[B, N]."""
    codes: Tensor
    """[B, N, K]."""
    active: Tensor
    """[B, N] where retrieval runs."""
    known: Tensor
    """[B, N] which tokens a model that draws in any order sees; in raster order all of them, each
    by those after it."""
    weights: Tensor
    """[B, N] of the tokens' losses. 0 = known; their mean over many pictures is 1."""
    blended: Tensor
    """[B] 1 where the blenders are on, 0 where they are off."""
    own: Tensor
    """[B] whether the base drew the picture itself, and its distribution is to be kept."""

    def take(self, rows: Tensor) -> Batch:
        """Some of the pictures, by their numbers."""
        parts = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return Batch(padding=[self.padding[row] for row in rows.tolist()], **parts)


@dataclass(frozen=True)
class Shown:
    """One picture of a batch."""

    tokens: np.ndarray
    """[N]."""
    ids: list[int]
    """Of its prompt."""
    codes: np.ndarray
    """[N, K]."""
    active: np.ndarray
    """[N] where retrieval runs."""
    blended: bool = True
    own: bool = False
    known: np.ndarray | None = None
    """[N]; all when absent."""
    weights: np.ndarray | None = None
    """[N] of the losses; all 1 when absent."""


class Batches:
    """Makes batches of examples. The random changes of a picture depend only on the seed and on its
    place in the stream of pictures, so they are the same on any number of processes.

    Args:
        own: Pictures that the base drew itself. `settings.rehearse` is their share of the stream,
            in which they are spread evenly; without any, the stream is as if that were 0.
        masks: Of a model that draws in any order: what is known of each picture, and what is
            retrieved for the rest.
    """

    def __init__(
        self,
        examples: Examples,
        encoder: PromptEncoder,
        settings: TrainSettings,
        own: Examples | None = None,
        masks: Masks | None = None,
    ) -> None:
        self.examples, self.own, self.settings, self.masks = examples, own, settings, masks
        self.share = 0.0 if own is None else settings.rehearse
        self.pad_id = encoder.pad_id
        self.prompts, self.blanks = encode_captions(encoder, examples)
        self.own_prompts, self.own_blanks = encode_captions(encoder, own)
        self.looked_up: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def silent(self) -> Batches:
        """The same pictures with nothing looked up, for the base alone."""
        if self.masks is None:
            return self
        same = copy(self)
        same.masks, same.looked_up = replace(self.masks, retriever=None), {}
        return same

    def training(self, first: int, count: int, device: torch.device) -> Batch:
        """`count` pictures from place `first` of the endless shuffled stream on."""
        return self._collate([self.shown(place) for place in range(first, first + count)], device)

    def shown(self, place: int) -> Shown:
        """The picture at a place of the stream."""
        own, number = self.turn(place)
        examples = self.own if own and self.own is not None else self.examples
        prompts = self.own_prompts if own else self.prompts
        blanks = self.own_blanks if own else self.blanks
        row = self.shuffled_row(len(examples), number, 2 if own else 0)
        rng = np.random.default_rng((self.settings.seed, 1, place))
        blank = rng.random() < self.settings.caption_dropout
        off = blank and rng.random() < self.settings.blend_dropout
        ids = blanks[row] if blank else prompts[row]
        tokens, digest = examples.tokens[row], examples.digests[row]
        if self.masks is None:
            codes = self.shuffled(examples.codes[row], rng)
            return Shown(tokens, ids, codes, examples.active, not off, own)
        known = self.masks.known(place, rng)
        codes, active = self.masks.found(tokens, known, digest)
        weights = ~known / MEAN_SHARE
        codes = self.shuffled(codes, rng)
        return Shown(tokens, ids, codes, active, not off, own, known, weights)

    def turn(self, place: int) -> tuple[bool, int]:
        """Whether this place of the stream is for a picture of the base's own, and how many places
        for pictures of the same sort are before it."""
        before = int(place * self.share)
        own = int((place + 1) * self.share) > before
        return own, before if own else place - before

    def shuffled_row(self, count: int, number: int, stream: int) -> int:
        """The row in turn number `number`, each of `count` rows coming once in an epoch."""
        epoch, number = divmod(number, count)
        order = np.random.default_rng((self.settings.seed, stream, epoch))
        return int(order.permutation(count)[number])

    def plain(self, rows: np.ndarray, device: torch.device) -> Batch:
        """Pictures as they are, with their nearest candidates."""
        return self._collate([self.unchanged(int(row)) for row in rows], device)

    def unchanged(self, row: int) -> Shown:
        """A picture as it is; where tokens are masked, always the same ones."""
        examples, ids = self.examples, self.prompts[row]
        tokens, k = examples.tokens[row], self.settings.candidates
        if self.masks is None:
            return Shown(tokens, ids, examples.codes[row][:, :k], examples.active)
        known = self.masks.known(row, np.random.default_rng((self.settings.seed, 6, row)))
        if row not in self.looked_up:
            self.looked_up[row] = self.masks.found(tokens, known, examples.digests[row])
        codes, active = self.looked_up[row]
        weights = ~known * (len(known) / (~known).sum())
        return Shown(tokens, ids, codes[:, :k], active, known=known, weights=weights)

    def shuffled(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`settings.candidates` codes of each row of codes [N, pool], in random order."""
        return rng.permuted(codes, axis=1)[:, : self.settings.candidates]

    def _collate(self, shown: Sequence[Shown], device: torch.device) -> Batch:
        length = max(len(one.ids) for one in shown)
        padding = [length - len(one.ids) for one in shown]
        text = [[self.pad_id] * gap + one.ids for gap, one in zip(padding, shown, strict=True)]

        def stacked(arrays: Iterable[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack(list(arrays))).to(device)

        everything = np.ones(shown[0].tokens.shape)
        return Batch(
            torch.tensor(text, device=device),
            padding,
            stacked(one.tokens for one in shown),
            stacked(one.codes for one in shown).long(),
            stacked(one.active for one in shown),
            stacked(everything > 0 if one.known is None else one.known for one in shown),
            stacked(everything if one.weights is None else one.weights for one in shown).float(),
            torch.tensor([float(one.blended) for one in shown], device=device),
            torch.tensor([one.own for one in shown], device=device),
        )


def encode_captions(
    encoder: PromptEncoder, examples: Examples | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the prompts of the pictures, and of the unconditional streams beside them."""
    prompts = [encoder.encode(caption) for caption in examples.captions] if examples else []
    return [prompt.ids for prompt in prompts], [prompt.unconditional for prompt in prompts]
