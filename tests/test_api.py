"""The public API: documented examples run, and it draws what the command line draws."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import arrag_engine as arrag
from arrag_engine.cli import main

DOCS = Path(arrag.__file__).parent.parent / "docs" / "api.md"


def test_the_documented_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pictures").mkdir()
    Image.new("RGB", (96, 96), "red").save(tmp_path / "my_pictures" / "a.png")
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 10
    for block in blocks:
        exec(block, names)
    assert Image.open(tmp_path / "flamingo.png").size == (96, 96)
    assert "Subject: 'flamingo'" in capsys.readouterr().out
    assert names["drawing"].tokens.shape == (1, 12, 12)
    assert names["drawing"].timings.keys() == {"plan", "draw", "decode"}
    assert [c.licence for c in names["credits"].sources]
    assert names["alone"].traces[0].weight.max() == 0
    assert [source.caption for source in names["mine"].sources] == ["a flamingo"]
    kept = names["kept"]
    assert kept.mask[0].tolist() == [True] * 72 + [False] * 72
    assert (names["edited"].tokens.flatten(1).numpy()[:, :72] == kept.tokens[:, :72]).all()
    assert (names["varied"].tokens.flatten().numpy() != kept.tokens[0]).sum() <= 44


def test_it_draws_what_the_command_line_draws(tmp_path):
    line = ["generate", "--prompt", "an owl", "--index", "pocket", "--seed", "3", "--batch", "2"]
    line += ["--out", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")]
    assert main(line) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    drawing = arrag.draw(model, "an owl", [3, 4], [arrag.Layer(index)])
    assert drawing.tokens.flatten(1).tolist() == [image["tokens"] for image in report["images"]]
    saved = np.asarray(Image.open(tmp_path / "a-1.png"))
    assert np.array_equal(np.asarray(drawing.images[1]), saved)
    assert list(drawing.notes) == report["notes"]


def test_layers_whose_weights_exceed_1_together_are_refused():
    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    layers = [arrag.Layer(index, only="", weight=0.7), arrag.Layer(index, only="", weight=0.6)]
    with pytest.raises(arrag.InputError, match=r"add up to 1.3 .*0.7 \+ 0.6.*at most 0.5 for each"):
        arrag.draw(model, "an owl", layers=layers)


def test_importing_is_instant_and_names_are_complete():
    """Neither torch nor numpy is imported before a name that needs it is used."""
    code = "import sys, arrag_engine; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"draw", "load_model", "Layer", "InputError"} <= set(dir(arrag))
    for name in arrag._HOME:
        assert getattr(arrag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        arrag.paint  # noqa: B018


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(arrag.InputError, match=r"^device nonsense is not usable here"):
        arrag.load_model("pocket", device="nonsense")
