"""Checks of FAiD against golden numbers: drawing with folded blenders, training with whole ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..faid import (
    Blending,
    BlendPass,
    Faid,
    FaidAdapter,
    FaidHook,
    Semantics,
    assemble,
    forced_states,
    slot_table,
    whole_picture,
)
from ..models.janus.layouts import blender_names, official_name, read_blenders
from ..models.janus.model import JanusPro
from ..retrieval import make_retriever
from ..sampling import guide, model_distribution
from ..settings import RetrievalOptions, Sampling
from .golden import (
    CFG_LOGITS,
    EXACT,
    LOGITS,
    PROBS,
    VECTORS,
    Fixture,
    Golden,
    Values,
    golden_index,
    greedy_values,
    padded,
    scatter_rows,
)

LOSSES, GRADIENTS = 1e-5, 1e-3
CPU = torch.device("cpu")


class FaidFixture:
    """The fixture's model, its blenders, and the path along which they are compared."""

    def __init__(self, fixture: Fixture, golden: Golden) -> None:
        self.fixture = fixture
        self.model = fixture.model
        self.additional = fixture.golden("faid_additional")
        self.names = {
            ours: name for name, ours in blender_names(list(self.additional.weights.shapes)).items()
        }
        shapes = {ours: self.additional.weights.shapes[name] for ours, name in self.names.items()}
        config = read_blenders(shapes)
        assert config is not None
        self.config = config
        self.k = fixture.settings["faid"]["retrieved_k"]
        self.path = golden["forced_tokens"].long()
        self.codes = golden["codes"].long()
        self.active = golden["active"].bool()
        vanilla = fixture.golden("vanilla")
        self.prompt = vanilla["prompt_ids_cond"]
        self.text = torch.stack((self.prompt, vanilla["prompt_ids_uncond"])).long()

    def read(self, name: str) -> Tensor:
        return self.additional[self.names[name]]

    def drawing_adapter(self) -> FaidAdapter:
        return assemble(self.model.config, self.config, self.read, torch.float32)

    def training_adapter(self) -> FaidAdapter:
        adapter = FaidAdapter(self.model.config, self.config).eval()
        adapter.load_state_dict({name: self.read(name) for name in adapter.state_dict()})
        return adapter


def check_faid(fixture: Fixture, golden: Golden) -> Values:
    parts = FaidFixture(fixture, golden)
    adapter = parts.drawing_adapter()
    yield from step_values(parts, golden, adapter)
    faid = Faid(adapter, candidates=parts.k, semantics="stepzero")
    zeroed = forced_steps(parts, faid, parts.codes, parts.active)
    for row, stream in enumerate(("cond", "uncond")):
        yield f"stepzero.logits_{stream}", LOGITS, zeroed[row]
    faid = Faid(adapter, candidates=parts.k)
    nothing, nowhere = torch.full_like(parts.codes, -1), torch.zeros_like(parts.active)
    without = forced_steps(parts, faid, nothing, nowhere)
    yield "noretrieval.logits_cond", LOGITS, without[0]
    yield from live_values(parts, golden, faid)
    yield from unit_values(parts, golden, adapter)
    yield from training_values(parts, golden)
    yield gradient_values(fixture, golden)


def step_values(parts: FaidFixture, golden: Golden, adapter: FaidAdapter) -> Values:
    """The official inference loop along the forced path."""
    faid = Faid(adapter, candidates=parts.k)
    with recorded(parts.model, adapter) as seen:
        logits, uncond = forced_steps(parts, faid, parts.codes, parts.active)
    for stream, value in (("cond", logits), ("uncond", uncond)):
        yield f"step.logits_{stream}", LOGITS, value
    guided = guide(torch.stack((logits, uncond)), parts.fixture.settings["cfg_weight"])[0]
    yield "step.logits_cfg", CFG_LOGITS, guided
    temperature = parts.fixture.settings["faid"]["temperature"]
    yield "step.probs", PROBS, model_distribution(guided, Sampling(temperature=temperature))
    yield from blended_values("step.blender_out_cond", golden, seen.features())
    fed = len(parts.prompt) + len(parts.path) - 1
    yield "step.blender_hidden_history", LOGITS, seen.hidden()[:, :, :fed]


