"""What an index of any size takes, by arithmetic from what `simulate_scale` measured.

    python scripts/plot_scale.py [--measured docs/measured/scale.json] [--plot docs/scale.svg]

The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.index.search.lists import MAX_LISTS, list_count

PICTURES, PATCHES = 13.6e6, 6.9e9
"""Of the paper's database."""
LARGEST = (MAX_LISTS / 3) ** 2
"""Patches at which an index has the most lists."""
MACHINES, CORES, SHARDS = (2, 4, 8), 8, 16
"""Every shard has a core of its own. With more shards, a query would wait for Ray longer."""
AT_ONCE = 32
"""Queries of a look-up for a batch or a window."""
LOOKUPS = 506
"""Of a picture, if every token is drawn by retrieval, one after the other."""
RAY_MS, RAY_BATCH_MS = 3.0, 6.5
"""What a look-up of one query, and of `AT_ONCE`, costs more over Ray."""
ACTOR_MS = 0.75
"""The same for each actor after the first: an assumption, for more actors than two cores can run
were not measured."""
ORDER = 4
"""Bytes of memory a patch, for the order of the lists; larger arrays are mapped from the file."""
ENCODER = 81
"""Pictures a second in float32 on one H100."""


@dataclass(frozen=True)
class Model:
    """Costs of a `compact` index as a function of its patches."""

    scan: tuple[float, float]
    """Codes scanned for a query: first * patches ** second."""
    ms: tuple[float, float, float]
    """Milliseconds of a query, of a list, of a scanned code."""
    build: float
    """Seconds of a core to build, for a patch and list."""
    bytes: float
    """Of the file, a patch."""
    error: float
    """Largest relative error of the milliseconds among what was measured."""

    def query(self, patches: float) -> float:
        """Milliseconds of a query on one core."""
        scanned = self.scan[0] * patches ** self.scan[1]
        return float(np.dot(self.ms, (1, list_count(int(patches)), scanned)))

    def building(self, patches: float) -> float:
        """Hours of one core."""
        return self.build * patches * list_count(int(patches)) / 3600


def fitted(grown: dict[str, list[dict[str, float]]]) -> Model:
    rows = grown["as built"] + grown["long"]
    built = grown["as built"]
    patches, scanned = (np.array([row[name] for row in built]) for name in ("patches", "scanned"))
    power, factor = np.polyfit(np.log(patches), np.log(scanned), 1)
    ms = np.array([row["ms"] for row in rows])
    parts = np.array([(1, row["lists"], row["scanned"]) for row in rows])
    costs = np.linalg.lstsq(parts / ms[:, None], np.ones(len(ms)), rcond=None)[0]
    largest = built[-1]
    return Model(
        (float(np.exp(factor)), float(power)),
        (float(costs[0]), float(costs[1]), float(costs[2])),
        largest["build_seconds"] / largest["patches"] / largest["lists"],
        largest["bytes"] / largest["patches"],
        float(np.abs(parts @ costs / ms - 1).max()),
    )


def on_cluster(model: Model, machines: int) -> dict[str, float]:
    """The paper's database on a cluster."""
    shard = model.query(PATCHES / SHARDS)
    actors = ACTOR_MS * (SHARDS - 1)
    ms = shard + RAY_MS + actors
    turns = -(-SHARDS // (machines * CORES))  # a shard is built by one core
    return {
        "machines": machines,
        "GB of files a machine": model.bytes * PATCHES / machines / 1e9,
        "GB of memory a machine": ORDER * PATCHES / machines / 1e9,
        "ms a query in a shard": shard,
        "ms a query": ms,
        f"ms a query, {AT_ONCE} at once": shard + (RAY_BATCH_MS + actors) / AT_ONCE,
        "seconds a picture": ms * LOOKUPS / 1e3,
        "hours to build the search": turns * model.building(PATCHES / SHARDS),
        "hours to encode, an H100 a machine": PICTURES / ENCODER / machines / 3600,
    }


def draw(grown: dict[str, list[dict[str, float]]], model: Model, path: Path) -> None:
    """One plot: milliseconds, bytes and memory over patches, measured and by arithmetic."""
    import matplotlib  # type: ignore[import]

    matplotlib.use("svg")
    import matplotlib.pyplot as plt  # type: ignore[import]

    plt.rcParams["svg.fonttype"] = "none"
    figure, left = plt.subplots(figsize=(8, 4.6), layout="constrained")
    right = left.twinx()
    beyond = np.geomspace(1e6, LARGEST, 40)
    everything = np.geomspace(1e6, PATCHES, 40)
    built = grown["as built"]
    patches = [row["patches"] for row in built]
    dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 1}
    ms, files, memory = "#1f6f8b", "#c0392b", "#7d8f29"
    left.plot(patches, [row["ms"] for row in built], "o", color=ms, label="ms a query, one core")
    left.plot(beyond, [model.query(p) for p in beyond], color=ms, **dashed)
    there = on_cluster(model, MACHINES[0])["ms a query"]
    label = f"ms a query, {SHARDS} shards over Ray"
    left.plot([PATCHES], [there], "s", color=ms, fillstyle="none", label=label)
    right.plot(patches, [row["bytes"] / 1e9 for row in built], "o", color=files, label="GB, files")
    right.plot(everything, model.bytes * everything / 1e9, color=files, **dashed)
    measured = [row["memory"] / 1e9 for row in built]
    right.plot(patches, measured, "o", color=memory, label="GB, memory")
    right.plot(everything, ORDER * everything / 1e9, color=memory, **dashed)
    for axes, name in ((left, "ms"), (right, "GB")):
        axes.set(xscale="log", yscale="log", ylabel=name)
    left.set(xlabel="patches", ylim=(0.1, 1000))
    left.grid(alpha=0.3)
    lines = [line for axes in (left, right) for line in axes.get_legend_handles_labels()[0]]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="upper left", fontsize=8)
    left.set_title("compact: measured (points), by arithmetic (dashed, hollow)", fontsize=10)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path, default=Path("docs/measured/scale.json"))
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    a = parser.parse_args()
    grown = json.loads(a.measured.read_text("utf-8"))["grown"]
    model = fitted(grown)
    print(model)
    for machines in MACHINES:
        print(json.dumps({name: round(x, 3) for name, x in on_cluster(model, machines).items()}))
    if a.plot:
        draw(grown, model, a.plot)


if __name__ == "__main__":
    main()
