"""What `check_gpu` and `bench_gpu` share: the card's name, timing, random models on a device."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arrag_engine.decode import KeptPasses
from arrag_engine.decode.graphs import GraphRecorder
from arrag_engine.faid import AdapterConfig, FaidAdapter, FoldedBlender
from arrag_engine.grid import Grid
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.models.llama import LlamaConfig
from arrag_engine.models.showo.model import ShowO, ShowOConfig
from arrag_engine.models.showo.phi import PhiConfig
from arrag_engine.models.showo.vq import VQConfig as ShowOVQConfig

JANUS_1B = JanusConfig(LlamaConfig(102400, 2048, 5632, 24, 16, 16), VQConfig(), Grid(24, 24))
JANUS_7B = JanusConfig(LlamaConfig(102400, 4096, 11008, 30, 32, 32), VQConfig(), Grid(24, 24))
TINY = JanusConfig(
    LlamaConfig(40, 32, 48, 2, 4, 4, max_positions=512),
    VQConfig(32, (1, 1), 1, 32, 64, 8),
    Grid(6, 6),
)
PHI = PhiConfig(58498, 2048, 8192, 24, 32, 32, 64, 32)
SHOWO_256 = ShowOConfig(PHI, ShowOVQConfig(), Grid(16, 16))
SHOWO_512 = ShowOConfig(PHI, ShowOVQConfig(), Grid(32, 32))
TINY_SHOWO = ShowOConfig(
    PhiConfig(12 + 10 + 64 + 1, 32, 48, 2, 4, 4, 8, 4),
    ShowOVQConfig(32, (32, 64), (1, 2), (32, 64), (2, 1), 6),
    Grid(6, 6),
    9,
)
LOUDNESS = 0.02
"""Standard deviation of random weights, as Llama's are before training."""


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: str) -> torch.device:
    """A device with its number, as tensors there name it."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def version(package: str) -> str:
    """Of an installed package; empty where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def driver() -> str:
    """Of the NVIDIA card; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.split("\n")[0].strip()


def describe(device: torch.device) -> dict[str, str]:
    """The machine that figures come from, and the versions of what computed them."""
    on_gpu = device.type == "cuda"
    return {
        "card": torch.cuda.get_device_name(device) if on_gpu else f"none ({device})",
        "driver": driver() if on_gpu else "",
        "cuda": torch.version.cuda or "",
        "allocator": torch.cuda.get_allocator_backend() if on_gpu else "",
        "torch": torch.__version__,
        "faiss": version("faiss-cpu") or version("faiss-gpu"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def synchronise(device: torch.device) -> None:
    """Wait for what was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    """How long a call takes, the device's part included."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def save(path: Path, what: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def seeded(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def randomise(module: nn.Module, seed: int = 0, scale: float = LOUDNESS) -> None:
    """Draw all parameters where they lie: weights around 0, those of norms around 1."""
    generator: torch.Generator | None = None
    for name, parameter in module.named_parameters():
        generator = generator or seeded(parameter.device, seed)
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.normal_(mean, scale, generator=generator)


def random_model(config: JanusConfig, dtype: torch.dtype, device: torch.device) -> JanusPro:
    """A random model made on the device: the decoder in `dtype`, the VQ in float32."""
    model = model_without_storage(config, dtype).to_empty(device=device)
    randomise(model)
    return model


def model_without_storage(config: JanusConfig, dtype: torch.dtype) -> JanusPro:
    with torch.device("meta"):
        model = JanusPro(config).eval().requires_grad_(False)
    return to_dtype(model, dtype)


def to_dtype(model: JanusPro, dtype: torch.dtype) -> JanusPro:
    """The model with its decoder in `dtype`, as checkpoints load it."""
    for part in (model.llama, model.gen_embed, model.gen_aligner, model.gen_head):
        part.to(dtype)
    return model


def random_showo(config: ShowOConfig, dtype: torch.dtype, device: torch.device) -> ShowO:
    """A random model made on the device: the decoder in `dtype`, the picture tokenizer in
    float32."""
    with torch.device("meta"):
        model = ShowO(config).eval().requires_grad_(False)
    for part in model.drawing_parts:
        part.to(dtype)
    model.to_empty(device=device)
    randomise(model)
    return model


def random_adapter(model: JanusPro, config: AdapterConfig, scale: float = LOUDNESS) -> FaidAdapter:
    """A random adapter made where the model lies, with folded blenders."""
    with torch.device("meta"):
        adapter = FaidAdapter(model.config, config).eval()
        for layer in adapter.by_layer.values():
            if layer.blender is not None:
                layer.blender = FoldedBlender(model.hidden_size, config.hops)
    adapter.to(model.dtype).to_empty(device=model.device)
    if model.device.type != "meta":
        randomise(adapter, 1, scale)
    return adapter.requires_grad_(False)


def decoder_bytes(model: JanusPro) -> int:
    """Bytes of the weights that every pass reads: all but the text embedding, the image-token
    embedding and the VQ."""
    parts: tuple[nn.Module, ...] = (model.llama.layers, model.llama.norm)
    parts += (model.gen_aligner, model.gen_head)
    return sum(nbytes(p) for part in parts for p in part.parameters())


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def kept(capture: bool = True) -> KeptPasses:
    """Room for passes of fixed shape, which a CPU runs only if it is given room for them.

    Args:
        capture: Record them as CUDA graphs where they can be.
    """
    return KeptPasses(GraphRecorder() if capture else None)
