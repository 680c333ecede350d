"""Passes that are kept beside ComfyUI's memory management, in a process with its modules."""

import json
import subprocess
import sys

import pytest

from scripts.comfyui import ROOT

BEGIN = f"""
import sys
sys.argv = ["main.py", "--cpu"]
import importlib.util, types
import torch
sys.path.append({str(ROOT)!r})
from scripts.launch_comfyui import declare_missing_operators

operators = declare_missing_operators()
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, comfy.model_patcher, comfy.ops, comfy.utils
from comfy.cli_args import LatentPreviewMethod, args

pack = types.ModuleType("pack")
pack.__path__ = [{str(ROOT)!r}]
sys.modules["pack"] = pack
nodes = types.ModuleType("pack.nodes")
nodes.__path__ = [{str(ROOT / "nodes")!r}]
sys.modules["pack.nodes"] = nodes
from pack.nodes.layers import plain_layers
from pack.nodes.memory import ManagedModel, manage
from pack.nodes.preview import every_of
from pack.arrag_engine.decode import GraphRecorder, KeptPasses

def kept_passes():
    kept = KeptPasses(GraphRecorder())
    kept._kept.append(object())
    return kept
"""

PLAIN = """
layers = torch.nn.Sequential(
    comfy.ops.manual_cast.Linear(4, 3), comfy.ops.manual_cast.RMSNorm(3, eps=1e-6)
)
for parameter in layers.parameters():
    parameter.data = torch.rand_like(parameter)
x = torch.rand(2, 4)
with torch.inference_mode():
    wanted = layers(x)
    comfy.model_management.interrupt_current_processing(True)
    with plain_layers(layers):
        assert torch.equal(layers(x), wanted)
        comfy.model_management.interrupt_current_processing(True)
    try:
        layers(x)
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise SystemExit("ComfyUI's layers no longer ask for interrupts: is the swap still needed?")
    assert torch.equal(layers(x), wanted)
assert not any("forward" in vars(layer) for layer in layers)
"""

FREED = """
module = torch.nn.Linear(4, 3)
for move in ("detach", "partially_unload"):
    kept = kept_passes()
    patcher = manage(module, kept)
    assert len(kept) == 1 and kept.recorder is not None
    patcher.detach() if move == "detach" else patcher.partially_unload(torch.device("cpu"), 10)
    assert len(kept) == 0, move
kept = kept_passes()
patcher = manage(module, kept)
for _ in range(3):  # a model that is loaded already is detached from itself, and stays
    comfy.model_management.load_models_gpu([patcher], memory_required=100)
assert len(kept) == 1
comfy.model_management.unload_all_models()
assert len(kept) == 0
"""

DYNAMIC = """
class ModelPatcherDynamic(comfy.model_patcher.ModelPatcher):
    pass

comfy.model_patcher.CoreModelPatcher = ModelPatcherDynamic
kept = kept_passes()
manage(torch.nn.Linear(4, 3), kept)
assert kept.recorder is None
"""

