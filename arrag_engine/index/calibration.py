"""How far an index is to be trusted at a position, told by the neighbours that it brings back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from .patch_index import Neighbors

WITNESSES = 16
"""Nearest neighbours that are looked at."""
EVIDENCE = ("one", "nearest", "spread", "agreement", "surprise")
CLOSE = 0.01
"""Added to squared distances before their logarithm: nearer than its root is as good as equal."""


@dataclass(frozen=True)
class Calibration:
    """λ_i = ceiling · sigmoid(weights · evidence_i), fitted to one model, index and use."""

    weights: tuple[float, ...]
    """One for each of EVIDENCE."""
    ceiling: float
    """Largest λ."""
    temperature: float
    """τ that it was fitted with, as the rest below."""
    neighbours: int
    duplicates: Literal["first", "sum"]
    top_p: float

    def weigh(self, neighbors: Neighbors) -> np.ndarray:
        """λ [B] of neighbours [B, K]; 0 where nothing was found."""
        return np.where(neighbors.found().any(axis=1), self.of(evidence(neighbors)), 0.0)

    def of(self, evidence: np.ndarray) -> np.ndarray:
        """λ [B] of evidence [B, len(EVIDENCE)]."""
        score = evidence @ np.array(self.weights)
        return self.ceiling / (1 + np.exp(-score.clip(-50, 50)))

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
            neighbours, adds = int(facts["neighbours"]), facts["duplicates"] == "sum"
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"its calibration is unreadable ({str(error)[:60]})") from error
        numbers = (*weights, ceiling, temperature, top_p)
        if len(weights) != len(EVIDENCE) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"its calibration has {len(weights)} weights that cannot be used")
        if not 0 <= ceiling <= 1:
            raise ValueError(f"its calibration goes up to a weight of {ceiling}")
        duplicates = "sum" if adds else "first"
        return cls(weights, ceiling, temperature, neighbours, duplicates, top_p)


def evidence(neighbors: Neighbors) -> np.ndarray:
    """What the nearest neighbours of queries say about themselves [B, len(EVIDENCE)].

    1; the logarithm of the nearest squared distance; how much further off the others are (mean
    logarithm of their distances, less the nearest's); the share of them that has the nearest's
    code; the entropy of their codes in nats. The model's own opinion is not asked.
    """
    distances = neighbors.distances[:, :WITNESSES].astype(np.float64)
    codes, found = neighbors.codes[:, :WITNESSES], neighbors.found()[:, :WITNESSES]
    count = np.maximum(found.sum(axis=1), 1)
    logs = np.log(np.where(found, distances, 1.0) + CLOSE)
    nearest = logs[:, 0]
    spread = ((logs - nearest[:, None]) * found).sum(axis=1) / count
    same = (codes[:, :, None] == codes[:, None, :]) & found[:, None, :]
    shares = same.sum(axis=2) / count[:, None]
    surprise = -(np.log(np.maximum(shares, 1 / WITNESSES)) * found).sum(axis=1) / count
    return np.stack((np.ones_like(nearest), nearest, spread, shares[:, 0], surprise), axis=1)
