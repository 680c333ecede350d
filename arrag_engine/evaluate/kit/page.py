"""The page of the kit: one HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem }
td, th { border: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top }
img { display: block; width: 160px }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 0.6rem }
.no { color: #b00 } .yes { color: #070 }
"""
SHOWN = 12
"""Settings in the table of bits; the JSON has all."""
NAMED = 5
"""Unreadable pictures that are named."""
LONGEST = 120
"""Characters of a name or prompt."""


def make_page(
    facts: Mapping[str, Any], sheet: Sequence[tuple[str, Sequence[tuple[str, str]]]]
) -> str:
    """The page.

    Args:
        facts: What the JSON has.
        sheet: Each prompt with its pictures, as (what to write below, JPEG in base 64).
    """
    title = f"AR-RAG kit: {facts['model']['name']}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{text(title)}</h1>",
        *_model(facts),
        *_checks(facts),
        *_recommended(facts),
        "<h2>Bits a token of held-out pictures</h2>",
        _bits(facts["bits"]),
        "<h2>Drawings</h2>",
        _rows(facts["drawings"]),
        "<h2>Tokens decided by a pass of 16</h2>",
        _rows(facts["accepted"]) or "<p>The model draws in any order.</p>",
        "<h2>Speed and memory</h2>",
        _rows(facts["pace"]),
        "<h2>Sheet</h2>",
        _sheet(sheet),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def text(value: Any) -> str:
    """A value as HTML text: shortened, unprintable characters visible."""
    shown = str(value)
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]}…"
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return escape(printable.encode(errors="backslashreplace").decode())


def _model(facts: Mapping[str, Any]) -> list[str]:
    model, pictures = facts["model"], facts["pictures"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{text(model['name'])}, weights {text(model['weights'])}, {text(model['dtype'])}, on "
        f"{text(facts['device'])}",
        text(versions),
        f"{pictures['index']} pictures in the index, {pictures['captioned']} with a caption; "
        f"{pictures['held_out']} held out",
    ]
    unreadable = facts["unreadable"]
    if unreadable:
        named = "; ".join(f"{text(name)}: {text(why)}" for name, why in unreadable[:NAMED])
        lines.append(f"{len(unreadable)} pictures cannot be read: {named}")
    return [f"<p>{line}</p>" for line in lines]


def _checks(facts: Mapping[str, Any]) -> list[str]:
    marks = {True: ("yes", "right"), False: ("no", "WRONG"), None: ("", "not known")}
    rows = []
    for check in facts["checks"]:
        style, word = marks[check["right"]]
        rows.append(
            f'<tr><td>{text(check["name"])}</td><td class="{style}">{word}</td>'
            f"<td>{escape(check['detail'])}</td></tr>"
        )
    return ["<h2>The checkpoint</h2>", f"<table>{''.join(rows)}</table>"]


def _recommended(facts: Mapping[str, Any]) -> list[str]:
    if facts["recommended"] is None:
        return [
            "<h2>Recommended</h2>",
            "<p>Retrieval lowers the bits of the held-out pictures with no setting: the values "
            "of the table stay.</p>",
        ]
    return [
        "<h2>Recommended</h2>",
        "<p>The values with the least bits, as a line of MEASURED in "
        "arrag_engine/recommended.py:</p>",
        f"<pre>{escape(facts['entry'])}</pre>",
    ]


def _bits(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        {
            "keys": row.get("neighborhood", "the model alone"),
            "τ": row.get("temperature", ""),
            "K": row.get("neighbours", ""),
            "λ": row.get("weight", ""),
            "bits": row["bits"],
            "95 % interval over pictures": " to ".join(map(str, row["interval"])),
        }
        for row in rows[: SHOWN + 1]
    ]
    return _rows(shown)


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows; a value that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return ""
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(row.get(name, ''))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _sheet(sheet: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    rows = []
    for prompt, pictures in sheet:
        cells = "".join(
            f'<td><img alt="" src="data:image/jpeg;base64,{picture}">{text(below)}</td>'
            for below, picture in pictures
        )
        rows.append(f"<tr><td>{text(prompt)}</td>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"
