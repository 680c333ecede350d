"""The one place that knows how a trace is built."""

from __future__ import annotations

import numpy as np

from ..decode import Drawing, Trace
from .credits import Credits, Owed, make_credits, owed_shares


def drawing_credits(drawing: Drawing) -> list[Credits]:
    """The credits of each picture of a drawing. Without retrieval, the model drew all."""
    traces = drawing.traces
    return [trace_credits(t) for t in traces] if traces else [Credits()] * len(drawing.tokens)


def trace_credits(trace: Trace) -> Credits:
    """The credits of one picture."""
    shares, unlisted = owed_shares(trace.responsibility, trace.hits, trace.tokens, _chances(trace))
    found = np.unique(trace.hits.sources[trace.hits.found()]).tolist()
    return make_credits([Owed(trace.source.sources, shares, unlisted, found)])


def _chances(trace: Trace) -> np.ndarray:
    """See `owed_shares`; of the hits that proposed the drawn token [N, K]."""
    proposed = trace.hits.found() & (trace.hits.codes == trace.tokens[:, None])
    if trace.options.duplicates == "first":
        chances = (proposed & (np.cumsum(proposed, axis=1) == 1)).astype(float)
    else:
        distances = np.where(proposed, trace.hits.distances, np.inf)
        nearest = np.where(proposed.any(axis=1), distances.min(axis=1), 0)[:, None]
        chances = np.exp((nearest - distances) / trace.options.temperature)
    return chances / np.maximum(chances.sum(axis=1, keepdims=True), np.finfo(float).tiny)
