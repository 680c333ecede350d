"""Decoding: from a model and a recipe to token grids."""

from .draw import draw_pictures
from .fixed import KeptPasses
from .graphs import GraphRecorder
from .recipe import Drawing, Progress, Recipe
from .trace import Trace

__all__ = ["Drawing", "GraphRecorder", "KeptPasses", "Progress", "Recipe", "Trace", "draw_pictures"]
