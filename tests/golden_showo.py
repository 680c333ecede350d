"""A folder of Show-o's golden numbers in the layout that `verify` reads, made with slow code."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from arrag_engine.grid import NEIGHBORHOODS
from tests.golden import as_stored
from tests.models.slow_showo import slow_logits, slow_share, slow_states
from tests.tiny_showo import END, config_json, official_showo

WORDS = [[2, 3], [], [END, 4], [2, 3, 4, 5, 6, 7, 8, 9]]
LARGEST = torch.finfo(torch.float32).max
T2I = {
    "line": {"prompts": [0], "mask_schedule": "linear", "timesteps": 5, "guidance_scale": 2.0},
    "root": {"prompts": [3, 2], "mask_schedule": "pow0.5", "timesteps": 4, "guidance_scale": 0.0},
    "bend": {
        **{"prompts": [1], "mask_schedule": "sigmoid", "timesteps": 4, "guidance_scale": 1.5},
        "mask_schedule_params": {"start": -2, "end": 4, "tau": 0.8},
    },
    "greedy": {
        **{"prompts": [0], "mask_schedule": "cosine", "timesteps": 3, "guidance_scale": 3.0},
        **{"greedy": True, "temperature": 0.0},
    },
    "paint": {
        **{"prompts": [2], "mask_schedule": "cosine", "timesteps": 4, "guidance_scale": 1.0},
        "inpaint": True,
    },
}
FOUND = {"top_k": 9, "retrieval_ratio": 0.6, "retrieval_temperature": 3.0}
DAID = {
    "leave": {**T2I["line"], **FOUND, "masked_neighbours": "ignore"},
    "count": {**T2I["root"], **FOUND, "masked_neighbours": "zero"},
}


def write_showo_fixture(folder, model):
    """Write every group."""
    c, v = model.config, model.config.vocabulary
    side = c.grid.width
    pixels = c.image_size[0]
    settings = {
        "grid_width": side,
        "image_size": pixels,
        "image_vocab": v.codes,
        "total_vocab": v.size,
        "mask_token_id": v.mask,
        "max_text_len": c.max_text,
        "special_ids": {"<|eot|>": END},
        "vq": {"rect_shape": [2, 3]},
        "vanilla": {"prompt": 0, "cfg_w": 3.0},
        "t2i": {n: {"temperature": 1.5} | s for n, s in T2I.items()},
        "daid_proposed": {n: {"temperature": 1.0} | s for n, s in DAID.items()},
    }
    drawer = Drawer(model)
    groups = {"preprocess": preprocess_values(pixels, side)}
    images = torch.stack([groups["preprocess"][f"pixels{i}"] for i in range(2)])
    groups["vq"] = vq_values(model, images)
    groups["prompts"] = prompt_values(model)
    known = torch.rand(c.grid.size, generator=drawer.generator) < 0.5
    groups["vanilla"] = vanilla_values(model, groups["vq"]["codes"][0], known)
    groups["t2i"] = drawer.group(settings["t2i"])
    groups["db"] = db_values(model, groups["vq"]["codes"], known)
    drawer.pictures = groups["db"]["big.codes"].flatten(1).numpy()
    groups["daid_proposed"] = drawer.group(settings["daid_proposed"])
    folder.mkdir(parents=True)
    config = config_json(c)
    (folder / "llm_config.json").write_text(json.dumps(config.pop("llm_config")))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, tensors in zip(("showo_model", "vq_model"), official_showo(model), strict=True):
        save_file(tensors, folder / f"{name}.safetensors")
    for name, values in groups.items():
        tensors = {key: as_stored(value) for key, value in values.items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def preprocess_values(side, width):
    rng, values = np.random.default_rng(0), {}
    for i, shape in enumerate([(31, 23, 3), (24, 45, 3)]):
        source = rng.integers(0, 256, shape, dtype=np.uint8)
        values |= {f"source{i}_u8": source, f"pixels{i}": squared(source, side, 3)}
    values["arrag_pixels1"] = squared(source, side, 2)
    mask = rng.integers(0, 256, (20, 33), dtype=np.uint8)
    values |= {"mask_source_u8": mask, "mask_pixels": (squared(mask, side, 3) + 1) / 2}
    return values


def squared(source, side, resample):
    """[channels, side, side] in [-1, 1]; resample 3 is Pillow's bicubic, 2 its bilinear."""
    height, width = source.shape[:2]
    short = min(height, width)
    size = tuple(int(side * n / short) for n in (width, height))
    array = np.asarray(Image.fromarray(source).resize(size, resample))
    top, left = (round((n - side) / 2) for n in array.shape[:2])
    part = array[top : top + side, left : left + side].reshape(side, side, -1)
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 255 * 2 - 1


