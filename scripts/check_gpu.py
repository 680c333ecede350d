"""Whether a device draws what it must: equal tokens wherever equal tokens are promised.

    python -m scripts.check_gpu [--golden FOLDER] [--models tiny pocket showo] [--out FILE]

In float32: device against host, by windows, in batches and alone, with and without retrieval and
adapter, graph against no graph, other numbers through one kept pass; Show-o also with given
tokens, and against a full pass over text and picture in every step. In 16 bit: windows. The noise
and top-p of the device against the host's. One line a check; the exit code is 1 if one failed. On a
CPU, passes of fixed shape are compared with the CPU's own.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrag_engine.bounds import MAX_SEED
from arrag_engine.decode import KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.device_noise import device_gumbel, philox, signed
from arrag_engine.decode.fixed import FixedPass, shape_of
from arrag_engine.decode.noise import Noise
from arrag_engine.faid import Faid, forced_states
from arrag_engine.index import PatchIndex
from arrag_engine.models.janus.model import JanusPro
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.retrieval import Retriever, make_retriever
from arrag_engine.sampling import guide, keep_top, shape_distribution
from arrag_engine.settings import RetrievalOptions, Sampling
from arrag_engine.verify.drawing import golden_index
from arrag_engine.verify.faid import FaidFixture
from arrag_engine.verify.golden import CFG_LOGITS, LOGITS, Fixture, Golden
from scripts import gpu
from scripts.gpu_checks import Check, Checks, equal, parting
from scripts.gpu_showo_checks import check_draws, check_showo
from scripts.gpu_showo_checks import check_half as check_showo_half
from scripts.gpu_subjects import CPU, HALVES, SUBJECTS, Subject, Wish

WINDOWS = (1, 4, 16)
SEEDS = (7, 8, MAX_SEED)
VOCAB = 16384
SHOWO = "showo"
MODELS = (*SUBJECTS, SHOWO)
PICTURES = 20
"""Drawn to see whether memory grows."""

PLAIN = Wish(Sampling(cfg=3.0))
DAID, FAID = replace(PLAIN, weight=0.1), replace(PLAIN, strength=1.0)
GREEDY = Sampling(cfg=3.0, temperature=0)
THOROUGH = {"plain": PLAIN, "DAiD 0.1": DAID, "FAiD 1": FAID}
WISHES = {
    "guidance 1": Wish(Sampling(cfg=1.0, temperature=0.8)),
    "top-k and top-p": Wish(Sampling(cfg=3.0, top_k=40, top_p=0.9)),
    "temperature 0": Wish(GREEDY),
    "DAiD 0.5": Wish(Sampling(cfg=3.0), 0.5),
    "DAiD 1": Wish(Sampling(cfg=3.0), 1.0),
    "DAiD 0.5, temperature 0": Wish(GREEDY, 0.5),
    "FAiD 0.5": Wish(Sampling(cfg=3.0), strength=0.5),
    "FAiD 0.5 with DAiD 0.5": Wish(Sampling(cfg=3.0), 0.5, 0.5),
    "FAiD 1, temperature 0": Wish(GREEDY, strength=1.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default=gpu.default_device())
    parser.add_argument("--golden", type=Path, help="a folder as `arrag verify` reads it")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    a = parser.parse_args(argv)
    device, started = gpu.device_of(a.device), time.perf_counter()
    machine = gpu.describe(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value), flush=True)
    checks = []
    for check in all_checks(device, a.golden, a.models):
        print(check, flush=True)
        checks.append(check)
    taken, failed = time.perf_counter() - started, sum(not check.ok for check in checks)
    print(f"{len(checks)} checks, {failed} failed, {taken:.0f} s")
    if a.out is not None:
        rows = [asdict(check) for check in checks]
        gpu.save(a.out, {"machine": machine, "seconds": round(taken, 1), "checks": rows})
    return 1 if failed else 0


def all_checks(device: torch.device, golden: Path | None, models: Sequence[str]) -> Checks:
    yield from guarded("noise", check_noise, device)
    yield from guarded("top-p", check_top_p, device)
    if golden is not None:
        yield from guarded("golden", check_golden, golden, device)
    if SHOWO in models:
        yield from guarded("Show-o, draws", check_draws, device)
        yield from guarded("Show-o", check_showo, device)
        for dtype in HALVES:
            yield from guarded(f"Show-o, {dtype}", check_showo_half, dtype, device)
    for name in (name for name in models if name in SUBJECTS):
        yield from guarded(name, check_float32, name, device)
        for dtype in HALVES:
            yield from guarded(f"{name}, {dtype}", check_half, name, dtype, device)


def guarded(name: str, run: Callable[..., Checks], *args: Any) -> Checks:
    """The checks of a group; what ends it early is a failed check, and the other groups run."""
    try:
        yield from run(*args)
    except Exception as error:
        traceback.print_exc()
        yield Check(name, False, f"{type(error).__name__}: {error}")


def check_noise(device: torch.device) -> Checks:
    chosen = [(0, 0), (12345, 575), (MAX_SEED, 3), (2**63, 100)]
    seeds = torch.tensor([signed(seed) for seed, _ in chosen], device=device)
    positions = torch.tensor([position for _, position in chosen], device=device)
    words = philox(seeds, positions, VOCAB + 1).cpu().numpy().view(np.uint64)
    wanted = [np.random.Philox(key=s, counter=p << 192).random_raw(VOCAB + 1) for s, p in chosen]
    differ = int((words != np.stack(wanted)).sum())
    yield Check("noise, words", differ == 0, f"{differ} of {words.size} differ from numpy's")
    found = device_gumbel(seeds, positions, VOCAB).cpu().numpy()
    host = np.stack([Noise(s, p, VOCAB).gumbel.numpy() for s, p in chosen])
    up, down = np.nextafter(host, np.float32(np.inf)), np.nextafter(host, np.float32(-np.inf))
    outside = int(((found < down) | (found > up)).sum())
    other = int((found != host).sum())
    said = f"{outside} of {host.size} more than one float32 step from the host's, {other} not equal"
    yield Check("noise, Gumbel", outside == 0, said)


def check_top_p(device: torch.device) -> Checks:
    logits = torch.randn(8, VOCAB, generator=gpu.seeded(CPU, 0)) * 4
    logits[::2] = logits[::2].round()  # many ties
    probs = torch.softmax(logits, -1)
    temperature = torch.tensor(0.9)
    for k, p in ((None, 0.9), (None, 0.2), (100, None), (100, 0.5)):
        numbers = [None if k is None else torch.tensor(k), None if p is None else torch.tensor(p)]
        there = [None if n is None else n.to(device) for n in numbers]
        host, found = keep_top(probs, *numbers), keep_top(probs.to(device), *there).cpu()
        differ = int((host != found).sum())
        near = shape_distribution(logits.to(device), temperature.to(device), *there).cpu()
        error = float((near - shape_distribution(logits, temperature, *numbers)).abs().max())
        said = f"{differ} of {host.numel()} differ given equal p"
        said += f"; given equal logits, by {error:.1g} (a softmax may round differently)"
        yield Check(f"top-k {k}, top-p {p}", differ == 0, said)


def check_float32(name: str, device: torch.device) -> Checks:
    """Everything that is promised always."""
    make = SUBJECTS[name]
    host, there = make(torch.float32, CPU), make(torch.float32, device)
    yield check_logits(name, host, there)
    for wish_name, wish in THOROUGH.items():
        yield from check_thoroughly(f"{name}, {wish_name}", wish, host, there)
    for wish_name, wish in WISHES.items():
        wanted = host.draw(wish, SEEDS[:2], 16)
        label = f"{name}, {wish_name}, device = host"
        yield equal(label, there.draw(wish, SEEDS[:2], 16, gpu.kept()), wanted)
    yield from check_graphs(name, there)
    yield from check_numbers(name, there)
    yield check_search(name, host, there)
    if device.type == "cuda":
        yield check_memory(name, there)


@torch.inference_mode()
def check_logits(name: str, host: Subject, there: Subject) -> Check:
    """Logits along a random path."""
    codes = torch.randint(
        0, host.model.vocab, (2, host.model.grid.size), generator=gpu.seeded(CPU, 1)
    )
    streams = torch.tensor([host.prompt, host.blank])
    wanted, found = (
        one.predict(forced_states(one, streams.to(one.device), codes.to(one.device))).float().cpu()
        for one in (host.model, there.model)
    )
    error = float((wanted - found).abs().max() / wanted.abs().max())
    said = f"largest difference {error:.1g} of the largest logit"
    return Check(f"{name}, logits, device = host", error < 1e-4, said)


def check_thoroughly(name: str, wish: Wish, host: Subject, there: Subject) -> Checks:
    """Windows, and batches against alone."""
    wanted = host.draw(wish, SEEDS)
    for window in WINDOWS:
        found = there.draw(wish, SEEDS, window, gpu.kept())
        yield equal(f"{name}, window {window}, device = host", found, wanted)
    kept = gpu.kept()
    alone = torch.cat([there.draw(wish, [seed], 16, kept) for seed in SEEDS])
    yield equal(f"{name}, alone = in a batch", alone, wanted)


def check_graphs(name: str, there: Subject) -> Checks:
    """A captured pass draws what it draws uncaptured."""
    device = there.model.device
    wishes = {**THOROUGH, "DAiD 0.5, temperature 0": WISHES["DAiD 0.5, temperature 0"]}
    for wish_name, wish in wishes.items():
        kept, bare = gpu.kept(), gpu.kept(capture=False)
        found = [there.draw(wish, SEEDS[:2], 16, kept) for _ in range(2)]
        wanted = there.draw(wish, SEEDS[:2], 16, bare)
        captured = (was_captured(there, wish, kept), was_captured(there, wish, bare))
        right = torch.equal(found[0], wanted) and torch.equal(found[1], wanted)
        said = "captured" if captured[0] else f"no graph on {device}"
        said = f"{parting(torch.cat(found), wanted.repeat(2, 1))}; {said}"
        good = captured == (device.type == "cuda", False)
        yield Check(f"{name}, {wish_name}, graph = no graph, twice", right and good, said)


def was_captured(there: Subject, wish: Wish, kept: KeptPasses) -> bool:
    """Whether the pass that drew two pictures in windows of 16 repeats a graph."""
    model, recipe = there.model, there.recipe(wish)
    return kept.find(
        FixedPass, model, recipe, shape_of(model, recipe, 2, 16, model.device)
    ).captured


def check_numbers(name: str, there: Subject) -> Checks:
    """Drawings with other numbers through one kept pass; a graph may hold none of them."""
    one = Wish(Sampling(2.0, 0.9, 30, 0.9), 0.1, 0.3)
    other = Wish(Sampling(5.0, 1.3, 7, 0.5), 0.6, 0.9)
    kept = gpu.kept()
    found = [there.draw(wish, SEEDS[:2], 4, kept) for wish in (one, other, one)]
    wanted = [there.draw(wish, SEEDS[:2], 4, gpu.kept()) for wish in (one, other)]
    wanted.append(wanted[0])
    check = equal(
        f"{name}, three drawings, two sets of numbers, one kept pass",
        *map(torch.cat, (found, wanted)),
    )
    yield replace(check, ok=check.ok and len(kept) == 1)


def check_search(name: str, host: Subject, there: Subject) -> Check:
    """An index that the device searches finds what the host finds."""
    from arrag_engine.retrieval.device_source import device_index

    source = there.retriever.source
    assert isinstance(source, PatchIndex)
    moved = replace(there.retriever, source=device_index(source, there.model.device))
    wish = WISHES["DAiD 0.5"]
    found = replace(there, retriever=moved).draw(wish, SEEDS, 16, gpu.kept())
    label = f"{name}, DAiD 0.5, {source.size} patches searched on the device = host"
    return equal(label, found, host.draw(wish, SEEDS, 16))


def check_memory(name: str, there: Subject) -> Check:
    """Drawings through one kept pass leave nothing behind."""
    kept, held = gpu.kept(), []
    for seed in range(PICTURES):
        there.draw(PLAIN, [seed], 16, kept)
        held.append(torch.cuda.memory_allocated(there.model.device))
    said = f"{held[1] / 1e6:.1f} MB after 2 pictures, {held[-1] / 1e6:.1f} after {PICTURES}"
    return Check(f"{name}, memory does not grow", held[-1] <= held[1], said)


def check_half(name: str, dtype: str, device: torch.device) -> Checks:
    """In 16 bit the window may not change a picture drawn alone; a batch may, and is reported."""
    there = SUBJECTS[name](HALVES[dtype], device)
    for wish_name, wish in THOROUGH.items():
        label = f"{name}, {dtype}, {wish_name}"
        kept = gpu.kept()
        by_window = [
            torch.cat([there.draw(wish, [seed], window, kept) for seed in SEEDS])
            for window in WINDOWS
        ]
        wanted = by_window[0].repeat(len(WINDOWS) - 1, 1)
        check = equal(f"{label}, windows 4, 16 = 1", torch.cat(by_window[1:]), wanted)
        yield replace(check, ok=check.ok and len(kept) == 1)
        batch = there.draw(wish, SEEDS, 1, gpu.kept())
        yield Check(f"{label}, in a batch (reported)", True, parting(batch, by_window[0]))


@torch.inference_mode()
def check_golden(folder: Path, device: torch.device) -> Checks:
    """Logits and greedy pictures of the reference programs; `arrag verify` has the CPU's checks."""
    fixture = Fixture(folder)
    model = copy.deepcopy(fixture.model).to(device)
    vanilla = fixture.golden("vanilla")
    ids = torch.stack((vanilla["prompt_ids_cond"], vanilla["prompt_ids_uncond"])).long()
    path = vanilla["forced_tokens"].long()
    states = forced_states(model, ids.to(device), path.expand(2, -1).to(device))
    logits = model.predict(states[:, ids.shape[1] - 1 : -1])
    guided = guide(logits, fixture.settings["cfg_weight"])[0]
    yield near("golden, logits", logits[0], vanilla["logits_cond"], LOGITS)
    yield near("golden, guided logits", guided, vanilla["logits_cfg"], CFG_LOGITS)
    prompt = ids[0].tolist()
    yield greedy("golden, plain", fixture, model, prompt, vanilla["greedy.tokens"], 1.0)
    if fixture.has("daid") and fixture.has("db"):
        yield from check_golden_daid(fixture, model, prompt)
    if fixture.has("faid") and fixture.has("faid_additional") and fixture.has("db"):
        yield check_golden_faid(fixture, model, prompt)


