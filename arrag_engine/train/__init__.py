"""Training FAiD adapters: from pictures with captions and an index to an adapter file."""

from .data import Examples, prepare_examples, retrieve_codes
from .loop import Place, score, train_adapter
from .settings import TrainSettings
from .state import RunFolder
from .team import Team, join_team

__all__ = [
    "Examples",
    "Place",
    "RunFolder",
    "Team",
    "TrainSettings",
    "join_team",
    "prepare_examples",
    "retrieve_codes",
    "score",
    "train_adapter",
]
