"""Choosing, building and loading the search structure of an index."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ...bounds import RECALL_TARGET, check_choice
from ...errors import InputError
from ..keys import CHUNK, Keys
from .bits import Bits, why_not_bits
from .compact import CompactCodec, why_not_compact
from .flat import Flat
from .inverted import Codec, Inverted
from .ivf import LARGEST, ScalarCodec, stored_scales, train_scales
from .lists import MAX_LISTS, Assigned, Lists, assign, list_count, train_centroids
from .recall import Trial, make_trial, measure_recall
from .searcher import Progress
from .stored import Structure

STRUCTURES = ("auto", "flat", "ivf", "compact", "bits")
EXACT = ("flat", "bits")
"""Structures that find the nearest patches themselves."""
FLAT_LIMIT = 200_000
"""Patches up to which `auto` searches exactly: about 2 ms a query, and keys can be changed."""
MAX_PATCHES = 2**32
LEVEL = 1e-3
"""Recall has levelled off where all lists find hardly more than this."""


def check_search(structure: str, recall_target: float) -> None:
    """Refuse invalid search settings before the work.

    Raises:
        InputError: An unknown structure, a target out of range, or one that only exact search
            meets for another structure.
    """
    check_choice("structure", structure, STRUCTURES)
    RECALL_TARGET.check(recall_target)
    if recall_target == 1 and structure not in ("auto", *EXACT):
        raise InputError(
            f"a recall target of 1 needs exact search, which {structure} is not; choose flat or "
            "auto, or a target below 1"
        )


def build_searcher(
    keys: Keys,
    kind: str = "auto",
    recall_target: float = 0.95,
    progress: Progress | None = None,
) -> Structure:
    """A search structure over the keys.

    `flat` is exact; `ivf` keeps keys in 8 bits a number (half precision if the target asks for
    it); `compact` needs keys of the codebook key space. `bits` is exact and needs codes that are
    signs. `auto` is flat for small indexes and for a target of 1, else compact if it can be, else
    ivf.

    Args:
        recall_target: Share of the 64 nearest patches that is found, at the least, on average.

    Raises:
        InputError: An unknown structure or target, or one that these keys cannot have.
    """
    check_search(kind, recall_target)
    if keys.size > MAX_PATCHES:
        raise InputError(
            f"{keys.size} patches are more than the {MAX_PATCHES} of one index; build several"
        )
    kind = chosen(kind, keys, keys.size, recall_target)
    if kind == "compact" and (problem := why_not_compact(keys)):
        raise InputError(f"{problem}; choose another structure or key space")
    if kind == "flat" or keys.size == 0:
        return Flat(keys)
    if kind == "bits":
        if problem := why_not_bits(keys):
            raise InputError(f"{problem}; choose another structure or key space")
        return Bits(keys)
    centroids = train_centroids(keys, list_count(keys.size))
    assigned = assign(keys, centroids, progress)
    lists = Lists.sorted(assigned.numbers, len(centroids))
    trial = make_trial(keys)
    levelled = 0.0
    for codec in _codecs(kind, keys, centroids, assigned):
        codes = _encode(codec, lists)
        searcher = Inverted(codec, centroids, lists, codes, len(keys.active), nprobe=1)
        searcher.target, searcher.levelled = recall_target, levelled
        if _reach(recall_target, searcher, trial, keys):
            return searcher
        levelled = searcher.recall
    raise InputError(
        f"a recall of {recall_target} is out of reach of the {kind} structure, which finds "
        f"{levelled:.4f} in a trial; lower the target or choose flat"
    )


def chosen(kind: str, keys: Keys, size: int, recall_target: float) -> str:
    """The structure of so many patches with such keys: that of `auto`, or the one asked for."""
    if kind != "auto":
        return kind
    if size <= FLAT_LIMIT or recall_target == 1:
        return "flat"
    return "ivf" if why_not_compact(keys) else "compact"


def _codecs(kind: str, keys: Keys, centroids: np.ndarray, assigned: Assigned) -> Iterator[Codec]:
    """The codecs of a structure, the one with the smallest codes first."""
    if kind == "compact":
        yield CompactCodec(keys)
        return
    yield ScalarCodec(keys, centroids, train_scales(keys, centroids, assigned))
    yield ScalarCodec(keys, centroids, None)


def _encode(codec: Codec, lists: Lists) -> np.ndarray:
    """Codes [n, width] in the order of the lists."""
    numbers = lists.numbers()
    codes = np.empty((0, 0))
    for first in range(0, len(numbers), CHUNK):
        chunk = slice(first, first + CHUNK)
        part = codec.encode(lists.ids[chunk].astype(np.int64), numbers[chunk])
        if first == 0:
            codes = np.empty((len(numbers), part.shape[1]), part.dtype)
        codes[chunk] = part
    return codes


def _reach(target: float, searcher: Inverted, trial: Trial, keys: Keys) -> bool:
    """Set the smallest `nprobe` (of 1, 2, 3, 4, 6, 8, 12, ...) whose recall meets the target by
    two standard errors, for the trial is a sample.

    False where the recall levels off before: it is nearly that of all lists, which further lists
    cannot raise.
    """
    lists = len(searcher.centroids)
    level = 1.0 if searcher.codec.exact else _recall(lists, searcher, trial, keys)[0]
    steps = [n for i in range(1, 17) for n in (2**i // 2, 3 * 2**i // 4) if n < lists]
    for nprobe in sorted({*steps, lists}):
        recall, error = _recall(nprobe, searcher, trial, keys)
        if recall - 2 * error >= target:
            return True
        if recall >= level - LEVEL:
            return False
    return False


def _recall(nprobe: int, searcher: Inverted, trial: Trial, keys: Keys) -> tuple[float, float]:
    """(recall with so many lists, its standard error); the searcher keeps lists and recall."""
    searcher.nprobe = nprobe
    shares = measure_recall(trial, searcher, keys)
    searcher.recall = float(shares.mean())
    return searcher.recall, float(shares.std() / len(shares) ** 0.5)


def load_searcher(
    kind: str, keys: Keys, arrays: dict[str, np.ndarray], settings: dict[str, str]
) -> Structure:
    """The structure that gave these arrays and settings; the arrays are not copied.

    Raises:
        ValueError: They do not belong to such a structure over these keys.
    """
    if kind == "flat":
        if keys.spec.space == "encoder" and keys.vectors is None:
            raise ValueError("exact search in the encoder key space lacks the encoder's vectors")
        return Flat(keys)
    if kind == "bits":
        if problem := why_not_bits(keys):
            raise ValueError(problem)
        return Bits(keys)
    if kind not in ("ivf", "compact"):
        raise ValueError(f"search structure {kind[:20]!r}")
    if missing := sorted({"centroids", "lists", "codes"} - set(arrays)):
        raise ValueError(f"the {kind} structure lacks {', '.join(missing)}")
    centroids, numbers, codes = arrays["centroids"], arrays["lists"], arrays["codes"]
    _check_lists(centroids, numbers, keys)
    if codes.ndim != 2 or len(codes) != keys.size or not codes.flags.c_contiguous:
        raise ValueError(f"codes have shape {codes.shape} for {keys.size} patches")
    codec: Codec = (
        CompactCodec(keys)
        if kind == "compact"
        else ScalarCodec(keys, centroids, stored_scales(arrays, len(centroids)))
    )
    codec.check(codes)
    nprobe = settings.get("nprobe", "")
    if not (re.fullmatch(r"[1-9]\d{0,4}", nprobe, re.ASCII) and int(nprobe) <= len(centroids)):
        raise ValueError(f"nprobe {nprobe[:20]!r} of {len(centroids)} lists")
    recall = _share("recall", settings)
    target, levelled = (_share(name, settings, "0.0") for name in ("target", "levelled"))
    lists = Lists.sorted(numbers, len(centroids))
    active = len(keys.active)
    return Inverted(codec, centroids, lists, codes, active, int(nprobe), recall, target, levelled)


def _share(name: str, settings: dict[str, str], absent: str = "") -> float:
    """A setting between 0 and 1.

    Raises:
        ValueError: It is none.
    """
    text = settings.get(name, absent)
    if not (re.fullmatch(r"[01]\.\d{1,8}", text, re.ASCII) and float(text) <= 1):
        raise ValueError(f"{name} {text[:20]!r}")
    return float(text)


def _check_lists(centroids: np.ndarray, numbers: np.ndarray, keys: Keys) -> None:
    if centroids.dtype != np.float32 or centroids.shape[1:] != (keys.dim,):
        raise ValueError(
            f"centroids are {centroids.dtype} {centroids.shape} for {keys.dim} numbers"
        )
    if not 1 <= len(centroids) <= min(MAX_LISTS, keys.size):
        raise ValueError(f"{len(centroids)} lists for {keys.size} patches")
    if not np.abs(centroids).max() < LARGEST:  # also false for NaN
        raise ValueError("a centroid is not near the keys")
    if numbers.dtype != np.uint16 or numbers.shape != (keys.size,):
        raise ValueError(f"lists are {numbers.dtype} {numbers.shape} for {keys.size} patches")
    if numbers.max() >= len(centroids):
        raise ValueError(f"a patch is in list {numbers.max()} of {len(centroids)}")