def vq_values(model, images):
    z, bits = model.vq.encoder(images), model.config.vq.bits
    codes = sum((z[:, j] > 0).long() * 2 ** (bits - 1 - j) for j in range(bits)).flatten(1)
    side = model.grid.width
    decoded = model.vq.decode(codes.view(-1, side, side))
    levels = (((decoded + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    rectangle = torch.arange(6)[None]
    return {
        "z_pre_quant": z,
        "z_quantised": torch.where(z > 0, 1.0, -1.0),
        "codes": codes,
        "decoded": decoded,
        "image_u8": levels.numpy(),
        "rect.codes": rectangle,
        "rect.decoded": model.vq.decode(rectangle.view(1, 2, 3)),
    }


def padded(model, words):
    """The official ids of the text part."""
    v, slots = model.config.vocabulary, model.config.max_text + 1
    ids = list(words) if words and words[0] == END else [END, *words]
    ids = [v.special("t2i"), *ids, END]
    if len(ids) > slots:
        ids = [*ids[: slots - 1], END]
    return [v.special("pad")] * (slots - len(ids)) + ids


def sequence(model, prompt, tokens, known):
    v = model.config.vocabulary
    picture = [int(t) + v.first_code if k else v.mask for t, k in zip(tokens, known, strict=True)]
    return [*prompt, v.special("soi"), *picture, v.special("eoi")]


def prompt_values(model):
    nothing = [False] * model.grid.size
    rows = [sequence(model, padded(model, words), nothing, nothing) for words in WORDS]
    values = {f"text_ids.{i}": np.array(words, np.int64) for i, words in enumerate(WORDS)}
    return values | {"sequence": np.array(rows)}


def vanilla_values(model, codes, known):
    prompts = [padded(model, WORDS[0]), padded(model, [])]
    states = [slow_states(model, prompt, codes, known) for prompt in prompts]
    head = official_showo(model)[0]
    weight, bias = (head[f"showo.lm_head.{part}"] for part in ("weight", "bias"))
    logits = [torch.nn.functional.linear(one[-1], weight, bias) for one in states]
    first = model.config.vocabulary.first_code
    cond, uncond = (rows[len(prompts[0]) + 1 : -1, first:-1] for rows in logits)
    return {
        "input_ids": np.array([sequence(model, prompt, codes, known) for prompt in prompts]),
        "masked": ~known,
        "hidden_states": torch.stack([torch.stack(one) for one in states], dim=1),
        "logits_full": torch.stack(logits),
        "image_logits_cfg_w3": 4 * cond - 3 * uncond,
    }


def key_of(model, tokens, known, position):
    """The signs around a position, 0 where nothing is known."""
    side, bits = model.grid.width, model.config.vq.bits
    row, column = divmod(position, side)
    numbers = []
    for r, c in NEIGHBORHOODS["ring-8"]:
        inside = 0 <= row + r < side and 0 <= column + c < side
        at = (row + r) * side + column + c
        there = inside and known[at]
        digits = f"{int(tokens[at]):0{bits}b}" if there else ""
        numbers += [1.0 if d == "1" else -1.0 for d in digits] or [0.0] * bits
    return numbers


def keys_of(model, pictures):
    size = model.grid.size
    return np.array([key_of(model, t, [True] * size, i) for t in pictures for i in range(size)])


def db_values(model, codes, known):
    rng, size = np.random.default_rng(3), model.grid.size
    big = rng.integers(0, model.vocab, (7, size))
    keys, every = keys_of(model, big), [True] * size
    queries = {
        "full": np.array([key_of(model, codes[0], every, i) for i in range(size)]),
        "masked_zero": np.array([key_of(model, codes[0], known, i) for i in range(size)]),
    }
    side = model.grid.width
    values = {
        "keys": keys_of(model, codes),
        "values": codes.flatten(),
        "big.codes": torch.from_numpy(big).view(-1, side, side),
        "big.keys_count": [len(keys)],
        "distribution.distances": np.sort(rng.random(12).astype(np.float32) * 3),
        "distribution.codes": rng.integers(0, 6, 12),
    }
    for name, rows in queries.items():
        distances = ((rows[:, None] - keys) ** 2).sum(-1)
        values |= {f"query_{name}": rows, f"{name}.distances": np.sort(distances)[:, :11]}
    distances, found = values["distribution.distances"], values["distribution.codes"]
    plain, unique = np.zeros(model.vocab), np.zeros(model.vocab)
    for distance, code in zip(distances, found, strict=True):
        plain[code] += math.exp(-distance)
        unique[code] = unique[code] or math.exp(-distance)
    return values | {
        "distribution.plain": plain / plain.sum(),
        "distribution.unique": unique / unique.sum(),
    }


class Drawer:
    """The official loop, with noise of its own; `pictures` are what it retrieves from."""

    def __init__(self, model) -> None:
        self.model, self.generator = model, torch.Generator().manual_seed(11)
        self.pictures = None

    def uniform(self):
        return torch.rand(self.model.grid.size, generator=self.generator)

    def group(self, settings):
        values = {}
        for name, one in settings.items():
            drawn = [self.picture(one, WORDS[i]) for i in one["prompts"]]
            for key in drawn[0]:
                rows = [torch.as_tensor(np.array(picture[key])) for picture in drawn]
                alone = key in ("tokens", "given_image_tokens")
                values[f"{name}.{key}"] = torch.stack(rows, dim=0 if alone else 1)
        return values

    def picture(self, settings, words):
        model, size, v = self.model, self.model.grid.size, self.model.config.vocabulary
        greedy, w, steps = settings.get("greedy"), settings["guidance_scale"], settings["timesteps"]
        tokens, known, heat = [0] * size, [False] * size, settings["temperature"]
        out = {}
        if settings.get("inpaint"):
            tokens = torch.randint(model.vocab, (size,), generator=self.generator).tolist()
            known = (self.uniform() < 0.4).tolist()
            out["given_image_tokens"] = [
                token + v.first_code if k else v.mask
                for token, k in zip(tokens, known, strict=True)
            ]

        def add(**values):
            for key, value in values.items():
                out.setdefault(key, []).append(value)

        for step in range(steps):
            cond = slow_logits(model, padded(model, words), tokens, known)
            uncond = slow_logits(model, padded(model, []), tokens, known)
            p = torch.softmax((1 + w) * cond - w * uncond, dim=-1).double()
            if self.pictures is not None:
                p = self.merged(p, tokens, known, settings, add)
            u, keep = self.uniform(), self.uniform()
            draws = [int((p[i].cumsum(0) / p[i].sum() <= u[i]).sum()) for i in range(size)]
            draws = p.argmax(-1).tolist() if greedy else draws
            tokens = [t if k else d for t, k, d in zip(tokens, known, draws, strict=True)]
            chosen = [LARGEST if known[i] else float(p[i, tokens[i]]) for i in range(size)]
            heat *= 1 - (step + 1) / steps
            sure = [math.log(max(c, 1e-20)) for c in chosen]
            if not greedy:
                add(draw_uniform=u.numpy(), mask_uniform=keep.numpy())
                noise = [-math.log(-math.log(max(float(x), 1e-20))) for x in keep]
                sure = [s + heat * g for s, g in zip(sure, noise, strict=True)]
            count = math.floor(size * slow_share(settings, (step + 1) / steps))
            count = max(1, min(known.count(False) - 1, count))
            known = [s >= sorted(sure)[count] for s in sure]
            add(draws=draws, sampled_ids=tokens, selected_probs=chosen, mask_len=count)
            add(confidence=sure, masked_after=[not k for k in known])
        return out | {"tokens": tokens}

    def merged(self, p, tokens, known, settings, add):
        """The mixture with the nearest patches, ties by the lower number."""
        k, size = settings["top_k"], len(known)
        keys, values = keys_of(self.model, self.pictures), self.pictures.flatten()
        active, codes, distances = [], np.full((size, k), -1), np.full((size, k), -1.0)
        p = p.clone()
        for i in range(size):
            query = np.array(key_of(self.model, tokens, known, i))
            active.append(bool(query.any()) and not known[i])
            if not active[-1]:
                continue
            counted = (query != 0) | (settings["masked_neighbours"] == "zero")
            apart = ((keys - query) ** 2 * counted).sum(1)
            nearest = {}
            for distance, number in sorted(zip(apart, range(len(keys)), strict=True))[:k]:
                nearest.setdefault(int(values[number]), distance)
            codes[i, : len(nearest)] = list(nearest)
            distances[i, : len(nearest)] = list(nearest.values())
            shares = torch.tensor(list(nearest.values())) / -settings["retrieval_temperature"]
            p[i] *= 1 - settings["retrieval_ratio"]
            p[i, list(nearest)] += settings["retrieval_ratio"] * torch.softmax(shares, dim=0)
        add(active=active, retr_codes=codes, retr_distances=distances, p_merged=p.numpy())
        return p
