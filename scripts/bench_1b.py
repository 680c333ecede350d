"""Memory of loading and time of a decoding step at Janus-Pro-1B's shapes, against transformers.

    python scripts/bench_1b.py [--folder DIR] [--tokens 64] [--rounds 5] [--threads 2]

Writes a random bf16 checkpoint of the real shapes once (4 GB, with an understanding branch that
must not be read), loads it, then draws the same few tokens by turns with both programs on the same
weights. Prints medians and the ratio of each pair; nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arrag_engine.checkpoints import describe_config, load_checkpoint
from arrag_engine.decode import Recipe, draw_pictures
from arrag_engine.grid import Grid
from arrag_engine.models.janus.layouts import official_name
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig
from arrag_engine.models.ops import pack_linears
from arrag_engine.settings import Sampling
from scripts.launch_comfyui import declare_missing_operators

JANUS_1B = JanusConfig(LlamaConfig(102400, 2048, 5632, 24, 16, 16), VQConfig(), Grid(24, 24))
UNUSED = {
    "language_model.lm_head.weight": (102400, 2048),
    "vision_model.vision_tower.blocks.weight": (300, 1024, 1024),  # as many weights as SigLIP-L
    "aligner.layers.0.weight": (2048, 1024),
    "aligner.layers.2.weight": (2048, 2048),
}
PROMPT = [100000, *range(5, 25), 100003]
PAD = 100002
BLANK = unconditional(PROMPT, PAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be written")
    parser.add_argument("--tokens", type=int, default=64, help="a square number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    folder = a.folder or Path(tempfile.gettempdir()) / "arrag-janus-1b"
    if not (folder / "config.json").is_file():
        write_checkpoint(folder)
    model = measure_loading(folder)
    compare_steps(model, load_checkpoint(folder, torch.bfloat16).janus, a.tokens, a.rounds)


def write_checkpoint(folder: Path) -> None:
    """A random checkpoint in deepseek-ai's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {official_name(n): t.shape for n, t in JanusPro(JANUS_1B).state_dict().items()}
    torch.manual_seed(0)
    tensors = {
        name: (torch.randn(shape) * 0.02).to(torch.bfloat16)
        for name, shape in {**shapes, **UNUSED}.items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(describe_config(JANUS_1B)))


