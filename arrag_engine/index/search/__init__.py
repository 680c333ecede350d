"""Search structures over the keys of an index."""

from .choose import STRUCTURES, build_searcher, check_search, load_searcher
from .searcher import Progress, Searcher

__all__ = [
    "STRUCTURES",
    "Progress",
    "Searcher",
    "build_searcher",
    "check_search",
    "load_searcher",
]
