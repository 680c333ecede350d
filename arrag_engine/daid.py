"""DAiD: a next-token distribution made from retrieved patches, mixed with the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .index import Neighbors, PatchIndex
from .retriever import Retriever
from .sampling import truncate
from .settings import RetrievalOptions


def calibrated_options(index: PatchIndex) -> RetrievalOptions:
    """The weight "auto", with what the index was calibrated for.

    Raises:
        InputError: It is not calibrated.
    """
    known = index.calibration
    if known is None:
        raise InputError(f"the index cannot be used with the weight auto: {index.uncalibrated}")
    return RetrievalOptions(
        "auto", known.temperature, known.neighbours, known.duplicates, known.top_p
    )


def check_calibrated(index: PatchIndex, options: RetrievalOptions) -> None:
    """Refuse the weight "auto" where the index has no calibration, or one for other settings.

    Raises:
        InputError: That is so.
    """
    if options.weight != "auto":
        return
    known = calibrated_options(index)
    told = (options.temperature, options.neighbours, options.duplicates, options.top_p)
    fitted = (known.temperature, known.neighbours, known.duplicates, known.top_p)
    if told != fitted:
        raise InputError(
            "the index was calibrated for retrieval temperature {:g}, {} neighbours, duplicates {} "
            "and top_p {:g}; choose these or calibrate again".format(*fitted)
        )


def proposal_distribution(neighbors: Neighbors, options: RetrievalOptions, vocab: int) -> Tensor:
    """p_retrieval [B, vocab] float32 of neighbours [B, K]; all zero where nothing was found."""
    distances = torch.from_numpy(neighbors.distances)  # [B, K], inf = nothing
    codes = torch.from_numpy(np.maximum(neighbors.codes, 0)).long()
    if options.duplicates == "first":
        nearest = distances.new_full((len(codes), vocab), torch.inf)
        nearest = nearest.scatter_reduce(1, codes, distances, "amin")
        probs = torch.softmax(-nearest / options.temperature, dim=-1)
    else:
        shares = torch.softmax(-distances / options.temperature, dim=-1)
        probs = shares.new_zeros((len(codes), vocab)).scatter_add(1, codes, shares)
    found = torch.from_numpy(neighbors.found().any(axis=1))
    return truncate(probs.where(found[:, None], 0.0), 0, options.top_p)


@dataclass(frozen=True)
class Proposal:
    """What retrieval says about one position."""

    surroundings: bytes
    """The tokens it was asked with; another answer is due when they change."""
    neighbors: Neighbors
    """[1, K]."""

    @property
    def found(self) -> bool:
        return bool(self.neighbors.found().any())


@dataclass(frozen=True)
class Retrieval:
    """A retriever and how to use it."""

    retriever: Retriever
    options: RetrievalOptions
    candidates: int = 0
    """Neighbours that FAiD's blenders hear at every active position."""
    unknown_words: bool = False
    """Whether the prompt has words that the model does not know; the weight auto asks."""

    def __post_init__(self) -> None:
        check_calibrated(self.retriever.index, self.options)

    @property
    def neighbours(self) -> int:
        """How many neighbours a query brings back."""
        return max(self.options.neighbours if self.largest_weight else 0, self.candidates)

    @cached_property
    def largest_weight(self) -> float:
        """No λ_i is larger: what the noise puts above it need not be looked up."""
        if self.options.weight != "auto":
            return self.options.weight
        calibration = self.retriever.index.calibration
        assert calibration is not None
        return calibration.largest(self.unknown_words)

    def active(self, position: int) -> bool:
        """Whether retrieval has a say in the token drawn at this position."""
        return self.largest_weight > 0 and bool(self.retriever.active[position])

    def looks_up(self, position: int) -> bool:
        """Whether anybody wants this position's neighbours."""
        return self.neighbours > 0 and bool(self.retriever.active[position])

    def surroundings(self, tokens: np.ndarray, position: int) -> bytes:
        """What the query at this position is made of, to tell whether it changed."""
        return tokens[np.maximum(self.retriever.neighbors[position], 0)].tobytes()

    def propose(self, tokens: np.ndarray, positions: Sequence[int]) -> list[Proposal]:
        """Look up active positions of tokens [N]; what they stand on must be drawn."""
        neighbors = self.retriever.retrieve(tokens, np.array(positions), self.neighbours)
        return [
            Proposal(self.surroundings(tokens, position), neighbors.row(i))
            for i, position in enumerate(positions)
        ]

    def still_holds(self, proposal: Proposal, tokens: np.ndarray, position: int) -> bool:
        """Whether a proposal answers the query that the tokens make now."""
        return proposal.surroundings == self.surroundings(tokens, position)

    def distribution(self, proposal: Proposal, vocab: int) -> Tensor:
        """p_retrieval [vocab]."""
        return proposal_distribution(self._nearest(proposal), self.options, vocab)[0]

    def weight(self, proposal: Proposal) -> float:
        """λ_i; 0 where nothing was found."""
        if not proposal.found:
            return 0.0
        if self.options.weight != "auto":
            return self.options.weight
        calibration = self.retriever.index.calibration
        assert calibration is not None
        return float(calibration.weigh(self._nearest(proposal), self.unknown_words)[0])

    def _nearest(self, proposal: Proposal) -> Neighbors:
        """The K neighbours that make the proposal; FAiD may have asked for more."""
        n, k = proposal.neighbors, self.options.neighbours
        return Neighbors(n.distances[:, :k], n.codes[:, :k], n.ids[:, :k])


def mix(p_model: Tensor, p_retrieval: Tensor, weight: float) -> Tensor:
    """(1 - λ) p_model + λ p_retrieval; p_model itself where nothing was retrieved."""
    if weight == 0:
        return p_model
    return (1 - weight) * p_model + weight * p_retrieval
