"""What the measurements recommend, as an entry of `recommended.MEASURED`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ...checkpoints import Checkpoint
from ...index import KeySpec
from ...recommended import Recommended, recommended
from ...settings import RetrievalOptions, Sampling, Schedule


def recommend(checkpoint: Checkpoint, rows: Sequence[Mapping[str, Any]]) -> Recommended | None:
    """The values with the least bits on held-out pictures; None where retrieval gains nothing
    there.

    Sampling, schedule and the weight beside an adapter were not measured and stay.

    Args:
        rows: Of the model alone, then of settings, the best first.
    """
    alone, best = rows[0], rows[1]
    if best["bits"] >= alone["bits"]:
        return None
    now = recommended(checkpoint)
    values = {name: best[name] for name in ("weight", "temperature", "neighbours")}
    return replace(
        now,
        source=f"measured with {checkpoint.name} by the kit",
        keys=replace(now.keys, neighborhood=best["neighborhood"]),
        retrieval=replace(now.retrieval, **values),
    )


def to_facts(found: Recommended) -> dict[str, Any]:
    """As JSON has it."""
    return asdict(found)


def from_facts(facts: Mapping[str, Any]) -> Recommended:
    """The inverse of `to_facts`, after JSON."""
    schedule = dict(facts["schedule"])
    schedule["sigmoid"] = tuple(schedule["sigmoid"])
    parts = {
        "sampling": Sampling(**facts["sampling"]),
        "keys": KeySpec(**facts["keys"]),
        "retrieval": RetrievalOptions(**facts["retrieval"]),
        "schedule": Schedule(**schedule),
    }
    return Recommended(**{**facts, **parts})


def entry(fingerprint: str, facts: Mapping[str, Any]) -> str:
    """The line of the table `MEASURED` in `arrag_engine/recommended.py`."""
    return f"{fingerprint!r}: {from_facts(facts)!r},"