def check_golden_daid(fixture: Fixture, model: JanusPro, prompt: Sequence[int]) -> Checks:
    daid, settings = fixture.golden("daid"), fixture.settings["daid"]
    retriever = golden_retriever(fixture)
    for name, s in settings["settings"].items():
        options = RetrievalOptions(
            s["retrieval_ratio"], s["retrieval_temperature"], settings["top_k"]
        )
        used, wanted = retriever.using(options), daid[f"{name}.greedy.tokens"]
        label = f"golden, DAiD {name}"
        yield greedy(label, fixture, model, prompt, wanted, s["temperature"], [used])


def check_golden_faid(fixture: Fixture, model: JanusPro, prompt: Sequence[int]) -> Check:
    golden, settings = fixture.golden("faid"), fixture.settings["faid"]
    adapter = FaidFixture(fixture, golden).drawing_adapter().to(model.device)
    faid = Faid(adapter, candidates=settings["retrieved_k"])
    retriever = golden_retriever(fixture).using(RetrievalOptions(weight=0))
    wanted, temperature = golden["greedy.tokens"], settings["temperature"]
    return greedy("golden, FAiD", fixture, model, prompt, wanted, temperature, [retriever], faid)


def golden_retriever(fixture: Fixture) -> Retriever:
    db: Golden = fixture.golden("db")
    index = golden_index(db, "grid", fixture.codebook)
    return make_retriever(index, fixture.grid, fixture.codebook)


def near(name: str, found: Tensor, wanted: Tensor, limit: float) -> Check:
    error = float((found.cpu().double() - wanted.double()).abs().max())
    return Check(name, error <= limit, f"largest difference {error:.1g}, limit {limit:g}")


def greedy(
    name: str,
    fixture: Fixture,
    model: JanusPro,
    prompt: Sequence[int],
    wanted: Tensor,
    temperature: float,
    *used: Any,
) -> Check:
    """The picture without noise, sequentially and in windows."""
    blank = unconditional(list(prompt), fixture.settings["pad_id"])
    recipe = Recipe(prompt, blank, fixture.sampling(temperature), *used)
    drawn = [
        draw_pictures(model, recipe, [0], window, kept=gpu.kept()).tokens.flatten(1)
        for window in (1, 16)
    ]
    found = torch.cat(drawn)
    return equal(f"{name}, greedy picture", found, wanted.long().flatten().expand_as(found))


if __name__ == "__main__":
    sys.exit(main())
