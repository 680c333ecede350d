"""Search structures over the keys of an index."""

from .bits import why_not_bits
from .choose import EXACT, STRUCTURES, build_searcher, check_search, chosen, load_searcher
from .searcher import PartialSearcher, Progress, Searcher
from .stored import Stored, Structure

__all__ = [
    "EXACT",
    "STRUCTURES",
    "PartialSearcher",
    "Progress",
    "Searcher",
    "Stored",
    "Structure",
    "build_searcher",
    "check_search",
    "chosen",
    "load_searcher",
    "why_not_bits",
]
