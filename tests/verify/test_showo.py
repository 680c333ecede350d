"""`verify` of Show-o: the official program's numbers are reproduced, wrong ones fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arrag_engine.cli import main
from arrag_engine.errors import InputError
from arrag_engine.verify import SHOW_O_FILES, SHOW_O_GROUPS, verify_folder
from tests.golden_showo import write_showo_fixture
from tests.tiny_showo import crooked_showo_config, tiny_showo

ORACLE = Path(__file__).parents[3] / "shared" / "oracle-showo"
needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason=f"there are no golden numbers in {ORACLE}"
)
INPUTS = {
    "preprocess": {"source0_u8", "source1_u8", "mask_source_u8"},
    "vq": {"rect.codes"},
    "prompts": {f"text_ids.{i}" for i in range(6)} | {"text_mask"},
    "vanilla": {"input_ids"},
    "t2i": {"draw_uniform", "mask_uniform", "draw_margin", "given_image_tokens"},
    "db": {"big.codes", "distribution.distances", "distribution.codes"}
    | {"distribution.unique_weight"},
    "daid_proposed": {"draw_uniform", "mask_uniform", "draw_margin"},
}
"""What the checks are given, how far draws are from another one, and what nothing here uses: a mask
of ones, and the official retriever's weight of a distribution."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of other sizes, settings and seeds, made with slow code."""
    model = tiny_showo(4, crooked_showo_config())
    with torch.inference_mode():
        return write_showo_fixture(tmp_path_factory.mktemp("golden") / "a", model)


def test_a_folder_of_other_sizes_is_checked_and_ok(made):
    checks = checks_of(made)
    failed = [str(check) for check in checks.values() if check.status == "FAILED"]
    assert failed == []
    for group in SHOW_O_GROUPS:
        for name in load_file(made / f"{group}.safetensors"):
            given = name in INPUTS[group] or name.split(".", 1)[-1] in INPUTS[group]
            assert (checks.get(f"showo-{group}.{name}") is not None) != given, name


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(ORACLE, tmp_path / "copy", copy_function=shutil.copyfile)


def checks_of(folder):
    return {check.name: check for check in verify_folder(folder)}


@needs_oracle
def test_the_official_numbers_are_reproduced():
    checks = checks_of(ORACLE)
    assert [str(check) for check in checks.values() if check.status != "ok"] == []
    for group, inputs in INPUTS.items():
        for name in load_file(ORACLE / f"{group}.safetensors"):
            checked = f"showo-{group}.{name}" in checks
            given = name in inputs or name.split(".", 1)[-1] in inputs
            assert checked != given, name


CORRUPTIONS = [
    ("preprocess", "pixels1", 1e-3),
    ("preprocess", "mask_grid", 1),
    ("vq", "codes", 1),
    ("vq", "z_quantised", 0.01),
    ("vq", "rect.decoded", 0.01),
    ("prompts", "sequence", 1),
    ("prompts", "attention_allowed", 1),
    ("vanilla", "hidden_states", 0.01),
    ("vanilla", "image_logits_cfg_w3", 0.01),
    ("t2i", "a.logits_uncond", 0.01),
    ("t2i", "a.mask_len", 1),
    ("t2i", "b.mask_ratio", 1e-4),
    ("t2i", "b.confidence", 0.01),
    ("t2i", "c.tokens", 1),
    ("t2i", "inpaint.masked_after", 1),
    ("t2i", "greedy.sampled_ids", 1),
    ("db", "keys", 1),
    ("db", "full.distances", 1),
    ("db", "distribution.unique", 0.01),
    ("daid_proposed", "ignore.retr_codes", 1),
    ("daid_proposed", "ignore.p_merged", 0.01),
    ("daid_proposed", "zero.retr_distances", 1),
    ("daid_proposed", "zero.active", 1),
]


@needs_oracle
@pytest.mark.parametrize(("group", "name", "amount"), CORRUPTIONS)
def test_one_wrong_number_fails_its_check_and_no_other(copy, group, name, amount):
    for other in SHOW_O_GROUPS.keys() - {group, *SHOW_O_FILES[group]}:
        (copy / f"{other}.safetensors").unlink()
    path = copy / f"{group}.safetensors"
    tensors = load_file(path)
    flat = tensors[name].flatten()
    flat[-1] += amount if flat[-1] < 0.5 or amount < 1 else -amount
    save_file(tensors | {name: flat.view(tensors[name].shape)}, path)
    failed = [check.name for check in verify_folder(copy) if check.status == "FAILED"]
    assert failed == [f"showo-{group}.{name}"]


@needs_oracle
def test_too_many_levels_apart_fail_though_none_is_far(copy):
    path = copy / "vq.safetensors"
    tensors = load_file(path)
    levels = tensors["image_u8"]
    levels[:, :20] = (levels[:, :20].int() - 1).clamp(min=0).byte()
    save_file(tensors | {"image_u8": levels}, path)
    checks = checks_of(copy)
    assert checks["showo-vq.image_u8"].status == "ok"
    assert checks["showo-vq.image_u8 (share of other levels)"].status == "FAILED"


@needs_oracle
def test_a_wrong_weight_fails(copy):
    path = copy / "showo_model.safetensors"
    tensors = load_file(path)
    name = "showo.model.layers.1.self_attn.k_layernorm.bias"
    save_file(tensors | {name: tensors[name] + 0.1}, path)
    checks = checks_of(copy)
    assert checks["showo-vanilla.logits_full"].status == "FAILED"
    assert checks["showo-vq.decoded"].status == "ok"


@needs_oracle
def test_constants_come_from_the_language_models_config(copy):
    path = copy / "llm_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 50.0}))
    assert checks_of(copy)["showo-vanilla.logits_full"].status == "FAILED"


@needs_oracle
def test_a_group_without_its_file_or_model_is_skipped_and_said(copy, capsys):
    (copy / "showo_model.safetensors").unlink()
    (copy / "prompts.safetensors").unlink()
    assert main(["verify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "skipped  showo-vanilla.*  (there is no showo_model.safetensors)" in out
    assert "skipped  showo-prompts.*  (there is no prompts.safetensors)" in out
    assert "ok       showo-preprocess.pixels0" in out


@needs_oracle
@pytest.mark.parametrize("missing", ["image_size", "special_ids"])
def test_settings_that_lack_something_are_refused(copy, missing):
    settings = json.loads((copy / "settings.json").read_text())
    del settings[missing]
    (copy / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=rf"settings\.json lacks {missing}"):
        list(verify_folder(copy))


@needs_oracle
def test_a_grid_that_is_not_the_models_is_refused(copy):
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps(settings | {"grid_width": 12}))
    (copy / "preprocess.safetensors").unlink()
    (copy / "prompts.safetensors").unlink()
    with pytest.raises(InputError, match="draws a 6x6 grid, not 12x12"):
        list(verify_folder(copy))
