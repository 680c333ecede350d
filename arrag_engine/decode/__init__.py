"""Decoding: from a model and a recipe to token grids."""

from .draw import draw_one_by_one, draw_pictures
from .fixed import WIDTH, KeptPasses, pass_width
from .graphs import GraphRecorder
from .kept import Kept
from .recipe import Drawing, Progress, Recipe
from .trace import Trace

__all__ = [
    "WIDTH",
    "Drawing",
    "GraphRecorder",
    "Kept",
    "KeptPasses",
    "Progress",
    "Recipe",
    "Trace",
    "draw_one_by_one",
    "draw_pictures",
    "pass_width",
]
