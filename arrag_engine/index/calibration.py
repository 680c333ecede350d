"""The weight of an index at a position, computed from the neighbours found there and from whether
the prompt has words outside the model's vocabulary."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from .hits import Hits

NEAREST = 16
"""Nearest neighbours that the evidence is computed from."""
EVIDENCE = ("one", "nearest", "spread", "agreement", "surprise", "unknown")
CLOSE = 0.01
"""Added to squared distances before the logarithm, which bounds it; smaller ones count as equal."""
RANGES = ((1, 1), (math.log(CLOSE), math.inf), (0, math.inf), (0, 1), (0, math.log(NEAREST)))
"""Smallest and largest value of each evidence that comes from neighbours."""


@dataclass(frozen=True)
class Calibration:
    """λ_i = ceiling · sigmoid(weights · evidence_i), or 0 where that is below the floor; fitted to
    one model, index and use."""

    weights: tuple[float, ...]
    """One for each of EVIDENCE."""
    ceiling: float
    """Largest λ."""
    temperature: float
    """τ that it was fitted with, as the rest below."""
    neighbours: int
    duplicates: Literal["first", "sum"]
    top_p: float
    floor: float = 0.0
    """Smaller λ count as 0: a picture that never reaches it is drawn as without retrieval."""

    def weigh(self, hits: Hits, unknown: bool) -> np.ndarray:
        """λ [B] of hits [B, K]; 0 where nothing was found."""
        weight = self.of(evidence(hits, unknown))
        return np.where(hits.found().any(axis=1), weight, 0.0)

    def largest(self, unknown: bool) -> float:
        """The largest λ that any neighbours give; 0 if none reach the floor."""
        weights = self.weights[: len(RANGES)]
        most = [w * (ends[w > 0]) if w else 0.0 for w, ends in zip(weights, RANGES, strict=True)]
        return float(self._squashed(np.array(sum(most) + self.weights[-1] * unknown)))

    def of(self, evidence: np.ndarray) -> np.ndarray:
        """λ [B] of evidence [B, len(EVIDENCE)]."""
        return self._squashed(evidence @ np.array(self.weights))

    def _squashed(self, score: np.ndarray) -> np.ndarray:
        weight = self.ceiling / (1 + np.exp(-score.clip(-50, 50)))
        return np.where(weight >= self.floor, weight, 0.0)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """What `to_json` wrote.

        Raises:
            ValueError: It did not.
        """
        try:
            facts = json.loads(text)
            weights = tuple(float(w) for w in facts["weights"])
            ceiling, temperature, top_p = (
                float(facts[name]) for name in ("ceiling", "temperature", "top_p")
            )
            neighbors, adds = int(facts["neighbours"]), facts["duplicates"] == "sum"
            floor = float(facts.get("floor", 0.0))  # the first calibrations had none
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"its calibration is unreadable ({str(error)[:60]})") from error
        if len(weights) == len(EVIDENCE) - 1:  # nor the evidence "unknown"
            weights = (*weights, 0.0)
        numbers = (*weights, ceiling, temperature, top_p, floor)
        if len(weights) != len(EVIDENCE) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"its calibration has {len(weights)} weights that cannot be used")
        if not 0 <= ceiling <= 1:
            raise ValueError(f"its calibration goes up to a weight of {ceiling}")
        if floor < 0:
            raise ValueError(f"its calibration begins at a weight of {floor}")
        duplicates = "sum" if adds else "first"
        return cls(weights, ceiling, temperature, neighbors, duplicates, top_p, floor)


def evidence(hits: Hits, unknown: bool) -> np.ndarray:
    """Features of the nearest neighbours of queries [B, len(EVIDENCE)].

    In the order of EVIDENCE: 1; the logarithm of the nearest squared distance; the mean logarithm
    of the distances, less the nearest's; the share of neighbours with the nearest's code; the
    entropy of the codes in nats; 1 if the prompt has a word outside the model's vocabulary, else 0.
    The model's logits are left out, so that a token can be drawn from retrieval without a pass.
    """
    distances = hits.distances[:, :NEAREST].astype(np.float64)
    codes, found = hits.codes[:, :NEAREST], hits.found()[:, :NEAREST]
    count = np.maximum(found.sum(axis=1), 1)
    logs = np.log(np.where(found, distances, 1.0) + CLOSE)
    nearest = logs[:, 0]
    spread = ((logs - nearest[:, None]) * found).sum(axis=1) / count
    same = (codes[:, :, None] == codes[:, None, :]) & found[:, None, :]
    shares = same.sum(axis=2) / count[:, None]
    surprise = -(np.log(np.maximum(shares, 1 / NEAREST)) * found).sum(axis=1) / count
    one = np.ones_like(nearest)
    return np.stack((one, nearest, spread, shares[:, 0], surprise, one * unknown), axis=1)
