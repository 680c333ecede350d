"""The pocket model's tokenizer: every word a caption can hold is one id."""

from __future__ import annotations

import sys
from pathlib import Path

from concepts import COUNTLESS, LEARNT, plural
from data import BACKGROUNDS, NUMBERS, RELATIONS
from sprites import COLORS
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from arrag_engine.prompt import BEGIN_OF_IMAGE, BEGIN_OF_SENTENCE, PAD, UNKNOWN

SPECIAL = [UNKNOWN, BEGIN_OF_SENTENCE, PAD, "<|User|>", "<|Assistant|>", BEGIN_OF_IMAGE]


def vocabulary() -> list[str]:
    """Special tokens, then all caption words in alphabetical order."""
    words = {"a", "an", "and", "on", "background", ":", *LEARNT, *COLORS, *BACKGROUNDS}
    words |= {plural(name) for name in LEARNT if name not in COUNTLESS}
    words |= set(NUMBERS.values()) | {w for phrase in RELATIONS for w in phrase.split()}
    return SPECIAL + sorted(words)


def make_tokenizer() -> Tokenizer:
    """A word-level tokenizer that ignores case and punctuation."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,;!?'\"]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def tokenizer_json() -> str:
    return make_tokenizer().to_str()