def blended_values(name: str, golden: Golden, features: Tensor) -> Values:
    """Of the blenders' outputs [N, layers, K, hidden]: their means, and some as they are."""
    yield f"{name}_mean", VECTORS, features.mean(2)
    yield f"{name}_selected", VECTORS, features[golden["blender_out_selected_pos"].long()]


class Recorded:
    """What went through the blenders' layers."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Tensor]] = defaultdict(list)
        self.inputs: dict[int, list[Tensor]] = defaultdict(list)

    def features(self) -> Tensor:
        """Outputs of the blenders [N, layers, K, hidden] for the first row of the batch."""
        return torch.stack([torch.cat(o, 1)[0] for o in self.outputs.values()], dim=1)

    def hidden(self) -> Tensor:
        """Normalised hidden states [layers, rows, length, hidden]."""
        return torch.stack([torch.cat(h, 1) for h in self.inputs.values()])


@contextmanager
def recorded(model: JanusPro, adapter: FaidAdapter) -> Iterator[Recorded]:
    """Listen to the layers that have a blender."""
    seen, hooks = Recorded(), []
    for i, layer in adapter.by_layer.items():
        if layer.blender is not None:
            norm = model.llama.layers[i].get_submodule("input_layernorm")
            for module, into in ((layer.blender, seen.outputs[i]), (norm, seen.inputs[i])):
                hooks.append(
                    module.register_forward_hook(lambda m, a, out, into=into: into.append(out))
                )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def forced_steps(parts: FaidFixture, faid: Faid, codes: Tensor, active: Tensor) -> Tensor:
    """Logits [streams, N, codes] at the predicting positions, fed one token at a time.

    Args:
        codes: [N, K] retrieved.
        active: [N].
    """
    model, path = parts.model, parts.path
    streams, length = parts.text.shape
    cache = model.new_cache(streams, length + len(path), CPU)
    blending = Blending(faid, model, 1, CPU)
    x = model.embed_text(parts.text)
    model.llama(x[:, :-1], None, cache, blending.prompt)
    x, logits = x[:, -1:], []
    for i, token in enumerate(path):
        here = torch.tensor([[i]])
        hook = blending.at(here, codes[None, i : i + 1], active[None, i : i + 1])
        logits.append(model.logits(x, [length - 1 + i] * streams, cache, hook))
        x = model.embed_codes(token).expand(streams, 1, -1)
    return torch.cat(logits, dim=1)


def live_values(parts: FaidFixture, golden: Golden, faid: Faid) -> Values:
    """What is looked up along the forced path, and a picture drawn with live retrieval."""
    fixture, size = parts.fixture, len(parts.path)
    index = golden_index(fixture.golden("db"), "grid", fixture.codebook)
    retriever = make_retriever(index, fixture.grid, fixture.codebook, RetrievalOptions(weight=0))
    active = np.flatnonzero(retriever.active)
    queries = retriever.query.queries(parts.path.numpy(), active)
    found = index.lookup(queries, parts.k)
    yield "active", EXACT, retriever.active
    yield "query", VECTORS, scatter_rows(queries, active, size, 0)
    for name, limit, rows in (
        ("codes", EXACT, found.codes),
        ("distances", PROBS, found.distances),
    ):
        yield name, limit, scatter_rows(padded(rows, parts.k), active, size, -1)
    yield from greedy_values(
        "greedy",
        fixture,
        parts.prompt,
        fixture.sampling(fixture.settings["faid"]["temperature"]),
        retriever,
        faid,
    )


def unit_values(parts: FaidFixture, golden: Golden, adapter: FaidAdapter) -> Values:
    """The last blender alone: whole over the full grid, folded at single positions."""
    if "blender_unit.hidden" not in golden:
        return
    last = parts.config.blender_layers[-1]
    hidden, retrieved = golden["blender_unit.hidden"], golden["blender_unit.retrieved"]
    inputs = F.pad(hidden[:, :-1], (0, 0, 1, 0))  # the input of position i is token i - 1
    work = full_grid(parts, retrieved, parts.active)
    around = work.surroundings(last, inputs)
    whole = parts.training_adapter().by_layer[last].blender
    folded = adapter.by_layer[last].blender
    assert whole is not None
    assert folded is not None
    centres = retrieved * parts.active[None, :, None, None]
    yield "blender_unit.train_out", VECTORS, whole(around, centres)
    positions = golden["blender_unit.infer_pos"].long()
    single = [folded(around[:, i], retrieved[:, i]) for i in positions]
    yield "blender_unit.infer_out", VECTORS, torch.cat(single)


def full_grid(parts: FaidFixture, candidates: Tensor, active: Tensor) -> BlendPass:
    grid = parts.model.config.grid
    return BlendPass(
        torch.arange(grid.size)[None],
        candidates,
        active[None],
        slot_table(grid, parts.config.hops, CPU),
    )


def training_values(parts: FaidFixture, golden: Golden) -> Values:
    """The official training forward over whole sequences."""
    model, adapter = parts.model, parts.training_adapter()
    text, path = parts.text[:1], parts.path[None]
    hook = training_hook(parts, adapter, parts.codes[None], text.shape[1])
    with recorded(model, adapter) as seen:
        logits = model.predict(forced_states(model, text, path, hook), hook)
    yield "train.logits", LOGITS, logits
    yield "train.loss", LOSSES, sequence_loss(logits, path)
    yield from blended_values("train.blender_out", golden, seen.features())
    if "train2.logits" not in golden:
        return
    tokens, mask = golden["train2.image_tokens"].long(), golden["train2.text_mask"]
    text = golden["train2.text_ids"].long()
    hook = training_hook(parts, adapter, golden["train2.codes"].long(), text.shape[1])
    padding = (1 - mask).sum(1).tolist()
    logits = model.predict(forced_states(model, text, tokens, hook, padding), hook)
    yield "train2.logits", LOGITS, logits[:, -tokens.shape[1] - 1 : -1]
    yield "train2.loss", LOSSES, sequence_loss(logits, tokens)


def training_hook(
    parts: FaidFixture, adapter: FaidAdapter, codes: Tensor, prompt_length: int
) -> FaidHook:
    zero: Semantics = "stepzero"
    return whole_picture(parts.model, adapter, codes, parts.active, prompt_length, zero)


def sequence_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy of tokens [B, N] under logits [B, T + N, codes]."""
    predicting = logits[:, -tokens.shape[1] - 1 : -1]
    return F.cross_entropy(predicting.flatten(0, 1), tokens.flatten())


def gradient_values(fixture: Fixture, golden: Golden) -> tuple[str, float, Tensor, Tensor]:
    """Norms of the training loss's gradient by every parameter, as shares of the golden ones."""
    wanted = fixture.settings["faid_train_grad_l2_norms"]
    with torch.inference_mode(False), torch.enable_grad():
        parts = FaidFixture(Fixture(fixture.folder), golden)
        model, adapter = parts.model.requires_grad_(True), parts.training_adapter()
        hook = training_hook(parts, adapter, parts.codes[None], parts.text.shape[1])
        states = forced_states(model, parts.text[:1], parts.path[None], hook)
        sequence_loss(model.predict(states, hook), parts.path[None]).backward()
    parameters = {official_name(n): p for n, p in model.named_parameters()}
    parameters |= {
        f"language_model.model.{name}": parameter for name, parameter in adapter.named_parameters()
    }
    shares = [
        parameters[name].grad.norm() / norm  # type: ignore[union-attr]
        for name, norm in wanted.items()
    ]
    return "gradient_norms", GRADIENTS, torch.stack(shares), torch.ones(len(wanted))
