"""Names and sizes of Show-o's checkpoints: what their tensors are called, and what they tell."""

from __future__ import annotations

import math
import re
from typing import Any

from ...bounds import shown
from ...errors import InputError
from ...grid import MAX_SIDE, Grid
from ..layouts import Rule, Shapes, count_parts, renamed, section
from .model import MAX_TEXT, ShowOConfig, Vocabulary
from .phi import PhiConfig
from .vq import VQConfig

TOKENIZER = "magvitv2."
"""Before the official names of the picture tokenizer, which has a checkpoint of its own."""
OURS_FROM_OFFICIAL: tuple[Rule, ...] = (
    (r"^showo\.model\.", "phi."),
    (r"^showo\.lm_head\.", "head."),
    (r"^magvitv2\.", "vq."),
)
OFFICIAL_FROM_OURS: tuple[Rule, ...] = (
    (r"^phi\.", "showo.model."),
    (r"^head\.", "showo.lm_head."),
    (r"^vq\.", TOKENIZER),
)
UNUSED = re.compile(r"^mm_projector\.|^magvitv2\.quantize\.|\.rotary_emb\.inv_freq$")
"""The understanding branch, and tables that follow from the number of bits."""
ACTIVATION = "gelu_new"
MAX_BITS = 16
"""Of a code: an index stores 16."""


def is_show_o(names: list[str]) -> bool:
    """Whether these are the tensors of a Show-o decoder."""
    return any(name.startswith("showo.") for name in names)


def is_picture_tokenizer(names: list[str]) -> bool:
    """Whether these are the tensors of its picture tokenizer alone."""
    return "encoder.quant_conv.weight" in names and "decoder.post_quant_conv.weight" in names


def our_names(names: list[str]) -> dict[str, str]:
    """Map the names of the drawing weights in a file to the engine's own."""
    wanted = (name for name in names if not UNUSED.search(name))
    return {name: renamed(name, OURS_FROM_OFFICIAL) for name in wanted}


def official_name(ours: str) -> str:
    """The official checkpoint name of one of the engine's tensors."""
    return renamed(ours, OFFICIAL_FROM_OURS)


def read_config(shapes: Shapes, config: dict[str, Any], grid: Grid | None) -> ShowOConfig:
    """Sizes of the model: the tensors' own, the config's where tensors cannot tell.

    Args:
        shapes: Shapes by the engine's names.
        config: The checkpoint's config.json.
        grid: Known from elsewhere; must be the config's.

    Raises:
        InputError: A tensor is missing, or sizes contradict each other.
    """
    try:
        vq = _vq_config(shapes)
        phi = _phi_config(shapes, section(config, "llm_config"))
        found = ShowOConfig(phi, vq, _grid(config, grid), _max_text(config))
        _check_vocabulary(found.vocabulary, config)
        if found.length > phi.max_positions:
            raise ValueError(f"{phi.max_positions} positions for {found.length} ids")
        return found
    except InputError:
        raise
    except (KeyError, IndexError) as error:
        raise InputError(f"the checkpoint lacks the tensor {error}; download it again") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"the checkpoint's sizes do not fit together: {error}") from error


def picture_rows(config: ShowOConfig, shapes: Shapes) -> tuple[dict[str, slice], Shapes]:
    """(the rows of a file's tensors that drawing needs, shapes with only these): the head's rows of
    text are never used.

    Raises:
        InputError: The head has another number of rows than the embedding.
    """
    first, cut = config.vocabulary.first_code, dict(shapes)
    codes = slice(first, first + config.vq.codebook_size)
    rows: dict[str, slice] = {"head.weight": codes, "head.bias": codes}
    for name in rows:
        if name in shapes:
            if shapes[name][:1] != (config.phi.vocab_size,):
                raise InputError(
                    f"{official_name(name)} has shape {list(shapes[name])} for "
                    f"{config.phi.vocab_size} ids; download it again"
                )
            cut[name] = (config.vq.codebook_size, *shapes[name][1:])
    return rows, cut


