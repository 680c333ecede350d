"""Drawing models from and to files: deepseek-ai, transformers, released FAiD, our single file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import ops as default_ops
from .bounds import shown
from .errors import InputError
from .faid import AdapterConfig, FaidAdapter, assemble
from .files import GGUF, atomic_write, check_kind, read_text
from .grid import Grid
from .janus import JanusConfig, JanusPro
from .layouts import (
    Shapes,
    blender_config,
    blender_names,
    official_name,
    our_names,
    read_blenders,
    read_config,
    section,
)
from .prompt import MAX_TOKENS, PromptEncoder
from .settings import DTYPE_CHOICES, Sampling
from .weights import Weights, find_weight_files, open_weights, read_json

FORMAT = "arrag-model"
VERSION = "1"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

SAMPLING_NAMES = {"guidance_scale": "cfg", "temperature": "temperature"}
"""What a config's `generation_config` calls the settings that suit the model."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what belongs to it."""

    model: JanusPro
    path: Path
    config: dict[str, Any]
    """The checkpoint's own config.json."""
    tokenizer: str | Path
    """tokenizer.json as text, or where it should lie."""
    fingerprint: str
    """Of the weights, whatever their dtype and layout: what an adapter knows its base by."""
    faid: FaidAdapter | None = None
    """The blenders that came with the weights."""

    @property
    def name(self) -> str:
        """What a person calls the model."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def sampling(self) -> Sampling:
        """Guidance and temperature that suit the model, as its config tells; else the defaults.

        Raises:
            InputError: The config tells something that is no such number.
        """
        told = section(self.config, "generation_config")
        numbers = {ours: told[name] for name, ours in SAMPLING_NAMES.items() if name in told}
        if wrong := {k: v for k, v in numbers.items() if type(v) not in (int, float)}:
            raise InputError(
                f"the config of {self.name} recommends {shown(wrong)}, which are not numbers; "
                "set guidance and temperature yourself"
            )
        return Sampling(**numbers)

    @cached_property
    def prompt_encoder(self) -> PromptEncoder:
        """Opened when text is first encoded: fixtures come without a tokenizer."""
        config = self.model.config
        room = config.llama.max_positions - config.grid.size
        text = read_tokenizer(self.tokenizer)
        return PromptEncoder(text, min(MAX_TOKENS, room), config.llama.vocab_size)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The decoder's dtype. `auto`: bfloat16 where the device computes in it, else float16 on CUDA
    and float32 on a CPU.

    On a CPU without bfloat16 instructions float32 is as fast (measured), at twice the memory.
    """
    if name not in DTYPE_CHOICES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(DTYPE_CHOICES)}")
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and not _cpu_computes_bf16():
        return torch.float32
    return torch.bfloat16


def _cpu_computes_bf16() -> bool:
    """Whether the processor has bfloat16 instructions; older PyTorch cannot tell, then no."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return known is not None and known()


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose names, sizes and shapes are checked and whose tensors are still unread."""

    weights: Weights
    names: dict[str, str]
    """From the file's tensor names to the engine's."""
    janus: JanusConfig
    config: dict[str, Any]
    tokenizer: str | Path
    blender_names: dict[str, str]
    """From the file's tensor names to those in `FaidAdapter`."""
    blenders: AdapterConfig | None


def open_checkpoint(path: Path, grid: Grid | None = None) -> Opened:
    """Find out what a folder or file holds, and check that it is a whole model.

    Raises:
        InputError: Missing, truncated, wrong-shaped or unknown files; names what to do.
    """
    weights, config, tokenizer, own_grid = _find(Path(path))
    names = our_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in names.items()}
    janus = read_config(shapes, config, grid or own_grid)
    check_shapes(JanusPro, (janus,), shapes, path)
    blenders = blender_names(list(weights.shapes))
    shapes = {ours: weights.shapes[name] for name, ours in blenders.items()}
    faid = read_blenders(shapes)
    if faid is not None:
        check_shapes(FaidAdapter, (janus, faid), shapes, path)
        _compare_config(faid, janus, config, path)
    return Opened(weights, names, janus, config, tokenizer, blenders, faid)


