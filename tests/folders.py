"""Model folders as they are downloaded."""

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

from arrag_engine.checkpoints import describe_config
from tests.tiny import blender_tensors, official_tensors, tiny_tokenizer

UNDERSTANDING = {
    "vision_model.vision_tower.norm.weight": torch.zeros(5),
    "aligner.layers.0.weight": torch.zeros(5, 5),
    "language_model.lm_head.weight": torch.zeros(40, 32),
    "gen_vision_model.quantize.codebook_used": torch.zeros(65536),
}
BLENDER = blender_tensors(32, layers=(0,))
VISION = {"vision_config": {"image_size": 12, "patch_size": 2}}


def long(config):
    """With room for 576 tokens of picture."""
    return replace(config, llama=replace(config.llama, max_positions=1024))


def write_config(folder, model, **more):
    (folder / "config.json").write_text(json.dumps(describe_config(model.config) | more))
    (folder / "tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")


def as_safetensors(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def as_bin(folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin")


def halves(tensors):
    names = sorted(tensors)
    return [{n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}]


def as_sharded_bin(folder, tensors):
    weight_map = {}
    for i, part in enumerate(halves(tensors), start=1):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_sharded_safetensors(folder, tensors):
    for i, part in enumerate(halves(tensors), start=1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors")


WRITERS = [as_safetensors, as_bin, as_sharded_bin, as_sharded_safetensors]


def deepseek_folder(folder, model, write=as_safetensors, more=UNDERSTANDING):
    write_config(folder, model, vision_config={"params": {"image_size": 384}, "patch_size": 16})
    write(folder, official_tensors(model) | more)
    return folder
