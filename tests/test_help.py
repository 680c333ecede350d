"""Help pages of the nodes."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pictures_are_there_and_described(page):
    for text, picture in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
        assert len(text) > 10
        assert (page.parent / picture).is_file()
        assert "/" not in picture  # ComfyUI serves what lies beside the page


def test_some_pages_have_pictures():
    assert sum("![" in page.read_text(encoding="utf-8") for page in PAGES) >= 3
