"""The pocket models' tokenizers: every word a caption of learnt things can hold is one id.

The names of unseen things and the words for the unseen style are unknown to it: the decoder has no
vector for them that was ever trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import backgrounds
from captions import NUMBERS, RELATIONS
from concepts import COUNTLESS, LEARNT, plural
from sprites import COLORS
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.models.janus.prompt import BEGIN_OF_IMAGE, BEGIN_OF_SENTENCE, PAD
from arrag_engine.models.showo.prompt import END_OF_TEXT
from arrag_engine.models.tokenizing import UNKNOWN

SPECIAL = [UNKNOWN, BEGIN_OF_SENTENCE, PAD, "<|User|>", "<|Assistant|>", BEGIN_OF_IMAGE]
SPECIAL_SHOWO = [UNKNOWN, END_OF_TEXT]
"""Its other special tokens are appended behind the text, not part of the tokenizer."""


def vocabulary(special: Sequence[str] = SPECIAL) -> list[str]:
    """Special tokens, then all caption words in alphabetical order."""
    words = {"a", "an", "and", ":", *LEARNT, *COLORS}
    names = (*backgrounds.PLAIN, *backgrounds.SCENERIES)
    words |= {word for name in names for word in backgrounds.words(name).split()}
    words |= {plural(name) for name in LEARNT if name not in COUNTLESS}
    words |= set(NUMBERS.values()) | {w for phrase in RELATIONS for w in phrase.split()}
    return [*special, *sorted(words)]


def make_tokenizer(special: Sequence[str] = SPECIAL) -> Tokenizer:
    """A word-level tokenizer that ignores case and punctuation."""
    ids = {word: i for i, word in enumerate(vocabulary(special))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,;!?'\"]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def tokenizer_json(special: Sequence[str] = SPECIAL) -> str:
    return make_tokenizer(special).to_str()
