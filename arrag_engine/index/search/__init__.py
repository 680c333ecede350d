"""Search structures over the keys of an index."""

from .choose import STRUCTURES, build_searcher, check_search, load_searcher
from .searcher import Progress, Searcher
from .stored import Stored, Structure

__all__ = [
    "STRUCTURES",
    "Progress",
    "Searcher",
    "Stored",
    "Structure",
    "build_searcher",
    "check_search",
    "load_searcher",
]
