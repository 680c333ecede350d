"""`check_gpu` and `bench_gpu` at tiny shapes on a CPU."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrag_engine.decode import Kept, KeptPasses, Recipe
from arrag_engine.decode.fixed import FixedPass
from arrag_engine.grid import Grid
from arrag_engine.settings import Sampling
from scripts import bench_gpu, check_gpu, gpu, gpu_pace, gpu_rows
from tests.golden import write_fixture
from tests.tiny import BLANK, PROMPT, tiny_config, tiny_model

CPU = torch.device("cpu")
SMALLER = replace(gpu.TINY, grid=Grid(4, 4))


def has(module):
    return importlib.util.find_spec(module) is not None


ON_DEVICE = has("arrag_engine.retrieval.device_source")


@pytest.fixture
def smaller(monkeypatch):
    """Shapes and settings that a test has the time for."""
    monkeypatch.setattr(gpu, "TINY", SMALLER)
    monkeypatch.setattr(check_gpu, "SEEDS", (7, 8))
    monkeypatch.setattr(check_gpu, "HALVES", {"bf16": torch.bfloat16})
    monkeypatch.setattr(check_gpu, "WINDOWS", (1, 4))
    monkeypatch.setattr(check_gpu, "VOCAB", 512)
    thorough = {name: check_gpu.THOROUGH[name] for name in ("plain", "FAiD 1")}
    monkeypatch.setattr(check_gpu, "THOROUGH", thorough)
    few = ("top-k and top-p", "DAiD 0.5", "DAiD 0.5, temperature 0")
    monkeypatch.setattr(check_gpu, "WISHES", {name: check_gpu.WISHES[name] for name in few})


def checked(*flags, tmp_path):
    """(exit code, what the file says)."""
    out = tmp_path / "checks.json"
    code = check_gpu.main(["--device", "cpu", "--models", "tiny", "--out", str(out), *flags])
    return code, json.loads(out.read_text())


@pytest.mark.skipif(not ON_DEVICE, reason="the index is not searched on a device yet")
def test_fixed_passes_on_a_cpu_pass_every_check(smaller, tmp_path, capsys):
    write_fixture(tmp_path / "golden", tiny_model(3, tiny_config(side=4)))
    code, said = checked("--golden", str(tmp_path / "golden"), tmp_path=tmp_path)
    names = [check["name"] for check in said["checks"]]
    assert [check for check in said["checks"] if not check["ok"]] == []
    assert code == 0
    for wanted in (
        *("noise, words", "noise, Gumbel", "top-k None, top-p 0.9"),
        *("golden, guided logits", "golden, plain, greedy picture", "golden, FAiD, greedy picture"),
        *("golden, DAiD a, greedy picture", "tiny, plain, window 4, device = host"),
        *("tiny, FAiD 1, alone = in a batch", "tiny, FAiD 1, graph = no graph, twice"),
        *("tiny, bf16, plain, windows 4, 16 = 1", "tiny, bf16, FAiD 1, in a batch (reported)"),
        "tiny, three drawings, two sets of numbers, one kept pass",
    ):
        assert wanted in names
    assert said["machine"]["torch"] == torch.__version__
    assert said["machine"]["card"] == "none (cpu)"
    assert capsys.readouterr().out.count("\nok ") == len(names)


def test_a_wrong_pass_is_found(smaller, tmp_path, monkeypatch, capsys):
    right, tiny = FixedPass.run, check_gpu.SUBJECTS["tiny"](torch.float32, CPU)

    def wrong(one):
        tokens, p = right(one)
        return (tokens + 1) % one.model.vocab, p

    monkeypatch.setattr(FixedPass, "run", wrong)
    checks = list(check_gpu.check_thoroughly("tiny", check_gpu.PLAIN, tiny, tiny))
    assert not any(check.ok for check in checks)
    monkeypatch.setattr(check_gpu, "all_checks", lambda *args: checks)
    code, said = checked(tmp_path=tmp_path)
    assert code == 1
    assert said["checks"][0]["name"] == "tiny, window 1, device = host"
    assert "FAILED  tiny, window 1, device = host: 2 of 2 pictures" in capsys.readouterr().out


def test_numbers_of_the_first_drawing_are_found_in_the_second(smaller, monkeypatch):
    """What a graph that holds numbers would do."""
    there = check_gpu.SUBJECTS["tiny"](torch.float32, CPU)
    assert [check.ok for check in check_gpu.check_numbers("tiny", there)] == [True]
    first = {}
    begin = FixedPass.begin

    def stale(one, recipe, seeds):
        recipe = replace(recipe, sampling=first.setdefault(id(one), recipe.sampling))
        return begin(one, recipe, seeds)

    monkeypatch.setattr(FixedPass, "begin", stale)
    assert [check.ok for check in check_gpu.check_numbers("tiny", there)] == [False]


def test_a_group_that_breaks_is_a_failed_check():
    def broken():
        yield check_gpu.Check("first", True, "")
        raise RuntimeError("no memory")

    first, last = check_gpu.guarded("group", broken)
    assert first.ok
    assert str(last) == "FAILED  group: RuntimeError: no memory"


def test_where_pictures_part_is_told():
    wanted = torch.zeros(2, 10, dtype=torch.long)
    found = wanted.clone()
    found[1, 6] = 1
    said = check_gpu.parting(found, wanted)
    assert said.startswith("1 of 2 pictures of 10 tokens differ, 80.0%")


def test_every_row_is_measured_at_tiny_shapes(monkeypatch, tmp_path, capsys):
    sizes = replace(gpu_rows.SMALL, small=SMALLER, large=SMALLER, tokens=3, compared=3)
    monkeypatch.setattr(bench_gpu, "SMALL", sizes)
    monkeypatch.setattr(gpu_rows, "TEMPERATURES", (0.3,))
    out = tmp_path / "gpu.json"
    bench_gpu.main(["--small", "--device", "cpu", "--out", str(out), "--minutes", "60"])
    said = json.loads(out.read_text())
    needs = {"kernels": False, "daid": ON_DEVICE, "faid": ON_DEVICE}
    needs["transformers"] = needs["showo-transformers"] = has("transformers")
    assert set(said["left_out"]) == {name for name, there in needs.items() if not there}
    assert "a CUDA device alone" in said["left_out"]["kernels"]
    rows = {row["what"]: row for row in said["rows"]}
    assert all(row["value"] > 0 and row["bar"] is row["aim"] is None for row in rows.values())
    for wanted in (
        *("1B, sequential, picture", "1B, wall time of a pass of 16", "1B, picture with windows"),
        *("uncaptured / sequential", "7B, sequential, picture", "host time a pass"),
        *("16 pictures at once, against 16 alone", "device operations a pass, 1B", "bandwidth"),
        *("Show-o tiny, uncached / ours", "Show-o tiny, DAiD λ 0.1 / plain"),
        *("Show-o tiny, step", "Show-o tiny, tokens to pixels"),
    ):
        assert wanted in rows
    assert said["small"]
    assert "tiny shapes on cpu: no figure of a GPU" in capsys.readouterr().out


def test_a_cpu_is_not_asked_for_the_real_shapes(capsys):
    with pytest.raises(SystemExit):
        bench_gpu.main(["--device", "cpu"])
    assert "give --small, or --rows host operations" in capsys.readouterr().err


def test_no_group_starts_late(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    bench_gpu.main(["--small", "--device", "cpu", "--minutes", "-1", "--out", str(out)])
    said = json.loads(out.read_text())
    assert said["rows"] == []
    assert set(said["left_out"].values()) == {"-1 minutes were over"}


def test_a_drawing_ends_after_some_tokens():
    model = tiny_model()
    recipe = Recipe(PROMPT, BLANK, Sampling(3.0))
    run = gpu_pace.pace(model, recipe, [1], 1, KeptPasses(), 9)
    assert len(run.steps) == 8
    assert run.picture(36) == pytest.approx(run.opening + 35 * run.token)
    kept = Kept.first(np.arange(20), model.grid.size)
    run = gpu_pace.pace(model, replace(recipe, kept=kept), [1], 1, KeptPasses(), 5)
    assert len(run.steps) == 5


def test_operations_are_counted_without_views():
    with gpu_pace.Operations() as counted:
        x = torch.zeros(4)
        (x.view(2, 2).T + 1)[0].relu_()
    assert counted.count == 3  # zeros, add, relu


def test_operations_of_a_pass_grow_with_the_layers_alone():
    counts = []
    for layers in (1, 2, 3):
        llama = replace(gpu.TINY.llama, num_layers=layers)
        model = gpu.model_without_storage(replace(gpu.TINY, llama=llama), torch.bfloat16)
        recipe = Recipe(PROMPT, BLANK, Sampling(3.0))
        with torch.inference_mode():
            one = gpu_pace.pass_of(model, recipe, 1, 16, gpu.kept(capture=False))
        counts.append(gpu_pace.operations(one))
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_a_random_model_has_the_asked_dtype_and_a_vq_in_float32():
    model = gpu.random_model(gpu.TINY, torch.bfloat16, CPU)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.vq.parameters()} == {torch.float32}
    assert gpu.decoder_bytes(model) < sum(map(gpu.nbytes, model.parameters()))
