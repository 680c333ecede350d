"""Names and sizes: what the tensors of each checkpoint layout are called, and what they tell."""

from __future__ import annotations

import re
from typing import Any

from ...bounds import shown
from ...errors import InputError
from ...grid import Grid
from ...settings import HOPS, AdapterConfig
from ..layouts import Rule, Shapes, count_parts, renamed, section
from ..llama import LlamaConfig
from .model import JanusConfig
from .vq import VQConfig

DEFAULT_GRID = Grid(24, 24)
MIN_PROMPT = 2
"""Ids of the shortest prompt: one that begins the text and one that begins the picture."""

OURS_FROM_OFFICIAL: tuple[Rule, ...] = (
    (r"^language_model\.model\.", "llama."),
    (r"^gen_vision_model\.", "vq."),
)
OFFICIAL_FROM_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (
        r"^model\.generation_aligner\.hidden_layers\.(\d{1,9})\.",
        lambda match: f"gen_aligner.layers.{2 * int(match[1]) + 2}.",  # a GELU before each
    ),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", "gen_head.vision_head."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^(gen_vision_model\.encoder\.)down\.", r"\1conv_blocks."),
    (r"^(gen_vision_model\.decoder\.)up\.", r"\1conv_blocks."),
    (r"^(gen_vision_model\.\w+\.conv_blocks\.\d+\.)block\.", r"\1res."),
    (r"^(gen_vision_model\.\w+\.mid\.)block_1\.", r"\g<1>0."),
    (r"^(gen_vision_model\.\w+\.mid\.)attn_1\.", r"\g<1>1."),
    (r"^(gen_vision_model\.\w+\.mid\.)block_2\.", r"\g<1>2."),
)
UNUSED = re.compile(
    r"^(vision_model|aligner|language_model\.lm_head|lm_head|model\.vision_model|model\.aligner)\."
    r"|quantize\.codebook_used$|\.rotary_emb\.inv_freq$"
)
"""The understanding branch and the language head: drawing never needs them."""
BLENDER = re.compile(r"\.(blender|retrieval_layernorm)\.")
HALF_TRAINED = re.compile(r"lora_[AB]|^base_model\.model\.")


def our_names(names: list[str]) -> dict[str, str]:
    """Map the names of the drawing weights in a file to the engine's own; blenders stay out.

    Raises:
        InputError: A trainer's half-way checkpoint, or not a Janus-Pro checkpoint.
    """
    if any(HALF_TRAINED.search(name) for name in names):
        raise InputError(
            "this is an unfinished checkpoint of a trainer (it has lora or base_model keys); "
            "merge its LoRA weights first, or use the released checkpoint"
        )
    wanted = [name for name in names if not (UNUSED.search(name) or BLENDER.search(name))]
    mapped = _renamed(wanted, names)
    if not any(ours.startswith("llama.layers.") for ours in mapped.values()):
        raise InputError(
            "this is not a Janus-Pro checkpoint (no language_model.model.layers keys among "
            f"{len(names)} tensors); choose the weights of a Janus-Pro model"
        )
    return mapped


def _renamed(wanted: list[str], names: list[str]) -> dict[str, str]:
    """The engine's names of some of a file's tensors; what layout it is, all of them tell."""
    rules = OURS_FROM_OFFICIAL
    if "model.language_model.embed_tokens.weight" in names:
        rules = OFFICIAL_FROM_TRANSFORMERS + rules
    return {name: renamed(name, rules) for name in wanted}


def blender_names(names: list[str]) -> dict[str, str]:
    """Map the names of the FAiD blenders in a file to those in `FaidAdapter`."""
    mapped = _renamed([name for name in names if BLENDER.search(name)], names)
    return {name: ours.removeprefix("llama.") for name, ours in mapped.items()}


def read_blenders(shapes: Shapes) -> AdapterConfig | None:
    """Which layers have blenders and of what hops, from the names in `FaidAdapter`; None = none.

    Raises:
        InputError: Hops that no blender has.
    """
    layers = {int(m[1]) for name in shapes if (m := re.match(r"layers\.(\d{1,9})\.", name))}
    found = {m[1] for name in shapes if (m := re.search(r"\.blender\.conv(\d+)\.", name))}
    hops = tuple(sorted(int(digits) for digits in found if len(digits) == 1))
    if not shapes:
        return None
    if hops not in HOPS:
        raise InputError(
            f"the checkpoint's blenders have hops {list(hops)}, only [1], [2] and [1, 2] exist; "
            "download it again"
        )
    return AdapterConfig(tuple(sorted(layers)), hops)


def blender_config(config: AdapterConfig, num_layers: int) -> dict[str, Any]:
    """What the official config says of these blenders: the stride of their layers, and the hops.

    Nothing where they do not stand a stride apart from layer 0 on: it has no words for that.
    """
    layers = config.blender_layers
    stride = layers[1] if len(layers) > 1 else num_layers
    if layers != tuple(range(0, num_layers, stride)):
        return {}
    return {"num_SmoothPatchBlender": stride, "num_hop": list(config.hops)}


def official_name(ours: str) -> str:
    """The official checkpoint name of one of the engine's tensors."""
    name = re.sub(r"^(llama\.|(?=layers\.))", "language_model.model.", ours)
    return re.sub(r"^vq\.", "gen_vision_model.", name)


