"""Text of files whose encoding is not given.

A byte-order mark decides; without one, valid UTF-8 is read as UTF-8. The encoding of other texts is
guessed. Captions are short, so all texts of a folder are guessed together: each text has a
probability under each encoding, from the characters that are frequent in texts of that encoding; an
encoding that is frequent in the folder has a larger prior.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins as UTF-16's does
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
ENCODINGS = ("cp1252", "gb18030", "cp932", "big5", "cp949", "euc_jp", "cp1251")
"""Candidates; of equally probable ones the first."""
ACCENTED = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœß"
TYPOGRAPHY = "’‘“”–—…«»°€"
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґ"
CJK_MARKS = "，。、！？：；（）「」『』“”《》・～ー　"
CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着"
    "事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定"
    "见只主没公从女男孩红黄蓝绿白黑色花草树木山水云海风雨雪月星光夜景城市街房屋门窗车船鸟猫狗马鱼龙"
    "虎兔长短眼睛脸手衣服裙帽穿笑站坐背拿像画图照片动物老美高新古两张条幅丽爱"
)  # fmt: skip
TRADITIONAL = (
    "的一是不了人我在有他這為之大來以個中上們到說國和地也子時道出而要於就下得可你年生自會那後能對著"
    "事其裡所去行過家十用發天如然作方成者多日都三小軍二無同麼經法當起與好看學進種將還分此心前面又定"
    "見只主沒公從女男孩紅黃藍綠白黑色花草樹木山水雲海風雨雪月星光夜景城市街房屋門窗車船鳥貓狗馬魚龍"
    "虎兔長短髮眼睛臉手衣服裙帽穿笑站坐背拿像畫圖照片動物老美高新古兩張條幅麗愛隻"
)  # fmt: skip
JAPANESE = (
    "日一人大年出本中子見国上分生行二間時気十女三前入小後長下学月何来話山高今書五名金男外四先川東聞"
    "語九食八水天木六万白七千週火土円午百友駅雨電校車母父毎北道左右西南赤青黒緑黄色花空雲海風雪星"
    "光夜景猫犬鳥魚馬少髪目顔手服着笑立座物絵画街家屋桜"
)  # fmt: skip
KOREAN = (
    "이다는에가을의고를지은하기사로한리도서자인시어나아해대일그들수있것만라보스정장전주과원제상부니"
    "음게여조구선유진성신오동안마소와거면우문적치공발트화모비방생실관경간계세차무미명내물연현회복중"
    "용단국분교당반열말년양민없던까또빨란꽃색파초노검흰푸른하늘름구바람눈별달빛밤산강나무풀집녀남여"
    "아이고양강새말머손옷치마모자웃긴짧은"
)
UNSEEN = 0.01
"""Pseudo-count of texts in each encoding: the smoothing of the prior."""
SCRIPTS = {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "HEBREW", "ARABIC", "SYRIAC", "UNUSED"}
"""First words of the names of letters below U+0800."""
HIGH = range(0xA1, 0xFF)
WRONG, RARE, ASCII = math.log(1e-9), math.log(1e-7), math.log(1 / 40)
"""Log-probabilities of bytes that stand for nothing, of a character of no kind, and of an ASCII
character, which the second byte of another one may look like."""

MIXED, UNMIXED = (math.log(0.9), math.log(0.1)), (math.log(0.05), math.log(0.95))
"""Log-probabilities that the neighbour of a letter that is not ASCII is an ASCII letter, or not:
accented letters stand among others, those of other scripts among their own."""


def _pairs(encoding: str, first: range, second: Iterable[int] = HIGH) -> str:
    """Characters of two bytes."""
    pairs = bytes(byte for a in first for b in second for byte in (a, b))
    return pairs.decode(encoding, errors="ignore")


def _kinds(encoding: str) -> dict[str, float]:
    """Characters that texts in the encoding hold, and the share of each group of them."""
    if encoding == "cp1252":
        return {ACCENTED: 0.75, TYPOGRAPHY: 0.15, ACCENTED.upper(): 0.05}
    if encoding == "cp1251":
        return {CYRILLIC: 0.8, CYRILLIC.upper(): 0.1, TYPOGRAPHY: 0.05}
    if encoding == "gb18030":
        common, rare = _pairs(encoding, range(0xB0, 0xD8)), _pairs(encoding, range(0xD8, 0xF8))
        return {CHINESE: 0.35, common: 0.45, CJK_MARKS: 0.1, rare: 0.05}
    if encoding == "big5":
        second = (*range(0x40, 0x7F), *HIGH)
        common = _pairs(encoding, range(0xA4, 0xC7), second)
        rare = _pairs(encoding, range(0xC9, 0xFA), second)
        return {TRADITIONAL: 0.35, common: 0.45, CJK_MARKS: 0.1, rare: 0.05}
    if encoding == "cp949":
        common, rare = _pairs(encoding, range(0xB0, 0xC9)), _pairs(encoding, range(0xCA, 0xFE))
        return {KOREAN: 0.55, common: 0.4, CJK_MARKS: 0.03, rare: 0.005}
    common, rare = _pairs("euc_jp", range(0xB0, 0xD0)), _pairs("euc_jp", range(0xD0, 0xF5))
    kana = {_pairs("euc_jp", range(0xA4, 0xA5)): 0.4, _pairs("euc_jp", range(0xA5, 0xA6)): 0.15}
    return kana | {JAPANESE: 0.2, common: 0.12, CJK_MARKS: 0.08, rare: 0.02}


@cache
def _chances(encoding: str) -> dict[str, float]:
    """Log-probability of each character of the encoding's texts that is not ASCII."""
    chances: dict[str, float] = {"\ufffd": WRONG}
    for characters, share in _kinds(encoding).items():
        kind = set(characters)
        for character in kind:
            chance = math.exp(chances.get(character, -math.inf))
            chances[character] = math.log(chance + share / len(kind))
    return chances