def _phi_config(shapes: Shapes, stated: dict[str, Any]) -> PhiConfig:
    """Phi-1.5's constants where the config states no others; Show-o's checkpoints state none."""
    attention = "phi.layers.0.self_attn."
    vocab, hidden = shapes["phi.embed_tokens.weight"]
    mlp, _ = shapes["phi.layers.0.mlp.fc1.weight"]
    (head_dim,) = shapes[f"{attention}q_layernorm.weight"]
    query_rows, _ = shapes[f"{attention}q_proj.weight"]
    key_rows, _ = shapes[f"{attention}k_proj.weight"]
    if not all((vocab, hidden, mlp, head_dim, query_rows, key_rows)):
        raise ValueError(f"{vocab} ids, widths {hidden} and {mlp}, heads of {head_dim}")
    if query_rows % head_dim or key_rows % head_dim or query_rows % key_rows:
        raise ValueError(f"heads of {head_dim} for {query_rows} query rows, {key_rows} key rows")
    share = float(stated.get("partial_rotary_factor") or 0.5)
    theta = float(stated.get("rope_theta") or 10000.0)
    eps = float(stated.get("layer_norm_eps") or 1e-5)
    positions = int(stated.get("max_position_embeddings") or 2048)
    if not (0 < share <= 1 and 0 < theta < 1e30 and 0 <= eps < 1 and positions > 0):
        raise ValueError(
            f"rotary share {share}, rope_theta {theta}, layer_norm_eps {eps}, {positions} positions"
        )
    if stated.get("hidden_act", ACTIVATION) != ACTIVATION or stated.get("rope_scaling"):
        told = shown({k: stated.get(k) for k in ("hidden_act", "rope_scaling")})
        raise ValueError(f"{told} is not supported")
    rotary = int(share * head_dim)
    if rotary < 2 or rotary % 2:
        raise ValueError(f"{rotary} rotary numbers of {head_dim}")
    return PhiConfig(
        vocab,
        hidden,
        mlp,
        count_parts(shapes, r"phi\.layers\.(\d+)\."),
        query_rows // head_dim,
        key_rows // head_dim,
        head_dim,
        rotary,
        theta,
        eps,
        positions,
    )


def _vq_config(shapes: Shapes) -> VQConfig:
    base = shapes["vq.encoder.conv_in.weight"][0]
    encoder, decoder = _levels(shapes, "encoder.down"), _levels(shapes, "decoder.up")
    bits = shapes["vq.encoder.quant_conv.weight"][0]
    widths = (base, *encoder[0], *decoder[0])
    if any(width % 32 or not width for width in widths):
        raise ValueError(f"VQ channels {base}, {encoder[0]} and {decoder[0]}")
    if len(encoder[0]) != len(decoder[0]):
        raise ValueError(
            f"{len(encoder[0])} levels of the VQ's encoder, {len(decoder[0])} of its decoder"
        )
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"codes of {bits} bits")
    return VQConfig(base, *encoder, *decoder, bits)


def _levels(shapes: Shapes, part: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, residual blocks) of the levels of the VQ's encoder or decoder, the one of full
    size first."""
    name = f"vq.{part}"
    levels = range(count_parts(shapes, rf"{re.escape(name)}\.(\d+)\."))
    widths = tuple(shapes[f"{name}.{i}.block.0.conv2.weight"][0] for i in levels)
    counts = (count_parts(shapes, rf"{re.escape(name)}\.{i}\.block\.(\d+)\.") for i in levels)
    return widths, tuple(counts)


def _grid(config: dict[str, Any], grid: Grid | None) -> Grid:
    """The grid that `num_vq_tokens` tells: no tensor does.

    Raises:
        InputError: It is missing, no square, or another grid is asked for.
    """
    told = config.get("num_vq_tokens")
    if type(told) is not int or told < 1 or math.isqrt(told) ** 2 != told:
        raise InputError(
            f"num_vq_tokens is {shown(told)} in the checkpoint's config, which should be the "
            "number of a picture's tokens, such as 256; download config.json again"
        )
    side = math.isqrt(told)
    if side > MAX_SIDE:
        raise ValueError(f"a grid of {side}x{side}")
    if grid is not None and grid != Grid(side, side):
        raise InputError(
            f"the checkpoint draws a {side}x{side} grid, not {grid}; use the weights that were "
            f"trained for {grid}"
        )
    return Grid(side, side)


def _max_text(config: dict[str, Any]) -> int:
    longest = int(config.get("max_text_len") or MAX_TEXT)
    if longest < 3:  # what begins and ends a caption, and a word
        raise ValueError(f"a text part of {longest}")
    return longest


def _check_vocabulary(found: Vocabulary, config: dict[str, Any]) -> None:
    """Compare where ids lie with what the config says of them.

    Raises:
        InputError: Decoder and picture tokenizer do not belong together.
    """
    told = config.get("codebook_size", found.codes)
    if told != found.codes:
        raise InputError(
            f"the picture tokenizer has {found.codes} codes, the decoder's config says "
            f"{shown(told)}; put the magvitv2 that belongs to the model beside it"
        )
    sizes = {
        "vocab_size": found.size,
        "llm_vocab_size": found.text,
        "mask_token_id": found.mask,
    }
    if wrong := {
        name: config[name] for name in sizes if config.get(name, sizes[name]) != sizes[name]
    }:
        raise ValueError(f"the config says {shown(wrong)}, the tensors {shown(sizes)}")
    if found.text < 1:
        raise ValueError(f"{found.size} ids for {found.codes} codes")