def read_config(shapes: Shapes, config: dict[str, Any], grid: Grid | None) -> JanusConfig:
    """Sizes of the model: the tensors' own, the config's where tensors cannot tell.

    Args:
        shapes: Shapes by the engine's names.
        config: The checkpoint's config.json (deepseek's or transformers'), or our header's.
        grid: Known from elsewhere; else the transformers config's, else 24x24.

    Raises:
        InputError: A tensor is missing or sizes contradict each other.
    """
    try:
        llama = _llama_config(shapes, section(config, "language_config", "text_config"))
        janus = JanusConfig(
            llama,
            _vq_config(shapes),
            grid or _config_grid(config),
            _aligner_widths(shapes),
            shapes["gen_head.output_mlp_projector.weight"][0],
        )
        if janus.grid.size + MIN_PROMPT > llama.max_positions:
            raise ValueError(f"{llama.max_positions} positions for a {janus.grid} picture")
        return janus
    except (KeyError, IndexError) as error:
        raise InputError(f"the checkpoint lacks the tensor {error}; download it again") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"the checkpoint's sizes do not fit together: {error}") from error


def _llama_config(shapes: Shapes, text: dict[str, Any]) -> LlamaConfig:
    vocab, hidden = shapes["llama.embed_tokens.weight"]
    mlp, _ = shapes["llama.layers.0.mlp.gate_proj.weight"]
    query_rows, _ = shapes["llama.layers.0.self_attn.q_proj.weight"]
    kv_rows, _ = shapes["llama.layers.0.self_attn.k_proj.weight"]
    heads = int(text.get("num_attention_heads") or query_rows // 128)
    if heads < 1 or query_rows % (2 * heads) or kv_rows % (query_rows // heads):
        raise ValueError(f"{heads} heads for {query_rows} query rows, {kv_rows} key rows")
    head_dim = query_rows // heads
    kv_heads = kv_rows // head_dim
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads share {kv_heads} key heads")
    if text.get("rope_scaling"):
        raise ValueError(f"rope_scaling {shown(text['rope_scaling'])} is not supported")
    rope = section(text, "rope_parameters") or text  # newer transformers keep it apart
    theta = float(rope.get("rope_theta") or 10000.0)
    eps = float(text.get("rms_norm_eps") or 1e-6)
    positions = int(text.get("max_position_embeddings") or 16384)
    if not (0 < theta < 1e30 and 0 <= eps < 1 and positions > 0):
        raise ValueError(f"rope_theta {theta}, rms_norm_eps {eps}, {positions} positions")
    return LlamaConfig(
        vocab,
        hidden,
        mlp,
        count_parts(shapes, r"llama\.layers\.(\d+)\."),
        heads,
        kv_heads,
        theta,
        eps,
        positions,
        head_dim,
    )


def _aligner_widths(shapes: Shapes) -> tuple[int, ...]:
    """Widths from the image-token embedding through the aligner's linear layers."""
    pattern = r"gen_aligner\.layers\.(\d+)\.weight"
    layers = sorted(int(m[1]) for name in shapes if (m := re.match(pattern, name)))
    if layers != list(range(0, 2 * len(layers), 2)) or not layers:
        raise ValueError(f"the aligner has the layers {layers}, expected 0, 2, 4, …")
    weights = [shapes[f"gen_aligner.layers.{i}.weight"] for i in layers]
    return (weights[0][1], *(rows for rows, _ in weights))


def _vq_config(shapes: Shapes) -> VQConfig:
    base = shapes["vq.encoder.conv_in.weight"][0]
    widths, mirrored = _level_widths(shapes, "encoder"), _level_widths(shapes, "decoder")[::-1]
    if base % 32 or any(w % base for w in widths) or any(w % 32 for w in mirrored):
        raise ValueError(f"VQ channels {base}, {widths} and {mirrored}")
    if len(widths) != len(mirrored):
        raise ValueError(
            f"{len(widths)} levels of the VQ's encoder, {len(mirrored)} of its decoder"
        )
    codes, dim = shapes["vq.quantize.embedding.weight"]
    return VQConfig(
        base,
        tuple(w // base for w in widths),
        count_parts(shapes, r"vq\.encoder\.conv_blocks\.0\.res\.(\d+)\."),
        shapes["vq.quant_conv.weight"][1],
        codes,
        dim,
        tuple(mirrored),
        count_parts(shapes, r"vq\.decoder\.conv_blocks\.0\.res\.(\d+)\."),
        shapes["vq.post_quant_conv.weight"][0],
    )


def _level_widths(shapes: Shapes, half: str) -> list[int]:
    """Channels of the levels of the VQ's encoder or decoder, in the order of their numbers."""
    levels = count_parts(shapes, rf"vq\.{half}\.conv_blocks\.(\d+)\.")
    return [shapes[f"vq.{half}.conv_blocks.{i}.res.0.conv2.weight"][0] for i in range(levels)]


def _config_grid(config: dict[str, Any]) -> Grid:
    """The grid of a transformers config; deepseek's vision_config is another network's."""
    vision = section(config, "vision_config")
    if "text_config" not in config:
        return DEFAULT_GRID
    side = int(vision.get("image_size", 384)) // int(vision.get("patch_size", 16))
    if not 1 <= side <= 256:
        raise ValueError(f"a grid of {side}x{side}")
    return Grid(side, side)