def plain_text(data: bytes) -> str | None:
    """The text if its encoding is certain."""
    if data.isascii() and b"\0" not in data:
        return data.decode()
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or _mixes_scripts(text) else text


def _mixes_scripts(text: str) -> bool:
    """Whether letters of two scripts are neighbours, as in short texts that are UTF-8 by accident:
    GBK's bytes of 一只 are those of a Cyrillic letter and a Hebrew point."""
    if text.isascii() or max(text) >= "\u0800":  # three bytes in order are no accident
        return False
    for letters in re.findall(r"[\u0080-\u07ff]{2,}", text):
        scripts = {unicodedata.name(c, "UNUSED").split()[0] for c in letters}
        if len(scripts & SCRIPTS) > 1:
            return True
    return False


def guess_encodings(texts: Sequence[bytes]) -> list[str]:
    """The most probable encoding of each of the texts, which come from one folder."""
    wide = {i: _by_zeros(text) for i, text in enumerate(texts) if b"\0" in text}
    narrow = iter(_guess_narrow([text for i, text in enumerate(texts) if i not in wide]))
    return [wide[i] if i in wide else next(narrow) for i in range(len(texts))]


def _by_zeros(text: bytes) -> str:
    """UTF-16 without a mark: the upper byte of most of its characters is 0."""
    return "utf-16-le" if text[1::2].count(0) >= text[::2].count(0) else "utf-16-be"


def _guess_narrow(texts: Sequence[bytes]) -> list[str]:
    """For each text, the others' encodings are what is expected of it."""
    scores = [{encoding: _score(text, encoding) for encoding in ENCODINGS} for text in texts]
    alone = [_shares(row) for row in scores]
    counts = {encoding: sum(row[encoding] for row in alone) for encoding in ENCODINGS}
    guesses = []
    for row, own in zip(scores, alone, strict=True):
        prior = {e: math.log(max(counts[e] - own[e], 0) + UNSEEN) for e in ENCODINGS}
        guesses.append(max(ENCODINGS, key=lambda e, row=row, prior=prior: row[e] + prior[e]))
    return guesses


def _shares(scores: dict[str, float]) -> dict[str, float]:
    """Probability of each encoding of a text alone."""
    best = max(scores.values())
    weights = {encoding: math.exp(score - best) for encoding, score in scores.items()}
    return {encoding: weight / sum(weights.values()) for encoding, weight in weights.items()}


def _score(text: bytes, encoding: str) -> float:
    """Log-probability of the bytes, if the text is in the encoding."""
    chances = _chances(encoding)
    mixed, unmixed = MIXED if encoding == "cp1252" else UNMIXED
    decoded = text.decode(encoding, errors="replace")
    score = sum(ASCII if c.isascii() else chances.get(c, RARE) for c in decoded)
    for a, b in pairwise(decoded):
        if a.isalpha() and b.isalpha() and not (a.isascii() and b.isascii()):
            score += mixed if a.isascii() or b.isascii() else unmixed
    return score