PHASES = """
import copy
from pack.arrag_engine.checkpoints import Checkpoint
from pack.arrag_engine.grid import Grid
from pack.arrag_engine.models.janus.model import JanusConfig, JanusPro
from pack.arrag_engine.models.janus.vq import VQConfig
from pack.arrag_engine.models.llama import LlamaConfig

model = JanusPro(JanusConfig(
    LlamaConfig(64, 64, 64, 2, 2, 2), VQConfig(32, (1, 1), 1, 32, 64, 8), Grid(4, 4)
))
managed = ManagedModel(Checkpoint(model, None, {}, "", ""))
decoder, vq = managed.patcher.model_size(), managed.vq_patcher.model_size()
whole = sum(p.nbytes for p in model.parameters())
assert decoder + vq == whole and min(decoder, vq) > 0
management = comfy.model_management
names = {id(managed.patcher): "decoder", id(managed.vq_patcher): "vq"}
asked = []

def load(patchers, memory_required):
    asked.append((*(names[id(p)] for p in patchers), memory_required))

management.load_models_gpu = load
managed.device = torch.device("cuda")
working, picture = 1000, model.picture_bytes()

def free(amount):
    management.get_free_memory = lambda device: amount
    asked.clear()
    managed.passes._kept.append(object())

free(whole + working + picture)
assert managed.to_draw(working, False, True)
assert asked == [("decoder", "vq", working + picture)] and len(managed.passes) == 1
free(whole + working + picture)
assert not managed.to_draw(working, False, False)
assert asked == [("decoder", working)]
free(whole + working + picture - 1)
assert not managed.to_draw(working, False, True), "no room for previews"
assert asked == [("decoder", working)] and len(managed.passes) == 0

free(0)
managed.to_decode()
assert asked == [("vq", picture)], "what encodes and decodes loads the VQ alone"
model.model_loaded_weight_memory = 0
managed.patcher.model.model_loaded_weight_memory = decoder
free(vq + picture)
managed.to_decode()
assert asked == [("vq", "decoder", picture)] and len(managed.passes) >= 1
free(vq + picture - 1)
managed.to_decode()
assert asked == [("vq", picture)] and len(managed.passes) == 0
"""

SHOWO = """
from pack.arrag_engine.checkpoints import Checkpoint
from pack.arrag_engine.grid import Grid
from pack.arrag_engine.models import ops
from pack.arrag_engine.models.showo.model import ShowO, ShowOConfig
from pack.arrag_engine.models.showo.phi import PhiConfig
from pack.arrag_engine.models.showo.vq import VQConfig
from pack.nodes.layers import CastingOps

vq = VQConfig(32, (32, 64), (1, 1), (32, 64), (1, 1), 6)
config = ShowOConfig(PhiConfig(99, 32, 48, 2, 4, 4, 8, 4, max_positions=256), vq, Grid(4, 4), 9)
ids, codes = torch.tensor([[29, 1, 2, 1]]), torch.randint(0, 64, (1, 16))
known = torch.arange(16)[None] < 5
torch.manual_seed(0)
for storage in (None, torch.int8):
    own, theirs = (ShowO(config, kind, storage).eval() for kind in (ops, CastingOps))
    for parameter in own.parameters():
        random = parameter.data
        random.normal_(0, 0.3) if random.is_floating_point() else random.random_(-3, 4)
    theirs.load_state_dict(own.state_dict())
    managed = ManagedModel(Checkpoint(theirs, None, {}, "", ""))
    assert managed.patcher.model_size() > 0 and managed.vq_patcher.model_size() > 0
    weights = [*theirs.parameters(), *theirs.buffers()]
    whole = sum(w.nbytes for w in weights)
    assert managed.patcher.model_size() + managed.vq_patcher.model_size() == whole
    with torch.inference_mode():
        managed.to_draw(1000, False, True)
        wanted, found = (m.masked_logits(m.open(ids), codes, known) for m in (own, theirs))
        assert torch.allclose(wanted, found, 1e-4, 1e-4), storage
        wanted, found = (m.vq.decode(codes.view(1, 4, 4)) for m in (own, theirs))
        assert torch.allclose(wanted, found, atol=1e-5)
"""

STEPS = """
import numpy as np
from types import SimpleNamespace
from pack.nodes import preview

shown = []

class Bar:
    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, preview):
        shown.append((value, preview is not None))

comfy.utils.ProgressBar = Bar
grid = SimpleNamespace(width=3, height=4, size=12)
decode = lambda codes: codes[:, None].repeat(1, 3, 2, 2).float()
model = SimpleNamespace(
    config=SimpleNamespace(grid=grid, image_size=(8, 6)), vq=SimpleNamespace(decode=decode)
)
cases = {0: [0, 0, 0, 0, 0], 1: [1, 1, 1, 1, 1], 2: [0, 1, 0, 1, 1], 3: [0, 0, 1, 0, 1]}
for every, wanted in cases.items():
    shown.clear()
    one = preview.StepPreview(model, torch.device("cpu"), every)
    for decided in (1, 3, 5, 8, 12):
        one(decided, np.zeros((2, 12), int))
    assert [int(seen) for _, seen in shown] == wanted
    assert [value for value, _ in shown] == [1, 3, 5, 8, 12]
"""

