"""A layer at work in one drawing: which positions are looked up, what is found, what it weighs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..grid import NEIGHBORHOODS, RASTER, DrawingOrder, Grid
from ..index import Hits
from ..settings import RetrievalOptions, Unknown
from .copying import CopyRule
from .mixture import Found, Proposal, hit_shares, proposal_distribution
from .query import Asked, QueryMaker
from .source import PatchSource
from .steering import Steering


@dataclass(frozen=True, eq=False)
class Retriever:
    """A source of patches and how it is used. `make_retriever` makes one.

    Raises:
        InputError: The weight is "auto", and the source is not calibrated, or for other options.
    """

    source: PatchSource
    query: QueryMaker
    options: RetrievalOptions
    candidates: int = 0
    """Hits that FAiD's blenders receive at every active position."""
    unknown_words: bool = False
    """Whether the prompt has words that the model does not know; the weight "auto" uses it."""
    factors: np.ndarray | None = None
    """Factors [N] of the weight; all 1 when absent. The layer does not work where it is 0."""
    max_distance: float = 0.0
    """Patches at a larger squared distance count as not found; 0 = no limit."""
    copies: CopyRule | None = None
    """Sources that it leaves out at a position count as absent from the index there."""
    number: int = 0
    """Of the layer among those that were asked for, some of which have nothing to retrieve."""
    span: Callable[[np.ndarray, int], np.ndarray] | None = None
    """Factors of the weight by the number of known tokens, for a model that draws in any order; see
    `Steering.span`. All 1 when absent."""

    def __post_init__(self) -> None:
        check_calibrated(self.source, self.options)

    def using(self, options: RetrievalOptions, unknown_words: bool = False) -> Retriever:
        """The same source with other options."""
        return replace(self, options=options, unknown_words=unknown_words)

    @cached_property
    def active(self) -> np.ndarray:
        """Mask [N] of the positions where the layer works."""
        active = self.query.active
        return active if self.factors is None else active & (self.factors > 0)

    @property
    def neighbours(self) -> int:
        """Hits of a look-up."""
        return max(self.options.neighbours if self.largest_weight else 0, self.candidates)

    @cached_property
    def largest_weight(self) -> float:
        """No λ_i is larger: where the noise lies above it, nothing needs to be looked up."""
        if self.options.weight != "auto":
            return self.options.weight
        calibration = self.source.calibration
        assert calibration is not None
        return calibration.largest(self.unknown_words)

    @cached_property
    def largest_weights(self) -> np.ndarray:
        """The largest λ_i of each position [N]."""
        factors = 1.0 if self.factors is None else self.factors
        return np.where(self.active, self.largest_weight * factors, 0.0)

    def moments(self, known: np.ndarray) -> np.ndarray:
        """Factors [...] of the weight when `known` [...] tokens of the picture are known."""
        size = len(self.query.active)
        return np.ones(np.shape(known)) if self.span is None else self.span(known, size)

    def moment(self, known: np.ndarray | None) -> float:
        """The factor of the weight for a mask [N] of the tokens that stand; None in raster
        order."""
        return 1.0 if known is None else float(self.moments(np.array(known.sum())))

    def works(self, known: np.ndarray | None) -> np.ndarray:
        """Mask [N] of the positions where the layer works now, for a mask [N] of the tokens that
        stand; None in raster order."""
        return self.active & (self.moment(known) > 0)

    @property
    def idle(self) -> bool:
        """Whether the layer works nowhere, or never."""
        size = len(self.active)
        return not (self.active.any() and self.moments(np.arange(size)).any())

    def mixes(self, position: int) -> bool:
        """Whether retrieval can decide the token at this position."""
        return self.largest_weight > 0 and bool(self.active[position])

    def looks_up(self, position: int) -> bool:
        """Whether the hits of this position are of use to anything."""
        return self.neighbours > 0 and bool(self.active[position])

    def lookup(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        k: int,
        without: Sequence[Sequence[int]] | None = None,
        known: np.ndarray | None = None,
    ) -> Hits:
        """The k nearest patches [P, k] at active positions [P] of a picture's tokens [N].

        Args:
            without: For each position, numbers of pictures whose patches are left out.
            known: Mask [N] of the tokens that stand; all before each position when absent.
        """
        return self._found(self.query.queries(tokens, positions, known), k, without)

    def _found(
        self, queries: np.ndarray, k: int, without: Sequence[Sequence[int]] | None = None
    ) -> Hits:
        """The k nearest patches [P, k] of queries [P, dim], with distances as the options count
        them."""
        if self.options.border_keys == "out":
            hits = self.source.lookup(queries, k, without=without, complete=True)
        else:
            hits = self.source.lookup(queries, k, without=without)
        if self.options.distances == "sum":
            return hits
        return hits.divided(np.maximum(self.query.counts(queries), 1))

    def propose(self, asked: Sequence[Asked]) -> list[Proposal]:
        """A proposal for every position of these pictures, in one look-up; a copy limit needs
        another one where it leaves sources out."""
        queries = np.concatenate([self.query.queries(*one) for one in asked])
        places = [(one, int(position)) for one in asked for position in one.positions]
        hits = self._near(queries).queries()
        if self.copies is not None:
            self._leave_out_copies(self.copies, queries, places, hits)
        around = [own for one in asked for own in self._stand_on(one)]
        factors = [f for one in asked for f in [self.moment(one.known)] * len(one.positions)]
        return [Proposal(*own) for own in zip(around, hits, factors, strict=True)]

    def find(self, asked: Sequence[Asked]) -> Found:
        """`propose`, of many positions as one: an object for each would take longer than the
        look-up."""
        if self.copies is not None:
            each = self.propose(asked)
            hits = Hits.concat([one.hits for one in each])
            factors = np.array([one.factor for one in each])
            return Found([one.surroundings for one in each], hits, factors)
        queries = np.concatenate([self.query.queries(*one) for one in asked])
        around = np.concatenate([self.query.around(one) for one in asked])
        moments = [self.moment(one.known) for one in asked]
        factors = np.repeat(moments, [len(one.positions) for one in asked])
        return Found(around, self._near(queries), factors)

    def _near(self, queries: np.ndarray, without: Sequence[Sequence[int]] | None = None) -> Hits:
        """The hits [P, K] of queries [P, dim] that are near enough."""
        hits = self._found(queries, self.neighbours, without)
        return hits.within(self.max_distance) if self.max_distance else hits

    def _leave_out_copies(
        self,
        rule: CopyRule,
        queries: np.ndarray,
        places: Sequence[tuple[Asked, int]],
        hits: list[Hits],
    ) -> None:
        """Look positions up again without the sources that the rule leaves out there, until it
        leaves out none that is found."""
        without: dict[int, list[int]] = {}
        unsure = list(range(len(places)))
        while unsure:
            again = []
            for i in unsure:
                asked, position = places[i]
                over = rule.left_out(hits[i], asked.tokens, asked.standing(position), position)
                if over:
                    without.setdefault(i, []).extend(over)
                    again.append(i)
            if again:
                found = self._near(queries[again], [without[i] for i in again])
                for i, one in zip(again, found.queries(), strict=True):
                    hits[i] = one
            unsure = again

    def _stand_on(self, asked: Asked) -> list[bytes]:
        """What the proposal of each position depends on: equal bytes mean an equal proposal."""
        around = self.query.surroundings(asked)
        if self.copies is None:
            return around
        stand = [np.where(asked.standing(p), asked.tokens, -1) for p in asked.positions]
        return [
            own + hashlib.sha256(tokens.tobytes()).digest()
            for own, tokens in zip(around, stand, strict=True)
        ]

    def still_holds(self, proposal: Proposal, asked: Asked, position: int) -> bool:
        """Whether the tokens make the query that the proposal answers."""
        return [proposal.surroundings] == self._stand_on(
            asked._replace(positions=np.array([position]))
        )

    def distribution(self, proposal: Proposal, vocab: int) -> Tensor:
        """p_retrieval [vocab]."""
        return proposal_distribution(self._nearest(proposal), self.options, vocab)[0]

    def facts(
        self, proposals: Sequence[Proposal], positions: np.ndarray, tokens: np.ndarray, vocab: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of proposals that found something: (λ [P], p_retrieval of the drawn tokens [P], what each
        hit gives to p_retrieval [P, K]).

        Args:
            positions: [P] of the proposals.
            tokens: [P] drawn there.
        """
        hits = Hits.concat([self._nearest(proposal) for proposal in proposals])
        proposed = proposal_distribution(hits, self.options, vocab).numpy()
        rows = np.arange(len(hits.codes))
        of_codes = proposed[rows[:, None], np.maximum(hits.codes, 0)]
        weights = self._weights(hits, positions) * [one.factor for one in proposals]
        return weights, proposed[rows, tokens], hit_shares(hits, self.options, of_codes)

    def weight(self, proposal: Proposal, position: int) -> float:
        """λ_i; 0 where nothing was found."""
        if not proposal.found:
            return 0.0
        weights = self._weights(self._nearest(proposal), np.array([position]))
        return float(weights[0] * proposal.factor)

    def distributions(self, hits: Hits, vocab: int, device: torch.device) -> Tensor:
        """p_retrieval [P, vocab] on a device, of hits [P, K]."""
        return proposal_distribution(
            hits.nearest(self.options.neighbours), self.options, vocab, device
        )

    def weights(self, hits: Hits, positions: np.ndarray) -> np.ndarray:
        """λ [P] of hits [P, K] that were found at positions [P]; 0 where nothing was found."""
        nearest, found = hits.nearest(self.options.neighbours), hits.found().any(axis=1)
        return np.where(found, self._weights(nearest, positions), 0.0)

    def _weights(self, hits: Hits, positions: np.ndarray) -> np.ndarray:
        """λ [P] of hits [P, K] that were found at positions [P]."""
        factors = np.ones(len(positions)) if self.factors is None else self.factors[positions]
        if self.options.weight != "auto":
            return self.options.weight * factors
        calibration = self.source.calibration
        assert calibration is not None
        return factors * calibration.weigh(hits, self.unknown_words)

    def _nearest(self, proposal: Proposal) -> Hits:
        """The K hits that the proposal consists of; FAiD may have asked for more."""
        return proposal.hits.nearest(self.options.neighbours)

    def check_serves(self, order: DrawingOrder) -> None:
        """Refuse a model whose drawing order leaves queries without their tokens.

        Raises:
            InputError: The neighbourhood of the source needs tokens that are drawn later.
        """
        neighborhood = self.source.spec.neighborhood
        if not order.serves(neighborhood):
            *names, last = filter(order.serves, NEIGHBORHOODS)
            raise InputError(
                f"the index looks patches up by {neighborhood}, which needs tokens that this model "
                f"draws later; load or build it with {', '.join(names)} or {last}"
            )


def suited(options: RetrievalOptions, source: PatchSource) -> RetrievalOptions:
    """Recommended options as far as the search of a source has them."""
    return options if source.partial else replace(options, border_keys="in")


def make_retriever(
    source: PatchSource,
    grid: Grid,
    codebook: np.ndarray,
    options: RetrievalOptions | None = None,
    unknown_words: bool = False,
    steering: Steering | None = None,
    unknown: Unknown | None = None,
    order: DrawingOrder = RASTER,
) -> Retriever:
    """A retriever for a model.

    Args:
        grid: What the model draws.
        codebook: The model's rows [codes, dim].
        unknown: How neighbours count that a query does not know: as zeros, or not at all. When
            absent, not at all where the search can do that: as zeros they would be near border
            keys.
        order: Of the model. In raster order the steering's span is a part of the picture, in any
            other order of the drawing.

    Raises:
        InputError: The source was built for another grid or VQ, or its search counts every
            neighbour; see also `Retriever`.
    """
    source.check_fits(grid, codebook)
    options, partial = options or RetrievalOptions(), source.partial
    unknown = unknown or ("ignore" if partial else "zero")
    if options.border_keys == "out" and not partial:
        raise InputError(
            "the search of this index cannot leave border keys out; build the index with the "
            "structure bits, or choose border keys in"
        )
    if unknown == "ignore" and not partial:
        raise InputError(
            "the search of this index counts every neighbour; build the index with the structure "
            "bits, or count unknown neighbours as zeros"
        )
    query = QueryMaker(source.spec, grid, codebook, unknown)
    steering = steering or Steering()
    limit = steering.copy_limit
    return Retriever(
        source,
        query,
        options,
        unknown_words=unknown_words,
        factors=steering.factors(grid, order),
        span=None if order.raster or steering.whole else steering.span,
        max_distance=steering.max_distance,
        copies=CopyRule(grid, source.tokens, limit) if limit else None,
    )


def calibrated_options(source: PatchSource) -> RetrievalOptions:
    """The weight "auto", with what the source was calibrated for.

    Raises:
        InputError: It is not calibrated.
    """
    known = source.calibration
    if known is None:
        raise InputError(f"the index cannot be used with the weight auto: {source.uncalibrated}")
    return RetrievalOptions(
        "auto", known.temperature, known.neighbours, known.duplicates, known.top_p
    )


def check_calibrated(source: PatchSource, options: RetrievalOptions) -> None:
    """Refuse the weight "auto" where the source has no calibration, or one for other options.

    Raises:
        InputError: That is so.
    """
    if options.weight != "auto":
        return
    fitted = calibrated_options(source)
    if options != fitted:
        raise InputError(
            f"the index was calibrated for retrieval temperature {fitted.temperature:g}, "
            f"{fitted.neighbours} neighbours, duplicates {fitted.duplicates} and top_p "
            f"{fitted.top_p:g}; choose these or calibrate again"
        )