def _compare_config(
    faid: AdapterConfig, janus: JanusConfig, config: dict[str, Any], path: Path
) -> None:
    """Say so when the config tells of other blenders than the tensors, which count."""
    told = section(config, "language_config")
    meant = blender_config(faid, janus.llama.num_layers) | {"num_hop": list(faid.hops)}
    if any(name in told and told[name] != value for name, value in meant.items()):
        log.warning(
            "%s: the config describes other FAiD blenders than the tensors; layers %s with hops "
            "%s, from the tensors, are used",
            path,
            list(faid.blender_layers),
            list(faid.hops),
        )


def load_checkpoint(
    path: Path,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
) -> Checkpoint:
    """Load a drawing model from a folder as downloaded or from one file.

    Args:
        dtype: What the decoder computes in; the VQ tokenizer is float32 always.
        ops: Layers to build from.
        progress: Called with (tensors read, tensors in all), then with (blenders folded, in all).
        fold_on: The device that folds blenders that come with the weights.

    Raises:
        InputError: As `open_checkpoint`.
    """
    opened = open_checkpoint(path)
    model = read_model(opened, dtype, ops, progress)
    return Checkpoint(
        model,
        Path(path),
        opened.config,
        opened.tokenizer,
        read_fingerprint(opened),
        read_faid(opened, dtype, ops, progress, fold_on),
    )


def read_model(
    opened: Opened,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
) -> JanusPro:
    """The model of an opened checkpoint.

    Tensors are read and, where need be, converted one at a time. The understanding branch is never
    read.
    """
    state: dict[str, Tensor] = {}
    for done, (name, ours) in enumerate(opened.names.items(), start=1):
        wanted = torch.float32 if ours.startswith("vq.") else dtype
        state[ours] = opened.weights.read(name, dtype=wanted)
        if progress is not None:
            progress(done, len(opened.names))
    with torch.device("meta"):
        model = JanusPro(opened.janus, ops).eval()
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def read_faid(
    opened: Opened,
    dtype: torch.dtype,
    ops: Any = default_ops,
    progress: Callable[[int, int], None] | None = None,
    fold_on: torch.device | None = None,
) -> FaidAdapter | None:
    """The blenders of an opened checkpoint, folded for drawing; None when it has none."""
    if opened.blenders is None:
        return None
    files = {ours: name for name, ours in opened.blender_names.items()}

    def read(name: str) -> Tensor:
        return opened.weights.read(files[name])

    return assemble(opened.janus, opened.blenders, read, dtype, ops, progress, fold_on)


FINGERPRINT_ROWS = 4


