"""A folder of golden numbers in the layout that `verify` reads, made with slow code."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import save_file

from arrag_engine.checkpoints import describe_config
from arrag_engine.grid import NEIGHBORHOODS
from arrag_engine.index import SourceTable, create_index
from arrag_engine.models.janus.layouts import official_name
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.settings import RetrievalOptions, Sampling
from tests import slow
from tests.tiny import PAD_ID, PROMPT, blender_tensors, official_tensors

OFFSETS = NEIGHBORHOODS["causal-4"]
CFG = 3.0
SETTINGS = {
    "a": {"retrieval_ratio": 0.6, "retrieval_temperature": 1.0, "temperature": 1.0},
    "second": {"retrieval_ratio": 0.9, "retrieval_temperature": 0.3, "temperature": 0.7},
}


FAID = {"retrieved_k": 4, "temperature": 0.9, "blender_layers": [0, 1], "num_hop": [2]}
LAYERS, HOPS, K = (0, 1), (2,), 4
CHECKED = [0, 1, 6, 9, 15]
"""Positions whose blender outputs are written down whole."""


def write_fixture(folder, model, images=3, top_k=40):
    """Write every group; `top_k` may be more than the database holds."""
    side = model.config.grid.width
    settings = {
        "grid_width": side,
        "pad_id": PAD_ID,
        "cfg_weight": CFG,
        "probs_temperatures": [1.0, 0.5],
        "daid": {"top_k": top_k, "settings": SETTINGS},
    }
    index = random_database(model, images)
    path = torch.randint(0, model.config.vq.codebook_size, (side * side,)).tolist()
    groups = {
        "vq": vq_values(model),
        "vanilla": vanilla_values(model, path),
        "db": db_values(index),
        "daid": daid_values(model, index, path, top_k),
    }
    blenders = blender_tensors(model.config.llama.hidden_size, LAYERS, HOPS)
    groups["faid"] = faid_values(model, blenders, index, path)
    settings["faid"] = FAID
    settings["faid_train_grad_l2_norms"] = gradient_norms(model, blenders, groups["faid"])
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(describe_config(model.config)))
    extra = {"language_model.lm_head.weight": torch.zeros(40, 32)}
    save_file(official_tensors(model) | extra, folder / "model.safetensors")
    save_file(blenders, folder / "faid_additional.safetensors")
    for name, values in groups.items():
        tensors = {key: as_stored(value) for key, value in values.items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def as_stored(value):
    tensor = torch.as_tensor(np.asarray(value)).clone(memory_format=torch.contiguous_format)
    if tensor.dtype == torch.uint8:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.int()


def random_database(model, images):
    rng, grid = np.random.default_rng(4), model.config.grid
    codebook = model.vq.quantize.rows(torch.device("cpu")).numpy()
    tokens = rng.integers(0, len(codebook), (images, grid.size)).astype(np.uint16)
    vectors = rng.normal(size=(images, grid.size, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return create_index(grid, tokens, vectors, codebook, SourceTable.unknown(images))


def pixels(decoded):
    """uint8 [H, W, 3] of [1, 3, H, W] in [-1, 1], truncated."""
    return np.clip((decoded[0].permute(1, 2, 0).numpy() + 1) / 2 * 255, 0, 255).astype(np.uint8)


def decoded(model, tokens):
    side = model.config.grid.width
    return model.vq.decode(torch.tensor(tokens).view(1, side, side))


def vq_values(model):
    vq, side = model.vq, model.config.image_size[0]
    images = torch.rand(2, 3, side, side) * 2 - 1
    z = vq.quant_conv(vq.encoder(images))
    unit = z / z.norm(dim=1, keepdim=True)
    rows = vq.quantize.embedding.weight
    rows = rows / rows.norm(dim=1, keepdim=True)
    codes = (unit.permute(0, 2, 3, 1)[..., None, :] - rows).pow(2).sum(-1).argmin(-1)
    quantised = rows[codes].permute(0, 3, 1, 2)
    return {
        "images": images,
        "z_pre_quant": z,
        "z_normed": unit.permute(0, 2, 3, 1),
        "indices": codes.flatten(1),
        "z_quantised": quantised,
        "decoded": vq.decoder(vq.post_quant_conv(quantised)),
    }


def vanilla_values(model, path):
    blank = [PROMPT[0], *[PAD_ID] * (len(PROMPT) - 2), PROMPT[-1]]
    ids = torch.tensor([PROMPT, blank])
    image = model.embed_codes(torch.tensor(path[:-1]))
    x = torch.cat((model.embed_text(ids), image.expand(2, -1, -1)), dim=1)
    hidden = model.llama(x)[:, len(PROMPT) - 1 :]
    cond, uncond = model.gen_head(hidden)
    guided = uncond + CFG * (cond - uncond)
    greedy = slow.picture(model, PROMPT, PAD_ID, Sampling(CFG, temperature=0), 0)
    return {
        "prompt_ids_cond": ids[0],
        "prompt_ids_uncond": ids[1],
        "prompt_embeds": model.embed_text(ids),
        "forced_tokens": path,
        "image_embeds": image,
        "hidden_cond": hidden[0],
        "hidden_uncond": hidden[1],
        "logits_cond": cond,
        "logits_uncond": uncond,
        "logits_cfg": guided,
        "probs_t1.0": guided.softmax(-1),
        "probs_t0.5": (guided / 0.5).softmax(-1),
        "forced_decoded": decoded(model, path),
        "forced_image_u8": pixels(decoded(model, path)),
        "greedy.tokens": greedy,
        "greedy.image_u8": pixels(decoded(model, greedy)),
    }


def db_values(index):
    patches = slow.patches(index, OFFSETS)
    return {
        "grid.vectors": index.vectors,
        "grid.indices": index.tokens.astype(np.int32),
        "grid.keys": np.array([key for key, *_ in patches]),
        "grid.values": [code for _, code, *_ in patches],
    }


def daid_values(model, index, path, top_k):
    n, vocab = len(path), len(index.codebook)
    patches = slow.patches(index, OFFSETS)
    keys = np.array([key for key, *_ in patches])
    values = {
        "query": np.zeros((n, keys.shape[1])),
        "neighbour_ids": np.full((n, top_k), -1),
        "distances": np.full((n, top_k), -1.0),
        "codes": np.full((n, top_k), -1),
        "unique_codes": np.full((n, top_k), -1),
        "unique_distances": np.full((n, top_k), -1.0),
        "unique_count": np.zeros(n, int),
        "active": [slow.is_active(index.grid, OFFSETS, "skip", i) for i in range(n)],
    }
    for i in np.flatnonzero(values["active"]):
        query = slow.key(index.codebook[path], index.grid, OFFSETS, i)
        distances = ((keys - query) ** 2).sum(1)
        order = np.argsort(distances)[:top_k]
        k = len(order)
        codes = [patches[j][1] for j in order]
        first = [j for j in range(k) if codes[j] not in codes[:j]]
        values["query"][i] = query
        values["neighbour_ids"][i, :k] = order
        values["distances"][i, :k] = distances[order]
        values["codes"][i, :k] = codes
        values["unique_codes"][i, : len(first)] = np.array(codes)[first]
        values["unique_distances"][i, : len(first)] = distances[order][first]
        values["unique_count"][i] = len(first)
    out = {f"a.forced.{name}": value for name, value in values.items()}
    for name, s in SETTINGS.items():
        out |= setting_values(model, index, path, top_k, name, s, vocab)
    return out


def setting_values(model, index, path, top_k, name, s, vocab):
    sampling = Sampling(CFG, s["temperature"])
    options = RetrievalOptions(s["retrieval_ratio"], s["retrieval_temperature"], top_k)

    def parts(tokens, i):
        p = slow.p_model(model, PROMPT, PAD_ID, tokens, sampling)
        q = slow.p_retrieved(index, index.codebook, OFFSETS, tokens, i, options)
        merged = p if q is None else (1 - options.weight) * p + options.weight * q
        return p, np.zeros(vocab) if q is None else q, merged

    forced = [parts(path[:i], i) for i in range(len(path))]
    greedy: list[int] = []
    for i in range(len(path)):
        greedy.append(int(parts(greedy, i)[2].argmax()))
    active = [slow.is_active(index.grid, OFFSETS, "skip", i) for i in range(len(path))]
    return {
        f"{name}.forced.p_model": np.array([p for p, _, _ in forced]),
        f"{name}.forced.p_retr": np.array([q for _, q, _ in forced]),
        f"{name}.forced.p_merged": np.array([m for _, _, m in forced]),
        f"{name}.greedy.tokens": greedy,
        f"{name}.greedy.active": active,
        f"{name}.greedy.image_u8": pixels(decoded(model, greedy)),
    }


def faid_values(model, blenders, index, path):
    n, patches = len(path), slow.patches(index, OFFSETS)
    keys = np.array([key for key, *_ in patches])
    values = {
        "forced_tokens": path,
        "active": [slow.is_active(index.grid, OFFSETS, "skip", i) for i in range(n)],
        "query": np.zeros((n, keys.shape[1])),
        "codes": np.full((n, K), -1),
        "distances": np.full((n, K), -1.0),
        "blender_out_selected_pos": CHECKED,
    }
    for i in np.flatnonzero(values["active"]):
        query = slow.key(index.codebook[path], index.grid, OFFSETS, i)
        distances = ((keys - query) ** 2).sum(1)
        order = np.argsort(distances)[:K]
        values["query"][i], values["distances"][i] = query, distances[order]
        values["codes"][i] = [patches[j][1] for j in order]
    sampling = Sampling(CFG, temperature=0)
    parts = (blenders, LAYERS, HOPS)
    greedy = slow.faid_picture(model, parts, PROMPT, PAD_ID, sampling, 0, index, OFFSETS, K)
    values |= {"greedy.tokens": greedy, "greedy.image_u8": pixels(decoded(model, greedy))}
    forward = (model, blenders, path, values["codes"], values["active"])
    return values | drawing_values(*forward) | training_values(*forward) | unit_values(*forward)


def passed(model, blenders, path, codes, active, semantics="step", prompt=PROMPT, strength=1.0):
    return slow.faid_run(
        model, blenders, LAYERS, HOPS, prompt, path, np.asarray(codes).tolist(), active, semantics,
        strength,
    )  # fmt: skip


def drawing_values(model, blenders, path, codes, active):
    blank = [PROMPT[0], *[PAD_ID] * (len(PROMPT) - 2), PROMPT[-1]]
    given = (model, blenders, path[:-1], codes, active)
    first = len(PROMPT) - 1
    step, zeroed = passed(*given), passed(*given, "stepzero")
    uncond = passed(*given, prompt=blank, strength=0.0)
    silent = passed(*given[:3], np.full_like(codes, -1), [False] * len(path))
    guided = uncond.logits[first:] + CFG * (step.logits[first:] - uncond.logits[first:])
    return {
        "step.logits_cond": step.logits[first:],
        "step.logits_uncond": uncond.logits[first:],
        "step.logits_cfg": guided,
        "step.probs": (guided / FAID["temperature"]).softmax(-1),
        "step.blender_out_cond_mean": step.features.mean(2),
        "step.blender_out_cond_selected": step.features[CHECKED],
        "step.blender_hidden_history": torch.stack((step.hidden, uncond.hidden), dim=1),
        "stepzero.logits_cond": zeroed.logits[first:],
        "stepzero.logits_uncond": uncond.logits[first:],
        "noretrieval.logits_cond": silent.logits[first:],
    }


def loss_of(logits, tokens, first):
    answers = logits[first : first + len(tokens)]
    return torch.nn.functional.cross_entropy(answers, torch.tensor(tokens))


def training_values(model, blenders, path, codes, active):
    first = len(PROMPT) - 1
    train = passed(model, blenders, path, codes, active, "stepzero")
    long = [PROMPT[0], 8, 9, *PROMPT[1:]]
    back, other = path[::-1], np.asarray(codes)[::-1].copy()
    other[7, 2:] = -1
    two = passed(model, blenders, back, other, active, "stepzero", long)
    logits = [train.logits[first:-1], two.logits[len(long) - 1 : -1]]
    losses = [loss_of(train.logits, path, first), loss_of(two.logits, back, len(long) - 1)]
    return {
        "train.logits": train.logits,
        "train.loss": losses[0],
        "train.blender_out_mean": train.features.mean(2),
        "train.blender_out_selected": train.features[CHECKED],
        "train2.text_ids": [[PAD_ID, PAD_ID, *PROMPT], long],
        "train2.text_mask": [[0, 0, *[1] * len(PROMPT)], [1] * len(long)],
        "train2.image_tokens": [path, back],
        "train2.codes": np.stack((codes, other)),
        "train2.logits": torch.stack(logits),
        "train2.loss": (losses[0] + losses[1]) / 2,
    }


def unit_values(model, blenders, path, codes, active):
    n, hidden, last = len(path), model.config.llama.hidden_size, LAYERS[-1]
    drawn, centres = torch.randn(n, hidden), torch.randn(n, K, hidden)

    def f(i, heard=1.0):
        grid = model.config.grid
        return slow.blender_output(blenders, last, HOPS, drawn, grid, i, centres[i] * heard)

    return {
        "blender_unit.hidden": drawn[None],
        "blender_unit.retrieved": centres[None],
        "blender_unit.train_out": torch.stack([f(i, float(active[i])) for i in range(n)]),
        "blender_unit.infer_pos": CHECKED,
        "blender_unit.infer_out": torch.stack([f(i) for i in CHECKED]),
    }


def gradient_norms(model, blenders, values):
    """Of the loss `train.loss`, through the slow code."""
    with torch.inference_mode(False), torch.enable_grad():
        copy = JanusPro(model.config)
        copy.load_state_dict({n: t.clone() for n, t in model.state_dict().items()})
        leaves = {n: t.clone().requires_grad_() for n, t in blenders.items()}
        path = values["forced_tokens"]
        run = passed(copy, leaves, path, values["codes"], values["active"], "stepzero")
        loss_of(run.logits, path, len(PROMPT) - 1).backward()
    parameters = {official_name(n): p for n, p in copy.named_parameters()} | leaves
    return {n: float(p.grad.norm()) for n, p in parameters.items() if p.grad is not None}
