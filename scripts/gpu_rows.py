"""The rows of `bench_gpu`: what is measured, how, and what must be reached on an H100."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrag_engine import load_model
from arrag_engine.decode import Kept, KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.fixed import shape_of
from arrag_engine.faid import AdapterConfig, Faid
from arrag_engine.index import KeySpec, SourceTable, create_index
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.prompt import unconditional
from arrag_engine.models.showo.model import ShowO
from arrag_engine.retrieval import Retriever, make_retriever
from arrag_engine.settings import RetrievalOptions, Sampling
from scripts import gpu, gpu_showo
from scripts.bench_1b import transformers_model
from scripts.gpu_pace import Skipped, Tape, address_checks, kernels, operations, pace, pass_of
from scripts.launch_comfyui import declare_missing_operators

WIDE = 16
"""The window of a GPU."""
BATCH = 16
FEW = 4
"""Pictures of a batch of Show-o."""
TEMPERATURES = (0.3, 0.6, 1.0)
PROMPTS = ("a red car", "a guitar", "two apples", "a flamingo", "a lion in the desert")
"""For the pocket model; it knows some of the words."""
DAID = RetrievalOptions(weight=0.1)
CODES = KeySpec(space="codebook")


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    value: float
    unit: str
    bar: float | None = None
    aim: float | None = None
    note: str = ""

    def __str__(self) -> str:
        wanted = " | ".join("" if x is None else f"{x:g} {self.unit}" for x in (self.bar, self.aim))
        return f"| {self.what} | {self.value:.4g} {self.unit} | {wanted} | {self.note} |"


Rows = Iterator[Row]


@dataclass(frozen=True)
class Sizes:
    """What a run measures."""

    small: JanusConfig
    large: JanusConfig
    prompt: list[int]
    pad: int
    tokens: int
    """Drawn where a row would take long."""
    compared: int
    """Tokens of drawings that are compared with each other."""
    patches: int
    copied: int
    """Bytes of the copy that measures bandwidth."""
    pocket_pictures: int
    rounds: int
    showo: tuple[gpu_showo.Showo, ...]
    sign_patches: int
    """Of Show-o's index."""


REAL = Sizes(
    gpu.JANUS_1B, gpu.JANUS_7B, [100000, *range(5, 25), 100003], 100002,
    tokens=48, compared=192, patches=10_000_000, copied=2**31, pocket_pictures=5, rounds=5,
    showo=gpu_showo.REAL, sign_patches=1_000_000,
)  # fmt: skip
SMALL = Sizes(
    gpu.TINY, gpu.TINY, [1, 5, 6, 7, 4], 2,
    tokens=6, compared=6, patches=500, copied=2**20, pocket_pictures=1, rounds=1,
    showo=gpu_showo.SMALL, sign_patches=300,
)  # fmt: skip


