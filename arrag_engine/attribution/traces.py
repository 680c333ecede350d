"""The one place that knows how a trace is built."""

from __future__ import annotations

import numpy as np

from ..decode import Drawing, Trace
from ..decode.canvas import MODEL
from .credits import Credits, Owed, make_credits

ROUNDING = 1e-9
"""What sums of shares differ by."""


def drawing_credits(drawing: Drawing) -> list[Credits]:
    """The credits of each picture of a drawing. Without retrieval, the model drew all."""
    traces = drawing.traces
    return [trace_credits(t) for t in traces] if traces else [Credits()] * len(drawing.tokens)


def trace_credits(trace: Trace) -> Credits:
    """The credits of one picture."""
    kept = float(np.mean(trace.component < MODEL))
    return make_credits([_owed(trace, j) for j in range(len(trace.layers))], kept)


def _owed(trace: Trace, layer: int) -> Owed:
    one, shares = trace.layers[layer], trace.source_shares(layer)
    unlisted = float(trace.responsibilities[layer].mean() - shares.sum())
    owed = {int(number): float(shares[number]) for number in np.flatnonzero(shares)}
    found = np.unique(one.hits.sources[one.hits.found()]).tolist()
    return Owed(one.source.sources, owed, unlisted if unlisted > ROUNDING else 0.0, found)