def read_fingerprint(opened: Opened) -> str:
    """A hash of some weights rounded to bfloat16, so that other dtypes of them have it too.

    It covers the norms, the image-token embedding, and a few rows of every layer's q and v and of
    the prediction head, which are what an adapter or fine-tuning changes.
    """
    digest = hashlib.sha256()
    files = {ours: name for name, ours in opened.names.items()}
    for ours in sorted(files):
        part = None
        if ours == "gen_embed.weight" or ("norm" in ours and ours.startswith("llama.")):
            part = opened.weights.read(files[ours])
        elif ours.endswith(("q_proj.weight", "v_proj.weight", "vision_head.weight")):
            part = opened.weights.read(files[ours], FINGERPRINT_ROWS)
        if part is not None:
            digest.update(ours.encode())
            digest.update(part.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def convert_checkpoint(
    source: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write any loadable checkpoint as one self-contained file, in the dtypes it is stored in.

    Raises:
        InputError: The source does not load, has no tokenizer, or `out` cannot be written.
    """
    opened = open_checkpoint(source)
    tokenizer = read_tokenizer(opened.tokenizer)
    targets = {name: official_name(ours) for name, ours in opened.names.items()}
    targets |= {name: f"language_model.model.{ours}" for name, ours in opened.blender_names.items()}
    tensors: dict[str, Tensor] = {}
    for done, (name, target) in enumerate(targets.items(), start=1):
        tensors[target] = opened.weights.read(name)
        if progress is not None:
            progress(done, len(targets))
    write_checkpoint(out, tensors, opened.janus.grid, opened.config, tokenizer)


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], grid: Grid, config: dict[str, Any], tokenizer_json: str
) -> None:
    """Write one `.safetensors`: tensors by official name, grid, config and tokenizer in its header.

    Raises:
        InputError: The file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "grid": str(grid),
        "config": json.dumps(config),
        "tokenizer": tokenizer_json,
    }
    with atomic_write(path) as temporary:
        save_file(_apart(tensors), temporary, header)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares its memory with another: a `.bin` file may tie
    weights, which `.safetensors` refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def describe_config(config: JanusConfig, sampling: Sampling | None = None) -> dict[str, Any]:
    """A config.json in the official shape for sizes that tensors cannot tell, and the sampling
    that suits the model, if any is given."""
    llama = config.llama
    suits = {name: getattr(sampling, ours) for name, ours in SAMPLING_NAMES.items() if sampling}
    return {
        "generation_config": suits,
        "model_type": "multi_modality",
        "language_config": {
            "model_type": "llama",
            "vocab_size": llama.vocab_size,
            "hidden_size": llama.hidden_size,
            "intermediate_size": llama.intermediate_size,
            "num_hidden_layers": llama.num_layers,
            "num_attention_heads": llama.num_heads,
            "num_key_value_heads": llama.num_kv_heads,
            "rope_theta": llama.rope_theta,
            "rms_norm_eps": llama.rms_norm_eps,
            "max_position_embeddings": llama.max_positions,
        },
    }


def read_tokenizer(tokenizer: str | Path) -> str:
    """tokenizer.json as text.

    Raises:
        InputError: The file is missing or no text.
    """
    if isinstance(tokenizer, str):
        return tokenizer
    if not tokenizer.is_file():
        raise InputError(
            f"{tokenizer.name} is missing; put the model's tokenizer.json into {tokenizer.parent}"
        )
    try:
        with tokenizer.open("rb") as file:
            check_kind(tokenizer, file)
        return read_text(tokenizer)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{tokenizer} is not readable text; download it again") from error


def _find(path: Path) -> tuple[Weights, dict[str, Any], str | Path, Grid | None]:
    """(weights, config, tokenizer, grid from our own header) of a folder or file."""
    if not path.exists():
        raise InputError(f"there is no model at {path}")
    if path.suffix == ".gguf":
        raise InputError(f"{path} is {GGUF}")
    if path.is_file() and path.suffix not in (".safetensors", ".bin"):
        raise InputError(f"{path} is neither a folder nor a .safetensors or .bin file")
    folder = path if path.is_dir() else path.parent
    weights = open_weights(find_weight_files(path) if path.is_dir() else [path])
    if weights.metadata.get("format") == FORMAT:
        return _own_header(path, weights)
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    if not config.is_file():
        missing = [file.name for file in (config, tokenizer) if not file.is_file()]
        raise InputError(
            f"{' and '.join(missing)} missing: put the model's {' and '.join(missing)} into "
            f"{folder} beside the weights"
        )
    return weights, read_json(config), tokenizer, None


def _own_header(
    path: Path, weights: Weights
) -> tuple[Weights, dict[str, Any], str | Path, Grid | None]:
    header = weights.metadata
    if header.get("version") != VERSION:
        raise InputError(
            f"{path} has model version {header.get('version')!r}, this program reads {VERSION}; "
            "update the program or convert the model again"
        )
    try:
        config = json.loads(header["config"])
        grid = Grid.parse(header["grid"])
        if not isinstance(config, dict):
            raise TypeError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the header of {path} is damaged; convert the model again") from error
    return weights, config, header.get("tokenizer", ""), grid


def check_shapes(
    kind: Callable[..., nn.Module],
    sizes: tuple[Any, ...],
    found: Shapes,
    path: Path,
    name: str = "Janus-Pro",
) -> None:
    """Compare the tensors of a file with those that a module of these sizes has.

    Raises:
        InputError: Missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        module = kind(*sizes)
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    if missing := sorted(wanted.keys() - found.keys()):
        raise InputError(
            f"{path} lacks {len(missing)} tensors, the first is {official_name(missing[0])}; "
            "download all of its files"
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise InputError(
            f"{path} has {len(unknown)} tensors that no {name} has, the first is "
            f"{official_name(unknown[0])}; choose the weights of a {name}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise InputError(
                f"{path}: {official_name(name)} has shape {list(found[name])}, expected "
                f"{list(shape)}; download it again"
            )