QUIET = """
assert every_of(2) == 2
sys.argv.append("--preview-method")
assert every_of(2) == 0
args.preview_method = LatentPreviewMethod.TAESD
assert every_of(2) == 2
"""

SHOWN = """
import numpy as np
from types import SimpleNamespace
from pack.nodes import preview

shown, decoded = [], []

class Bar:
    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, preview):
        if preview is not None:
            shown.append((value, np.asarray(preview[1])))

def decode(codes):
    assert (codes >= 0).all()
    decoded.append(codes.shape[1])
    values = codes.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None] / 127.5 - 1
    return values.float().expand(-1, 3, -1, -1)

comfy.utils.ProgressBar = Bar
grid = SimpleNamespace(width=3, height=4, size=12)
model = SimpleNamespace(
    config=SimpleNamespace(grid=grid, image_size=(8, 6)), vq=SimpleNamespace(decode=decode)
)
undrawn = 0x30

def rows_of(picture):
    return (picture[::2, 0, 0] != undrawn).sum()

def show(every, steps):
    shown.clear(), decoded.clear()
    one = preview.RowPreview(model, torch.device("cpu"), every)
    for decided, filled in steps:
        tokens = np.full((len(filled), 12), -1)
        for row, count in zip(tokens, filled):
            row[:count] = 200
        one(decided, tokens)
    return [[rows_of(part) for part in np.split(sheet[:8], len(steps[0][1]), axis=1)]
            for _, sheet in shown]

one_by_one = [((a + b) // 2, (a, b)) for a, b in
              [*((n, 0) for n in range(1, 13)), *((12, n) for n in range(1, 13))]]
assert show(2, one_by_one) == [[2, 0], [4, 0], [4, 2], [4, 4]]
assert decoded == [2, 4, 2, 4], "a finished picture is decoded once"
assert [value for value, _ in shown] == [3, 6, 9, 12]
together = [(n, (n, n)) for n in range(1, 13)]
assert show(2, together) == [[2, 2], [4, 4]]
assert show(3, together) == [[3, 3], [4, 4]]
assert show(256, together) == [[4, 4]]
assert show(0, together) == []
assert show(1, [(3, (3, 8)), (6, (6, 9)), (12, (12, 12))]) == [[1, 2], [2, 3], [4, 4]]
"""

SCRIPTS = {
    "recordings see plain layers": PLAIN,
    "moving weights frees what is kept": FREED,
    "dynamic memory is never recorded": DYNAMIC,
    "the device holds what a phase needs": PHASES,
    "Show-o consists of ComfyUI's layers too": SHOWO,
    "each picture grows and finished ones stay": SHOWN,
    "a preview after so many steps": STEPS,
    "previews are switched off by ComfyUI's flag alone": QUIET,
}

ALL = """
import json, traceback

changed = (comfy.model_management, comfy.model_patcher, comfy.ops, comfy.utils)
ended = {}
for name, script in json.loads(sys.stdin.read()).items():
    before = [dict(vars(module)) for module in changed]
    words, preview_method = list(sys.argv), args.preview_method
    try:
        exec(compile(script, name, "exec"), dict(globals()))
        ended[name] = "fine"
    except BaseException:
        ended[name] = traceback.format_exc()
    for module, was in zip(changed, before):
        vars(module).update(was)
    sys.argv[:], args.preview_method = words, preview_method
    comfy.model_management.unload_all_models()
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(comfyui):
    """How each script ended. One process runs them all: it takes seconds to start."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + ALL],
        cwd=comfyui,
        input=json.dumps(SCRIPTS),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_in_a_process_of_comfyui(ended, name):
    assert ended[name] == "fine"
