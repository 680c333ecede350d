"""Weights of 8 bits in ComfyUI: its casting layers, wholly and partly loaded; the loader node."""

import subprocess
import sys

import pytest

from scripts.comfyui import ROOT
from tests.models.test_packed import WIDE
from tests.tiny import tiny_model, write_tiny

SCRIPT = """
import importlib, sys, types
from pathlib import Path
comfyui, root, file = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [comfyui, root]
from scripts.launch_comfyui import declare_missing_operators
declare_missing_operators()
import comfy.options
comfy.options.enable_args_parsing()
for name, folder in (("pack", root), ("pack.nodes", root + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
import torch
memory = importlib.import_module("pack.nodes.memory")
layers = importlib.import_module("pack.nodes.layers")
checkpoints = importlib.import_module("pack.arrag_engine.checkpoints")
packed = importlib.import_module("pack.arrag_engine.models.packed")
cpu = torch.device("cpu")
for name in ("int8", "fp8"):
    how = {"storage": checkpoints.resolve_storage(name)}
    plain = checkpoints.load_checkpoint(Path(file), torch.float32, **how).model
    model = checkpoints.load_checkpoint(Path(file), torch.float32, layers.CastingOps, **how).model
    layer = model.llama.layers[0].mlp.up_proj
    assert isinstance(layer, layers.CastingPackedLinear), type(layer)
    x = torch.randn(2, 3, model.hidden_size)
    patcher = memory.manage(torch.nn.ModuleList(model.drawing_parts), memory.KeptPasses())
    sizes = [p.nbytes for part in model.drawing_parts for p in part.parameters()]
    assert patcher.model_size() == sum(sizes), "the embedding on the CPU is counted"
    with torch.inference_mode():
        expected = plain.logits(x)
        for load in ({"lowvram_model_memory": sum(sizes) // 2}, {"full_load": True}):
            patcher.load(cpu, **load)
            assert torch.allclose(model.logits(x), expected, atol=1e-3), (name, load)
            patcher.unpatch_model(cpu)
    codes = torch.arange(16).view(1, 4, 4)
    assert not isinstance(model.vq.decoder.conv_in, packed.OnHost)
    assert torch.equal(model.vq.decode(codes), plain.vq.decode(codes))
print("fine")
"""


def test_casting_layers_compute_what_the_engines_do(comfyui, tmp_path):
    file = write_tiny(tmp_path / "wide.safetensors", tiny_model(0, WIDE))
    command = [sys.executable, "-c", SCRIPT, str(comfyui), str(ROOT), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.endswith("fine\n"), result.stderr


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_the_loader_takes_it(client, workflow, dtype):
    result = client.run(workflow("baseline", ARRAG_LoadModel={"dtype": dtype}))
    assert result.ending == "execution_success", result.error
    assert result.images()


def test_the_choices_stand_at_the_end(object_info):
    spec = object_info["ARRAG_LoadModel"]["input"]["required"]["dtype"]
    options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    assert options == ["auto", "bf16", "fp16", "fp32", "int8", "fp8"]
