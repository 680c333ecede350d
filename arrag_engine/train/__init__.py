"""Training FAiD adapters: from pictures with captions and an index to an adapter file."""

from .advice import suggest_steps
from .data import Examples, prepare_examples, retrieve_codes
from .loop import Place, score, train_adapter
from .rehearsal import draw_own
from .settings import TrainSettings
from .state import RunFolder
from .team import Team, join_team

__all__ = [
    "Examples",
    "Place",
    "RunFolder",
    "Team",
    "TrainSettings",
    "draw_own",
    "join_team",
    "prepare_examples",
    "retrieve_codes",
    "score",
    "suggest_steps",
    "train_adapter",
]