@dataclass
class Bench:
    """A run: its sizes, its device, and what later rows need of earlier ones."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    known: dict[str, Any] = field(default_factory=dict)
    kept: KeptPasses = field(default_factory=gpu.kept)

    @cached_property
    def model(self) -> JanusPro:
        """The smaller one."""
        return gpu.random_model(self.sizes.small, self.dtype, self.device)

    def recipe(self, *used: Any, **more: Any) -> Recipe:
        prompt = self.sizes.prompt
        return Recipe(prompt, unconditional(prompt, self.sizes.pad), Sampling(), *used, **more)

    def drop(self) -> None:
        """Free the model and what was kept for it."""
        self.kept.clear()
        self.__dict__.pop("model", None)
        free(self.device)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def used_bytes(device: torch.device, most: bool = False) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) if most else torch.cuda.memory_allocated(device)


def whole_pictures(bench: Bench, model: JanusPro, rounds: int) -> list[float]:
    """Seconds of the first picture and of later ones, drawn to the end."""
    recipe = bench.recipe()
    return [
        gpu.seconds(
            bench.device,
            lambda seed=seed: draw_pictures(
                model, recipe, [seed], 1, None, bench.device, bench.kept
            ),
        )
        for seed in range(rounds + 1)
    ]


def rows_1b(bench: Bench) -> Rows:
    """The process's first drawing comes first."""
    model, size = bench.model, bench.sizes.small.grid.size
    weights = used_bytes(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    first, *later = whole_pictures(bench, model, bench.sizes.rounds)
    memory = used_bytes(bench.device, most=True) - weights
    one = pass_of(model, bench.recipe(), 1, 1, bench.kept)
    how = f"{'captured' if one.captured else 'uncaptured'}, width {one.shape.width}"
    sequential = bench.known["sequential"] = statistics.median(later)
    yield Row("1B, sequential, first picture of the process", first, "s", 3.0, None, how)
    yield Row("1B, sequential, picture", sequential, "s", 1.9, 1.3, f"{how}, {spread(later)}")
    if bench.device.type == "cuda":
        note = "drawing, without decoding pixels"
        yield Row("memory above weights, 1B, batch 1", memory / 1e9, "GB", 0.8, None, note)
    if one.noise is not None:
        held = gpu.nbytes(one.noise.gumbel) / 1e6
        yield Row("noise held a picture", held, "MB", 64, None)
    wide = pace(model, bench.recipe(), [9], WIDE, bench.kept, bench.sizes.tokens)
    bench.known["wide"] = wide
    note = f"median of {len(wide.steps)}, drafting included"
    yield Row("1B, wall time of a pass of 16", 1e3 * wide.step, "ms", 3.4, 2.4, note)
    codes = torch.zeros(
        1, model.grid.height, model.grid.width, dtype=torch.long, device=bench.device
    )
    with torch.inference_mode():
        taken = [gpu.seconds(bench.device, lambda: model.vq.decode(codes)) for _ in range(4)]
    yield Row("tokens to pixels", 1e3 * statistics.median(taken[1:]), "ms")
    yield from rows_uncaptured(bench, size)


def rows_uncaptured(bench: Bench, size: int) -> Rows:
    """The engine's own pass without a graph."""
    bare, recipe, tokens = gpu.kept(capture=False), bench.recipe(), bench.sizes.tokens
    runs = [pace(bench.model, recipe, [seed], 1, bare, tokens) for seed in range(2)]
    picture, note = runs[-1].picture(size), f"{tokens} tokens, scaled"
    yield Row("1B, sequential, uncaptured, picture", picture, "s", None, None, note)
    ratio = picture / bench.known["sequential"]
    yield Row("uncaptured / sequential", ratio, "times", None, None, "1 where nothing is captured")


def rows_floor(bench: Bench) -> Rows:
    source = torch.empty(bench.sizes.copied, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    taken = [gpu.seconds(bench.device, lambda: target.copy_(source)) for _ in range(6)]
    rate = 2 * len(source) / statistics.median(taken[1:])
    note = f"a copy of {len(source) / 2**20:g} MiB, read and written"
    yield Row("bandwidth", rate / 1e12, "TB/s", None, None, note)
    for name, config in (("1B", bench.sizes.small), ("7B", bench.sizes.large)):
        model = gpu.model_without_storage(config, bench.dtype)
        weights = gpu.decoder_bytes(model)
        floor = weights / rate
        note = f"{weights / 1e9:.3g} GB of decoder weights once"
        yield Row(f"{name}, floor of a pass", 1e3 * floor, "ms", None, None, note)


def rows_windows(bench: Bench) -> Rows:
    """What the pocket model accepts, and a 1B picture at that rate."""
    checkpoint = load_model("pocket", "fp32", str(bench.device))
    model, encoder = checkpoint.model, checkpoint.prompt_encoder
    prompts = [encoder.encode(text) for text in PROMPTS[: bench.sizes.pocket_pictures]]
    for temperature in TEMPERATURES:
        sampling = replace(checkpoint.sampling, temperature=temperature)
        name = f"cfg {sampling.cfg:g}, temperature {temperature:g}"
        recipes = [Recipe(p.ids, p.unconditional, sampling) for p in prompts]
        passes = [
            draw_pictures(model, recipe, [3], WIDE, None, bench.device, bench.kept).passes
            for recipe in recipes
        ]
        accepted = (model.grid.size - 1) / statistics.mean(passes)
        note = f"pocket, float32, {len(passes)} pictures, window {WIDE}, {name}"
        yield Row("tokens accepted a pass", accepted, "", None, None, note)
        if (wide := bench.known.get("wide")) is None:
            continue
        picture = wide.opening + (bench.sizes.small.grid.size - 1) / accepted * wide.step
        bench.known[f"windows, {name}"] = picture
        note = f"worked out: the 1B's measured pass of 16, and what pocket accepts at {name}"
        yield Row("1B, picture with windows", picture, "s", 0.7, 0.4, note)


def rows_transformers(bench: Bench) -> Rows:
    declare_missing_operators()  # transformers imports torchvision
    sizes, size = bench.sizes, bench.sizes.small.grid.size
    theirs = transformers_model(bench.model, sizes.prompt, sizes.pad)
    theirs.model.vision_model.config.num_image_tokens = sizes.tokens
    ids = torch.tensor([sizes.prompt], device=bench.device)
    options = {"generation_mode": "image", "do_sample": True, "guidance_scale": 5.0}
    options["max_length"] = ids.shape[1] + size  # the cache of a whole picture

    def generate() -> None:
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)

    taken = [gpu.seconds(bench.device, generate) for _ in range(3)]
    picture = statistics.median(taken[1:]) / sizes.tokens * size
    note = f"{sizes.tokens} tokens, scaled; {gpu.version('transformers')}, same weights"
    yield Row("transformers, generate, picture", picture, "s", None, None, note)
    for what, ours in bench.known.items():
        if what != "wide":
            yield Row(f"transformers / ours, {what}", picture / ours, "times", 20, 40)


Run = Callable[[int], float]
"""Seconds a token, of a seed."""


def by_turns(bench: Bench, one: Run, other: Run) -> list[float]:
    """Ratios of pairs; the first pair warms up."""
    return [one(seed) / other(seed) for seed in range(bench.sizes.rounds + 1)][1:]


def half_kept(bench: Bench) -> Kept:
    """The upper half of a picture, so that what is drawn has neighbours."""
    size = bench.sizes.small.grid.size
    return Kept.first(np.random.default_rng(3).integers(0, bench.model.vocab, size // 2), size)


def token_time(bench: Bench, recipe: Recipe, batch: int = 1, tokens: int = 0) -> Run:
    def run(seed: int) -> float:
        seeds, count = range(seed, seed + batch), tokens or bench.sizes.compared
        return pace(bench.model, recipe, seeds, 1, bench.kept, count).token

    return run


def random_retriever(bench: Bench, patches: int, options: RetrievalOptions) -> Retriever:
    """An index of random pictures, searched on the device.

    Raises:
        ImportError: There is no search on the device.
    """
    from arrag_engine.retrieval.device_source import device_index

    model, grid = bench.model, bench.model.grid
    images = -(-patches // ((grid.height - 1) * (grid.width - 2)))
    tokens = np.random.default_rng(0).integers(0, model.vocab, (images, grid.size), np.uint16)
    codebook = model.vq.codebook(bench.device)
    index = create_index(
        grid, tokens, None, codebook, SourceTable.unknown(images), CODES, structure="flat"
    )
    return make_retriever(device_index(index, bench.device), grid, codebook, options)


def rows_daid(bench: Bench) -> Rows:
    kept, retriever = half_kept(bench), random_retriever(bench, bench.sizes.patches, DAID)
    one = token_time(bench, bench.recipe([retriever], kept=kept))
    ratios = by_turns(bench, one, token_time(bench, bench.recipe(kept=kept)))
    note = f"{retriever.source.size:,} patches, {spread(ratios)}"
    yield Row("DAiD λ 0.1 / plain", statistics.median(ratios), "times", 1.15, 1.0, note)


def rows_faid(bench: Bench) -> Rows:
    layers = (0, bench.sizes.small.llama.num_layers // 2)
    adapter = gpu.random_adapter(bench.model, AdapterConfig(layers, (1, 2)))
    kept = half_kept(bench)
    retriever = random_retriever(bench, bench.sizes.patches // 100, RetrievalOptions(weight=0))
    one = token_time(bench, bench.recipe([retriever], Faid(adapter), kept=kept))
    ratios = by_turns(bench, one, token_time(bench, bench.recipe(kept=kept)))
    note = f"K 10, {retriever.source.size:,} patches, {spread(ratios)}"
    yield Row("FAiD (2 blenders) / plain", statistics.median(ratios), "times", 1.15, 1.05, note)


def rows_batch(bench: Bench) -> Rows:
    recipe, tokens = bench.recipe(), bench.sizes.tokens
    together, alone = (token_time(bench, recipe, n, tokens) for n in (BATCH, 1))
    ratios = [BATCH / ratio for ratio in by_turns(bench, together, alone)]
    width = shape_of(bench.model, recipe, BATCH, 1, bench.device).width
    note = f"passes of width {width}, {tokens} tokens, {spread(ratios)}"
    what = "16 pictures at once, against 16 alone"
    yield Row(what, statistics.median(ratios), "times faster", 10, 14, note)


def rows_host(bench: Bench) -> Rows:
    """What is left of a pass without the network."""
    skipped: Any = Skipped(bench.sizes.small, bench.dtype, bench.device)
    on_gpu, tokens = bench.device.type == "cuda", 5 * bench.sizes.tokens
    for window in (1, WIDE):
        kept = gpu.kept()
        pace(skipped, bench.recipe(), [1], window, kept, 2)
        if not on_gpu:  # a CPU computes the pass itself: that is none of the host's part
            one: Any = pass_of(skipped, bench.recipe(), 1, window, kept)
            tape = Tape(one)
            one.compute = tape.record
            pace(skipped, bench.recipe(), [1], window, kept, tokens)
            one.compute, one.noise.make = tape.play, nothing_made
        run = pace(skipped, bench.recipe(), [1], window, kept, tokens)
        note = f"network stubbed out, {len(run.steps)} passes, window {window}; "
        note += "the choice of tokens on the device included" if on_gpu else "arithmetic replayed"
        times = [1e3 * t for t in run.steps]
        note += f", mean {statistics.mean(times):.3g} ms, least {min(times):.3g} ms"
        what = "host time a pass"
        yield Row(what, statistics.median(times), "ms", 0.3, 0.1, note)

    checks = [1e3 * t for t in address_checks(bench.sizes.small, bench.dtype)]
    note = f"of the 1B's weights, when a graph is repeated; not in the rows above, {spread(checks)}"
    yield Row("host time of comparing addresses", statistics.median(checks), "ms", None, None, note)


def nothing_made(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """In place of the noise, where a tape holds the tokens."""
    return torch.zeros(()).expand(len(seeds), vocab)


def rows_operations(bench: Bench) -> Rows:
    """Counted on tensors without storage, so on any machine."""
    layers = (0, bench.sizes.small.llama.num_layers // 2)
    plain, top_p = Sampling(), Sampling(top_k=100, top_p=0.9)
    for name, config, sampling, adapted in (
        ("1B", bench.sizes.small, plain, False),
        ("1B, top-k and top-p", bench.sizes.small, top_p, False),
        ("1B, FAiD (2 blenders)", bench.sizes.small, plain, True),
        ("7B", bench.sizes.large, plain, False),
    ):
        model = gpu.model_without_storage(config, bench.dtype)
        recipe = replace(bench.recipe(), sampling=sampling)
        if adapted:
            adapter = gpu.random_adapter(model, AdapterConfig(layers, (1, 2)))
            recipe = replace(recipe, faid=Faid(adapter))
        with torch.inference_mode():
            count = operations(pass_of(model, recipe, 1, WIDE, gpu.kept(capture=False)))
        note = "counted on meta tensors, without views"
        yield Row(f"device operations a pass, {name}", count, "", None, None, note)


def rows_7b(bench: Bench) -> Rows:
    bench.drop()
    model = gpu.random_model(bench.sizes.large, bench.dtype, bench.device)
    first, *later = whole_pictures(bench, model, min(2, bench.sizes.rounds))
    note = f"first {first:.2f} s, {spread(later)}"
    yield Row("7B, sequential, picture", statistics.median(later), "s", 4.6, 3.5, note)
    wide = pace(model, bench.recipe(), [9], WIDE, bench.kept, bench.sizes.tokens)
    yield Row("7B, wall time of a pass of 16", 1e3 * wide.step, "ms")


def rows_showo(bench: Bench) -> Rows:
    """Show-o, against a full pass over text and picture in every step."""
    bench.drop()
    for size in bench.sizes.showo:
        model = gpu.random_showo(size.config, bench.dtype, bench.device)
        yield from rows_showo_plain(bench, size, model)
        yield from rows_showo_daid(bench, size, model)
        yield from rows_showo_batch(bench, size, model)


def rows_showo_plain(bench: Bench, size: gpu_showo.Showo, model: ShowO) -> Rows:
    recipe, name = size.recipe(), f"Show-o {size.name}"
    weights = used_bytes(bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    first = gpu_showo.drawing_seconds(model, recipe, [0], bench.kept)
    memory = used_bytes(bench.device, most=True) - weights
    note = f"{size.steps} steps, guidance {size.guidance:g} (cfg {recipe.sampling.cfg:g})"
    yield Row(f"{name}, first picture", first, "s", None, None, note)
    if bench.device.type == "cuda":
        note_memory = "drawing, without decoding pixels"
        yield Row(f"memory above weights, {name}", memory / 1e9, "GB", None, None, note_memory)
    full = gpu_showo.Uncached(model)
    ours, theirs = gpu_showo.by_turns(model, recipe, full, recipe, bench.sizes.rounds, bench.kept)
    picture = statistics.median(ours)
    yield Row(f"{name}, picture", picture, "s", None, None, f"{note}, {spread(ours)}")
    yield Row(f"{name}, step", 1e3 * picture / size.steps, "ms", None, None, "picture / steps")
    note = f"{gpu_showo.sequence_length(size.config)}, {spread(theirs)}"
    yield Row(f"{name}, picture uncached", statistics.median(theirs), "s", None, None, note)
    yield Row(f"{name}, uncached / ours", gpu_showo.ratio(theirs, ours), "times")
    for what, one in (("pass", model), ("pass uncached", full)):
        note = "both streams, softmax included"
        yield Row(
            f"{name}, {what}",
            1e3 * gpu_showo.pass_seconds(one, recipe, bench.kept),
            "ms",
            note=note,
        )
    pixels = gpu_showo.tokens_to_pixels(model)
    yield Row(f"{name}, tokens to pixels", 1e3 * pixels, "ms", None, None, "float32")


def rows_showo_daid(bench: Bench, size: gpu_showo.Showo, model: ShowO) -> Rows:
    retriever = gpu_showo.sign_retriever(model, bench.sizes.sign_patches)
    plain, daid = gpu_showo.by_turns(
        model, size.recipe(), model, size.recipe(retriever), bench.sizes.rounds, bench.kept
    )
    bits = retriever.source.spec.offsets * model.code_dim
    note = f"{retriever.source.size:,} patches of {bits} bits, K {gpu_showo.DAID.neighbours}"
    note += f", {statistics.median(daid):.3g} s a picture"
    yield Row(f"Show-o {size.name}, DAiD λ 0.1 / plain", gpu_showo.ratio(daid, plain), "times",
              None, None, note)  # fmt: skip


def rows_showo_batch(bench: Bench, size: gpu_showo.Showo, model: ShowO) -> Rows:
    recipe = size.recipe()
    together = [
        gpu_showo.drawing_seconds(model, recipe, range(seed, seed + FEW), bench.kept)
        for seed in range(2)
    ][1]
    alone = gpu_showo.drawing_seconds(model, recipe, [0], bench.kept)
    note = f"{together / FEW:.3g} s a picture"
    what = f"Show-o {size.name}, {FEW} pictures at once, against {FEW} alone"
    yield Row(what, FEW * alone / together, "times faster", None, None, note)


def rows_showo_transformers(bench: Bench) -> Rows:
    """Show-o against a full pass by transformers' Phi in every step."""
    bench.drop()
    for size in bench.sizes.showo:
        model = gpu.random_showo(size.config, bench.dtype, bench.device)
        theirs, recipe = gpu_showo.TransformersPhi(model), size.recipe()
        rounds = min(2, bench.sizes.rounds)
        ours, others = gpu_showo.by_turns(model, recipe, theirs, recipe, rounds, bench.kept)
        name, note = f"Show-o {size.name}", f"{gpu.version('transformers')}, same weights"
        note += ", full pass a step, head over the whole vocabulary"
        yield Row(f"{name}, picture with transformers", statistics.median(others), "s", note=note)
        yield Row(f"{name}, transformers / ours", gpu_showo.ratio(others, ours), "times")


def rows_kernels(bench: Bench) -> Rows:
    """Last: once a profiler has run, what follows may be slower."""
    if bench.device.type != "cuda":
        raise RuntimeError("kernels are counted on a CUDA device alone")
    bench.drop()
    count = kernels(pass_of(bench.model, bench.recipe(), 1, WIDE, gpu.kept(capture=False)))
    note = "of an uncaptured pass, torch.profiler"
    yield Row("kernels and copies a pass, 1B", count, "", None, None, note)


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.3g}-{max(values):.3g}"
