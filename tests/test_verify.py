"""`verify`: right numbers are ok, wrong ones FAILED, absent ones skipped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arrag_engine.cli import main
from arrag_engine.errors import InputError
from arrag_engine.grid import Grid
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.verify import verify_folder
from tests.golden import write_fixture
from tests.tiny import tiny_config, tiny_model

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"
GROUPS = ("vq", "vanilla", "db", "daid", "faid")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory):
    """Grouped key heads, a 4x4 grid, patches of 4 pixels, a database smaller than top_k."""
    config = replace(
        tiny_config(kv_heads=2), grid=Grid(4, 4), vq=VQConfig(32, (1, 1, 2), 1, 32, 50, 8)
    )
    with torch.inference_mode():
        torch.manual_seed(0)
        return write_fixture(tmp_path_factory.mktemp("golden") / "a", tiny_model(1, config))


@pytest.fixture
def copy(fixture, tmp_path):
    return shutil.copytree(fixture, tmp_path / "copy")


def checks_of(folder):
    return {check.name: check for check in verify_folder(folder)}


def group_of(checks, group):
    return [check for name, check in checks.items() if name.startswith(f"{group}.")]


@pytest.mark.skipif(not ORACLE.is_dir(), reason=f"there are no golden numbers in {ORACLE}")
def test_the_reference_programs_numbers_are_reproduced():
    checks = checks_of(ORACLE)
    for group in GROUPS:
        found = group_of(checks, group)
        assert len(found) >= 4
        assert [str(check) for check in found if check.status != "ok"] == []
    assert len(group_of(checks, "daid")) > 15
    parts = {check.name.split(".")[1] for check in group_of(checks, "faid")}
    assert parts >= {
        "step", "stepzero", "noretrieval", "train", "train2", "greedy", "blender_unit",
        "gradient_norms",
    }  # fmt: skip
    assert "faid.train.loss" in checks
    assert "faid.train2.loss" in checks


def test_every_tensor_of_a_fixture_of_other_sizes_is_checked_and_ok(fixture):
    checks = checks_of(fixture)
    assert [str(c) for c in checks.values() if c.status == "FAILED"] == []
    inputs = {"vq.images", "vanilla.prompt_ids_cond", "vanilla.prompt_ids_uncond"}
    inputs |= {"vanilla.forced_tokens", "db.grid.vectors", "db.grid.indices"}
    inputs |= {"faid.forced_tokens", "faid.blender_out_selected_pos", "faid.blender_unit.hidden"}
    inputs |= {"faid.blender_unit.retrieved", "faid.blender_unit.infer_pos"}
    inputs |= {f"faid.train2.{name}" for name in ("text_ids", "text_mask", "image_tokens", "codes")}
    for group in GROUPS:
        names = {f"{group}.{name}" for name in load_file(fixture / f"{group}.safetensors")}
        names |= {"faid.gradient_norms"} if group == "faid" else set()
        assert {c.name for c in group_of(checks, group) if c.status == "ok"} == names - inputs


def test_the_command_reports_one_line_a_check_and_succeeds(fixture, capsys):
    assert main(["verify", str(fixture)]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks_of(fixture))
    assert any(line.startswith("ok       daid.second.forced.p_merged  error ") for line in lines)
    skipped = sum(line.startswith("skipped") for line in lines)
    assert summary == f"{len(lines) - skipped} ok, 0 failed, {skipped} skipped"


CORRUPTIONS = [
    ("vq", "decoded", 0.01),
    ("vq", "indices", 1),
    ("vanilla", "logits_cfg", 0.01),
    ("vanilla", "hidden_uncond", float("nan")),
    ("vanilla", "greedy.tokens", 1),
    ("vanilla", "forced_image_u8", 2),
    ("db", "grid.keys", 1e-6),
    ("db", "grid.values", 1),
    ("daid", "a.forced.neighbour_ids", 1),
    ("daid", "a.forced.p_retr", 1e-3),
    ("daid", "second.greedy.tokens", 1),
    ("faid", "step.logits_cond", 0.01),
    ("faid", "stepzero.logits_cond", 0.01),
    ("faid", "train.blender_out_selected", 1e-3),
    ("faid", "train2.loss", 1e-3),
    ("faid", "greedy.tokens", 1),
]


@pytest.mark.parametrize(("group", "name", "amount"), CORRUPTIONS)
def test_one_wrong_number_fails_its_check_and_no_other(copy, capsys, group, name, amount):
    path = copy / f"{group}.safetensors"
    tensors = load_file(path)
    flat = tensors[name].flatten()
    flat[-1] = flat[-1] + amount if flat[-1] < 200 else flat[-1] - amount
    save_file(tensors | {name: flat.view(tensors[name].shape)}, path)
    failed = [check.name for check in verify_folder(copy) if check.status == "FAILED"]
    assert failed == [f"{group}.{name}"]
    assert main(["verify", str(copy)]) == 1
    assert f"FAILED   {group}.{name}  error" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["language_model.model.norm.weight", "gen_head.vision_head.bias"])
def test_a_wrong_weight_fails(copy, name):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name] * 1.01}, path)
    checks = checks_of(copy)
    assert checks["vanilla.logits_cond"].status == "FAILED"
    assert {check.status for check in group_of(checks, "vq")} == {"ok"}


def test_a_tensor_of_another_size_fails(copy):
    path = copy / "vanilla.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"logits_cond": tensors["logits_cond"][:-1].clone()}, path)
    assert checks_of(copy)["vanilla.logits_cond"].status == "FAILED"


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_without_its_file_is_skipped_and_said(copy, group):
    (copy / f"{group}.safetensors").unlink()
    checks = checks_of(copy)
    assert {check.status for check in group_of(checks, group)} == {"skipped"}
    assert not [c for c in checks.values() if c.status == "FAILED"]
    assert "ok" in {c.status for g in GROUPS for c in group_of(checks, g)}


@pytest.mark.parametrize(
    ("group", "needed"),
    [("daid", "db"), ("daid", "vanilla"), ("faid", "db"), ("faid", "faid_additional")],
)
def test_a_group_without_what_it_stands_on_is_skipped_and_said(copy, group, needed):
    (copy / f"{needed}.safetensors").unlink()
    checks = group_of(checks_of(copy), group)
    assert checks
    assert {check.status for check in checks} == {"skipped"}


def test_a_wrong_gradient_fails(copy):
    settings = json.loads((copy / "settings.json").read_text())
    norms = settings["faid_train_grad_l2_norms"]
    name = "language_model.model.layers.0.blender.conv22.weight"
    norms[name] *= 1.01
    (copy / "settings.json").write_text(json.dumps(settings))
    failed = [check.name for check in verify_folder(copy) if check.status == "FAILED"]
    assert failed == ["faid.gradient_norms"]


def test_without_a_model_only_the_database_is_checked(copy):
    (copy / "model.safetensors").unlink()
    checks = checks_of(copy)
    assert {c.status for c in group_of(checks, "db")} == {"ok"}
    for group in ("vq", "vanilla", "daid", "faid"):
        assert {c.status for c in group_of(checks, group)} == {"skipped"}


def test_a_tensor_that_a_fixture_lacks_is_skipped(copy):
    path = copy / "vanilla.safetensors"
    tensors = load_file(path)
    del tensors["hidden_cond"]
    save_file(tensors, path)
    checks = checks_of(copy)
    assert checks["vanilla.hidden_cond"].status == "skipped"
    assert checks["vanilla.hidden_uncond"].status == "ok"


def test_no_check_at_all_is_no_success(copy, capsys):
    for group in GROUPS:
        (copy / f"{group}.safetensors").unlink()
    assert main(["verify", str(copy)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 ok, 0 failed")


def test_constants_that_the_config_leaves_out_come_from_the_settings(copy):
    """Golden numbers of a model with another RoPE base hold only with that base."""
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps(settings | {"rope_theta": 50.0}))
    assert checks_of(copy)["vanilla.logits_cond"].status == "FAILED"


@pytest.mark.parametrize("missing", ["settings.json", "config.json"])
def test_a_folder_without_settings_or_config_is_the_persons_to_mend(copy, capsys, missing):
    (copy / missing).unlink()
    assert main(["verify", str(copy)]) == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"grid_width": 4}'])
def test_damaged_settings_are_refused(copy, content):
    (copy / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json"):
        list(verify_folder(copy))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        list(verify_folder(tmp_path / "none"))
