"""Training data: tokens of pictures, their captions, and the codes retrieved for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..build import Report, encode_folder
from ..errors import InputError
from ..index import PatchIndex, Source, SourceTable, load_index
from ..models.janus.model import JanusPro
from ..models.janus.prompt import PromptEncoder
from ..retrieval import Retriever, make_retriever
from .settings import TrainSettings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Examples:
    """Encoded pictures."""

    tokens: np.ndarray
    """[M, N] int64."""
    captions: list[str]
    digests: np.ndarray
    """sha256 of the picture files [M, 32] uint8."""
    codes: np.ndarray
    """Retrieved codes [M, N, K] int32, nearest first, -1 = none."""
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
    model: JanusPro,
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
    size = model.config.grid.size
    codes, active = np.full((len(grids), size, k), -1, np.int32), np.zeros(size, bool)
    if retriever is not None:
        codes, active = retrieve_codes(retriever, grids, digests, k, searching), retriever.active
    return Examples(
        grids, [s.caption for s in sources], digests, codes, active, skipped, report.notes
    )


def _tokens_of(
    model: JanusPro, place: Path, known: list[str], progress: Progress | None
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
    sources = retriever.source.sources
    assert isinstance(sources, SourceTable)  # load_index reads no other
    hashes = image_hashes(sources)
    rows: dict[bytes, list[int]] = {}
    for image, digest in enumerate(hashes):
        rows.setdefault(digest.tobytes(), []).append(image)
    active = np.flatnonzero(retriever.active)
    codes = np.full((*tokens.shape, k), -1, np.int32)
    for i, (grid, digest) in enumerate(zip(tokens, digests, strict=True)):
        own = rows.get(digest.tobytes(), [])
        nearest = retriever.lookup(grid, active, k, [own] * len(active)).codes
        codes[i, active, : nearest.shape[1]] = nearest
        if progress is not None:
            progress(i + 1, len(tokens))
    return codes


def image_hashes(sources: SourceTable) -> np.ndarray:
    """sha256 of an index's pictures [images, 32] uint8.

    Raises:
        InputError: It lacks them.
    """
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
    blended: Tensor
    """[B] 1 where the blenders are on, 0 where they are off."""
    own: Tensor
    """[B] whether the base drew the picture itself, and its distribution is to be kept."""


class Batches:
    """Makes batches of examples. The random changes of a picture depend only on the seed and on its
    place in the stream of pictures, so they are the same on any number of processes.

    Args:
        own: Pictures that the base drew itself. `settings.rehearse` is their share of the stream,
            in which they are spread evenly; without any, the stream is as if that were 0.
    """

    def __init__(
        self,
        examples: Examples,
        encoder: PromptEncoder,
        settings: TrainSettings,
        own: Examples | None = None,
    ) -> None:
        self.examples, self.own, self.settings = examples, own, settings
        self.share = 0.0 if own is None else settings.rehearse
        self.pad_id = encoder.pad_id
        self.prompts = [encoder.encode(caption).ids for caption in examples.captions]
        self.own_prompts = [encoder.encode(caption).ids for caption in own.captions] if own else []

    def training(self, first: int, count: int, device: torch.device) -> Batch:
        """`count` pictures from place `first` of the endless shuffled stream on."""
        tokens, ids, codes, blended, owned = [], [], [], [], []
        for place in range(first, first + count):
            own, number = self.turn(place)
            examples = self.own if own and self.own is not None else self.examples
            prompts = self.own_prompts if own else self.prompts
            row = self.shuffled_row(len(examples), number, 2 if own else 0)
            rng = np.random.default_rng((self.settings.seed, 1, place))
            blank = rng.random() < self.settings.caption_dropout
            off = blank and rng.random() < self.settings.blend_dropout
            tokens.append(examples.tokens[row])
            ids.append(self.blanked(prompts[row]) if blank else prompts[row])
            codes.append(self.shuffled(examples.codes[row], rng))
            blended.append(0.0 if off else 1.0)
            owned.append(own)
        return self._collate(np.stack(tokens), ids, np.stack(codes), blended, owned, device)

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
        codes = self.examples.codes[rows][..., : self.settings.candidates]
        ids = [self.prompts[row] for row in rows]
        tokens, count = self.examples.tokens[rows], len(rows)
        return self._collate(tokens, ids, codes, [1.0] * count, [False] * count, device)

    def blanked(self, ids: list[int]) -> list[int]:
        """The prompt of the unconditional stream."""
        return [ids[0], *[self.pad_id] * (len(ids) - 2), ids[-1]]

    def shuffled(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`settings.candidates` codes of each row of codes [N, pool], in random order."""
        return rng.permuted(codes, axis=1)[:, : self.settings.candidates]

    def _collate(
        self,
        tokens: np.ndarray,
        ids: list[list[int]],
        codes: np.ndarray,
        blended: list[float],
        own: list[bool],
        device: torch.device,
    ) -> Batch:
        length = max(map(len, ids))
        padding = [length - len(row) for row in ids]
        text = [[self.pad_id] * gap + row for gap, row in zip(padding, ids, strict=True)]
        return Batch(
            torch.tensor(text, device=device),
            padding,
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(codes).long().to(device),
            torch.tensor(blended, device=device),
            torch.tensor(own, device=device),
        )
