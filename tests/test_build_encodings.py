"""Encodings of captions that do not name theirs."""

import codecs

import pytest

from arrag_engine.build.encodings import guess_encodings, plain_text

TEXTS = {
    "cp1252": ["a café’s flamingo", "fünf Äpfel", "una niña", "naïve", "JALAPEÑO"],
    "gb18030": ["一只 flamingo", "一个女孩", "蓝天白云，草地", "1girl, 长发", "水墨画"],
    "cp932": ["赤い花", "少女", "ネコ耳", "女の子, 1人"],
    "euc_jp": ["赤い花", "少女", "ネコ耳", "女の子, 1人"],
    "big5": ["一隻貓", "紅色的花", "藍天白雲"],
    "cp949": ["빨간 꽃", "고양이", "푸른 하늘과 흰 구름"],
    "cp1251": ["красная кошка", "Москва ночью", "лес"],
}


@pytest.mark.parametrize(("encoding", "text"), [(e, t) for e, some in TEXTS.items() for t in some])
def test_short_texts_are_guessed_right(encoding, text):
    data = text.encode(encoding)
    assert plain_text(data) is None
    [guess] = guess_encodings([data])
    assert data.decode(guess) == text


def test_texts_of_several_encodings_are_guessed_each():
    texts = [text.encode(encoding) for encoding, some in TEXTS.items() for text in some]
    guesses = guess_encodings(texts)
    wanted = [text for some in TEXTS.values() for text in some]
    assert [t.decode(guess) for t, guess in zip(texts, guesses, strict=True)] == wanted


def test_the_folder_decides_what_one_text_leaves_open():
    doubtful = "蝴蝶".encode("gbk")
    assert guess_encodings([doubtful]) == ["cp949"]
    others = [text.encode("gbk") for text in TEXTS["gb18030"]] * 3
    assert guess_encodings([doubtful, *others]) == ["gb18030"] * 16


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_mark_is_obeyed(mark, encoding):
    assert plain_text(mark + "a café 花".encode(encoding)) == "a café 花"


@pytest.mark.parametrize(
    "text", ["", "a cat", "café", "ночь", "νύχτα", "לילה", "ليل", "花 café ночь", "5 µm", "1ª à"]
)
def test_utf_8_is_certain(text):
    assert plain_text(text.encode()) == text


def test_utf_8_by_accident_is_guessed():
    data = "一只".encode("gbk")
    assert data.decode() == "һֻ"
    assert plain_text(data) is None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(encoding):
    data = "a café".encode(encoding)
    assert plain_text(data) is None
    assert guess_encodings([b"caf\xe9", data, b"caf\xe9"]) == ["cp1252", encoding, "cp1252"]
