"""Messages that can be printed anywhere."""

import pytest

from arrag_engine.errors import LONGEST, printable


@pytest.mark.parametrize(
    ("text", "encodings", "shown"),
    [
        ("λ of 写真\n\tend", [], "λ of 写真\n\tend"),
        ("λ of 写真", ["utf-8", "utf-16"], "λ of 写真"),
        ("é of 写真", ["cp1252"], "é of \\u5199\\u771f"),
        ("é of 写真", ["cp1252", "ascii"], "\\xe9 of \\u5199\\u771f"),
        ("old-\udce9", [], "old-\\udce9"),
        ("old-\udce9", ["cp1252"], "old-\\udce9"),
        ("a\rb\x1b[31m\0", [], "a\\rb\\x1b[31m\\x00"),
        ("gnp.\u202ecod", [], "gnp.\\u202ecod"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, encodings, shown):
    assert printable(text, encodings) == shown
    for encoding in encodings:
        shown.encode(encoding)


def test_a_long_message_keeps_its_beginning_and_end():
    shown = printable("begin " + "x" * 100_000 + " end")
    assert len(shown) < LONGEST + 100
    assert shown.startswith("begin xxx")
    assert shown.endswith("xxx end")
    assert "(98010 characters left out)" in shown
    assert printable("x" * LONGEST) == "x" * LONGEST