class PeakMemory:
    """The most anonymous memory of this process within a `with` block, in bytes above its start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.bytes = max(self.peak, anonymous_bytes()) - self.start


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this measurement needs Linux")


def measure_loading(folder: Path) -> JanusPro:
    started = time.perf_counter()
    with PeakMemory() as memory:
        model = load_checkpoint(folder, torch.bfloat16).janus
        pack_linears(model)
    seconds = time.perf_counter() - started
    used = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    file = os.path.getsize(folder / "model.safetensors")
    print(f"file {file / 2**30:.2f} GiB, weights used {used / 2**30:.2f} GiB, {seconds:.1f} s")
    print(f"peak anonymous memory while loading: {memory.bytes / used:.3f} x the weights used")
    return model


def compare_steps(model: JanusPro, plain: JanusPro, tokens: int, rounds: int) -> None:
    """Draw by turns with `model` and with transformers on the weights of `plain`."""
    side = round(tokens**0.5)
    for one in (model, plain):
        one.config = replace(one.config, grid=Grid(side, side))
    theirs = transformers_model(plain)
    generation = {"generation_mode": "image", "do_sample": True, "guidance_scale": 5.0}
    ids = torch.tensor([PROMPT])
    ours_ms, theirs_ms = [], []
    for _ in range(rounds + 1):
        ours_ms.append(our_step_ms(model))
        started = time.perf_counter()
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), **generation)
        theirs_ms.append((time.perf_counter() - started) * 1000 / (side * side))
    ours_ms, theirs_ms = ours_ms[1:], theirs_ms[1:]  # the first round warms up
    ratios = [a / b for a, b in zip(ours_ms, theirs_ms, strict=True)]
    print(f"one step, guidance, batch 1, bf16, {torch.get_num_threads()} threads, {rounds} rounds:")
    for name, values in (("ours ms", ours_ms), ("transformers ms", theirs_ms), ("ratio", ratios)):
        low, high = min(values), max(values)
        print(f"  {name:<16} median {statistics.median(values):.3f}  min {low:.3f}  max {high:.3f}")


def our_step_ms(model: JanusPro) -> float:
    """Milliseconds per token of a whole drawing, prompt included, as on the other side."""
    started = time.perf_counter()
    draw_pictures(model, Recipe(PROMPT, BLANK, Sampling()), [0])
    return (time.perf_counter() - started) * 1000 / model.config.grid.size


def transformers_model(model: JanusPro, prompt: Sequence[int] = PROMPT, pad: int = PAD) -> Any:
    """transformers' Janus on the same weight tensors; its vision tower stays without storage.

    Args:
        prompt: Tells the ids of its first and last token.
    """
    declare_missing_operators()  # transformers imports torchvision
    # Not by a statement: half a type check's time would be spent on transformers.
    transformers: Any = importlib.import_module("transformers")

    llama, vq = model.config.llama, model.config.vq
    config = transformers.JanusConfig(
        text_config={
            "vocab_size": llama.vocab_size,
            "hidden_size": llama.hidden_size,
            "intermediate_size": llama.intermediate_size,
            "num_hidden_layers": llama.num_layers,
            "num_attention_heads": llama.num_heads,
            "num_key_value_heads": llama.num_kv_heads,
            "max_position_embeddings": llama.max_positions,
        },
        vision_config={
            "image_size": 16 * model.config.grid.width,
            "patch_size": 16,
            "num_image_tokens": model.config.grid.size,
        },
        vq_config={
            "embed_dim": vq.codebook_dim,
            "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels,
            "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.channel_multiplier),
            "num_res_blocks": vq.num_res_blocks,
            "num_patches": model.config.grid.width,
            "projection_dim": llama.hidden_size,
            "image_token_embed_dim": llama.hidden_size,
        },
    )
    with torch.device("meta"):
        theirs = transformers.JanusForConditionalGeneration(config)
    state = {
        transformers_name(name): tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    missing = theirs.load_state_dict(state, strict=False, assign=True).missing_keys
    strangers = [
        k for k in missing if not k.startswith(("model.vision", "model.aligner", "lm_head"))
    ]
    assert not strangers, strangers
    for module in theirs.modules():  # buffers that meta construction left empty
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config.text_config)
            frequencies = fresh.inv_freq.to(model.device)
            module.inv_freq, module.original_inv_freq = frequencies, frequencies
    theirs.generation_config.generation_kwargs = {"boi_token_id": prompt[-1]}
    theirs.generation_config.bos_token_id = prompt[0]
    theirs.generation_config.pad_token_id = pad
    return theirs.eval()


def transformers_name(ours: str) -> str:
    """transformers' name of one of the engine's tensors."""
    rules = (
        ("llama.", "model.language_model."),
        ("gen_embed.", "model.generation_embeddings."),
        ("gen_aligner.layers.0.", "model.generation_aligner.fc1."),
        ("gen_aligner.layers.2.", "model.generation_aligner.hidden_layers.0."),
        ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
        ("gen_head.vision_head.", "model.generation_head.vision_head."),
    )
    for mine, other in rules:
        if ours.startswith(mine):
            return other + ours.removeprefix(mine)
    name = ours.replace("vq.", "model.vqmodel.", 1)
    for part, other in (
        ("encoder.conv_blocks.", "encoder.down."),
        ("decoder.conv_blocks.", "decoder.up."),
    ):
        name = name.replace(part, other)
    if ".down." in name or ".up." in name:
        name = name.replace(".res.", ".block.")
    for i, other in enumerate(("block_1", "attn_1", "block_2")):
        name = name.replace(f".mid.{i}.", f".mid.{other}.")
    return name


if __name__ == "__main__":
    main()
