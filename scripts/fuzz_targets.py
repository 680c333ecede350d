"""What the fuzzer runs: one target per kind of foreign file, and small files to begin with.

A target does with a file what a command or a node does with it. It may raise `InputError` only.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arrag_engine.checkpoints import (
    Checkpoint,
    describe_config,
    load_checkpoint,
    read_tokenizer,
)
from arrag_engine.checkpoints.adapter import is_adapter, load_adapter, open_adapter
from arrag_engine.checkpoints.weights import find_weight_files, open_weights, read_json
from arrag_engine.cli.inspect import _facts, _print_facts
from arrag_engine.decode import Trace, TraceLayer, is_trace, load_trace, save_trace
from arrag_engine.decode.trace import Cost
from arrag_engine.errors import InputError
from arrag_engine.index import (
    Hits,
    KeySpec,
    PatchIndex,
    check_index,
    is_index,
    load_index,
    open_lookup,
    read_header,
    read_manifest,
    save_index,
    save_shards,
)
from arrag_engine.index.manifest import MOST_SHARDS
from arrag_engine.models.janus.layouts import (
    blender_config,
    blender_names,
    our_names,
    read_blenders,
    read_config,
)
from arrag_engine.models.janus.model import JanusConfig, JanusPro
from arrag_engine.models.janus.prompt import PromptEncoder
from arrag_engine.models.janus.vq import VQConfig
from arrag_engine.settings import RetrievalOptions
from scripts.fuzz_mutate import joined, split
from tests.tiny import (
    blender_tensors,
    tiny_config,
    tiny_index,
    tiny_model,
    tiny_tokenizer,
    transformers_name,
    write_adapter,
    write_tiny,
)
from tests.tiny_showo import VQ as SIGN_VQ
from tests.tiny_showo import showo_folder, text_tokenizer, tiny_showo, tiny_showo_config

CAPTION = "two red apples, 写真 \u202e e\u0301"
MEMBER = "file:"
"""Header fields `file:NAME` of an input of the folder target are the other files of the folder."""
STRUCTURES = (
    ("flat", "encoder"),
    ("flat", "codebook"),
    ("ivf", "encoder"),
    ("compact", "codebook"),
)


@dataclass(frozen=True)
class Target:
    """A kind of foreign file."""

    run: Callable[[bytes, Path], None]
    """Given a file's bytes and a folder for them."""
    seeds: Callable[[Path], Iterator[bytes]]
    """Sound files, made in a folder."""


def _index(data: bytes, folder: Path) -> None:
    path = _written(folder / "a.safetensors", data)
    is_index(path)
    index = load_index(path)
    dim = index.spec.dim(index.codebook.shape[1])
    queries = np.zeros((2, dim), np.float32)
    queries[1] = np.linspace(-1, 1, dim)
    for view in (index, index.restricted(np.array([0]))):
        hits = view.lookup(queries, 10)
        assert (hits.codes < len(index.codebook)).all()
        assert (hits.sources < len(index.sources)).all()
        assert (hits.positions < index.grid.size).all()
    index.sources.about(["picture"])
    index.matching("*")
    list(check_index(path, lambda step: lambda done, total: None))
    _print_facts(_facts(path))


def _index_seeds(folder: Path) -> Iterator[bytes]:
    model = tiny_model(0, _small())
    for structure, space in STRUCTURES:
        spec = KeySpec("causal-4", "zero", space, float(space == "codebook"))  # type: ignore[arg-type]
        save_index(tiny_index(model, 3, 0, spec, structure), folder / "a.safetensors")
        yield (folder / "a.safetensors").read_bytes()


def _manifest(data: bytes, folder: Path) -> None:
    path = _written(folder / "a.json", data)
    manifest = read_manifest(path)
    assert len(manifest.shards) <= MOST_SHARDS
    assert all(manifest.place(shard).parent == folder for shard in manifest.shards)
    assert manifest.pictures == manifest.shards[-1].first + manifest.shards[-1].pictures
    _save_shards(path)
    path.write_bytes(data)
    hits = open_lookup(path).lookup(np.zeros((2, 32), np.float32), 10)
    assert hits.sources.max() < manifest.pictures
    _print_facts(_facts(path))


def _manifest_seeds(folder: Path) -> Iterator[bytes]:
    _save_shards(folder / "a.json")
    yield (folder / "a.json").read_bytes()


def _save_shards(path: Path) -> None:
    """Two shards of two pictures each, always the same."""
    model = tiny_model(0, _small())
    spec = KeySpec("causal-4", "zero")
    save_shards(path, (tiny_index(model, 2, seed, spec) for seed in (1, 2)))


def _checkpoint(data: bytes, folder: Path) -> None:
    _drawable(_written(folder / "a.safetensors", data))


def _drawable(path: Path) -> None:
    """Load a model and ask of it what a drawing does before its first token."""
    checkpoint = load_checkpoint(path, torch.float32)
    _ = checkpoint.sampling
    prompt = checkpoint.prompt_encoder.encode(CAPTION)
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        if isinstance(checkpoint.model, JanusPro):
            checkpoint.model.embed_text(ids)
        else:
            checkpoint.model.open(ids)


def _checkpoint_seeds(folder: Path) -> Iterator[bytes]:
    yield write_tiny(folder / "a.safetensors", tiny_model(0, _small())).read_bytes()
    header, body = split((folder / "a.safetensors").read_bytes())
    yield _with_blenders(header, body)


def _with_blenders(header: dict, body: bytes) -> bytes:
    config = json.loads(header["__metadata__"]["config"])
    config["language_config"] |= {"num_SmoothPatchBlender": 2, "num_hop": [1]}
    header["__metadata__"]["config"] = json.dumps(config)
    start = len(body)
    for name, tensor in blender_tensors(_small().llama.hidden_size, (0,), (1,)).items():
        part = tensor.numpy().tobytes()
        place = [start, start + len(part)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": place}
        body, start = body + part, start + len(part)
    return joined(header, body)


def _folder(data: bytes, folder: Path) -> None:
    """A model folder: the weights, whose header fields name the files beside them."""
    for old in folder.iterdir():
        old.unlink()
    _written(folder / "model.safetensors", data)
    for name, text in _members(data, MEMBERS):
        _written(folder / name, text.encode(errors="surrogatepass"))
    _drawable(folder)


MEMBERS = ("config.json", "tokenizer.json", "model.safetensors.index.json")


def _members(data: bytes, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    try:
        fields = split(data)[0].get("__metadata__")
    except (ValueError, RecursionError):
        return
    for name in names:
        text = fields.get(MEMBER + name) if isinstance(fields, dict) else None
        if isinstance(text, str):
            yield name, text


def _folder_seeds(folder: Path) -> Iterator[bytes]:
    header, body = split(next(_bare(folder)))
    config = _text_config()
    listed = {"weight_map": dict.fromkeys(header, "model.safetensors")}
    values = (config, json.loads(tiny_tokenizer()), listed)
    fields = {MEMBER + n: json.dumps(v) for n, v in zip(MEMBERS, values, strict=True)}
    named = {transformers_name(name): entry for name, entry in header.items()}
    yield joined({"__metadata__": fields} | named, body)
    fields.pop(MEMBER + MEMBERS[2])
    yield joined({"__metadata__": fields} | header, body)


SHOWO_MEMBERS = ("config.json", "tokenizer.json")
PICTURES = "vq."
"""Before names of tensors of an input of the Show-o target: they are those of the folder of the
picture tokenizer."""


def _showo(data: bytes, folder: Path) -> None:
    """A folder of Show-o: two files of weights, whose header fields name the files beside them."""
    for old in sorted(folder.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    beside = folder / "magvitv2"
    beside.mkdir(parents=True)
    decoder, pictures = _parted(data)
    _written(folder / "pytorch_model.safetensors", decoder)
    _written(beside / "pytorch_model.safetensors", pictures)
    _written(beside / "config.json", b"{}")
    for name, text in _members(data, SHOWO_MEMBERS):
        _written(folder / name, text.encode(errors="surrogatepass"))
    _drawable(folder)


def _parted(data: bytes) -> tuple[bytes, bytes]:
    """The two files of weights: each names its own tensors, which lie in one body."""
    try:
        header, body = split(data)
    except (ValueError, RecursionError):
        return data, data
    of_pictures = {n: e for n, e in header.items() if n.startswith(PICTURES)}
    rest = {n: e for n, e in header.items() if n not in of_pictures}
    return _own(rest, body), _own(
        {n.removeprefix(PICTURES): e for n, e in of_pictures.items()}, body
    )


def _own(header: dict[str, Any], body: bytes) -> bytes:
    """A file of these tensors with their part of a body; as it is where places make no sense."""
    places = [e.get("data_offsets") for e in header.values() if isinstance(e, dict)]
    places = [p for p in places if isinstance(p, list) and p and all(type(n) is int for n in p)]
    first = min((min(p) for p in places), default=0)
    last = max((max(p) for p in places), default=0)
    if not 0 <= first <= last <= len(body):
        return joined(header, body)
    moved = {name: _moved(entry, -first) for name, entry in header.items()}
    return joined(moved, body[first:last])


def _moved(entry: Any, by: int) -> Any:
    """A tensor's header entry with its place moved; as it is where it has none."""
    places = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(places, list) or not all(type(n) is int for n in places):
        return entry
    return entry | {"data_offsets": [n + by for n in places]}


def _showo_seeds(folder: Path) -> Iterator[bytes]:
    config = tiny_showo_config(2)
    vq = replace(SIGN_VQ, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    config = replace(config, phi=replace(config.phi, num_layers=1), vq=vq)
    whole = showo_folder(folder / "showo", tiny_showo(0, config))
    decoder, first = split((whole / "pytorch_model.safetensors").read_bytes())
    pictures, second = split((whole / "magvitv2" / "pytorch_model.safetensors").read_bytes())
    texts = ((whole / "config.json").read_text(), text_tokenizer())
    fields = {MEMBER + n: text for n, text in zip(SHOWO_MEMBERS, texts, strict=True)}
    for header in (decoder, pictures):
        header.pop("__metadata__", None)
    moved = {PICTURES + name: _moved(entry, len(first)) for name, entry in pictures.items()}
    yield joined({"__metadata__": fields} | decoder | moved, first + second)


def _bin(data: bytes, folder: Path) -> None:
    weights = open_weights([_written(folder / "a.bin", data)])
    for name in weights.shapes:
        weights.read(name, 1 if weights.shapes[name] else None)


def _bin_seeds(folder: Path) -> Iterator[bytes]:
    rows = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": rows, "tied": rows, "part": rows[1:, ::2], "half": rows.half(), "0": rows[0, 0]}
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
        yield file.getvalue()


def _adapter(data: bytes, folder: Path) -> None:
    path = _written(folder / "a.safetensors", data)
    is_adapter(path)
    open_adapter(path)
    adapter = load_adapter(path, _base(), torch.float32)
    with torch.inference_mode():
        for layer in adapter.by_layer.values():
            if layer.q_proj is not None:
                layer.q_proj(torch.zeros(1, _small().llama.hidden_size))
    _print_facts(_facts(path))


@cache
def _base() -> Checkpoint:
    """The model that the adapters belong to."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny.safetensors", tiny_model(0, _small()))
        return load_checkpoint(path, torch.float32)


def _adapter_seeds(folder: Path) -> Iterator[bytes]:
    base = write_tiny(folder / "tiny.safetensors", tiny_model(0, _small()))
    yield write_adapter(folder / "a.safetensors", base).read_bytes()


def _tokenizer(data: bytes, folder: Path) -> None:
    encoder = PromptEncoder(read_tokenizer(_written(folder / "tokenizer.json", data)))
    _ = encoder.has_unknown
    encoder.blank()
    encoder.encode(CAPTION)


def _tokenizer_seeds(folder: Path) -> Iterator[bytes]:
    table = json.loads(tiny_tokenizer())
    yield json.dumps(table).encode()
    more = {
        "truncation": {
            **{"direction": "Right", "max_length": 512},
            **{"strategy": "LongestFirst", "stride": 0},
        },
        "padding": {
            **{"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        },
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "_"},
                {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "c"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    **{"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}},
                    **{"behavior": "Isolated", "invert": False},
                },
                {
                    **{"type": "ByteLevel", "add_prefix_space": False},
                    **{"trim_offsets": True, "use_regex": False},
                },
            ],
        },
        "decoder": {
            **{"type": "ByteLevel", "add_prefix_space": True},
            **{"trim_offsets": True, "use_regex": True},
        },
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": "<unk>", "byte_fallback": True},
            **{"vocab": table["model"]["vocab"] | {"t": 12, "w": 13, "tw": 14, "r": 15, "e": 16}},
            **{"merges": [["t", "w"]], "fuse_unk": False},
        },
    }
    yield json.dumps(table | more).encode()


def _json(data: bytes, folder: Path) -> None:
    """Every reader of small JSON files; the index of a model's shards is one of them."""
    path = _written(folder / "model.safetensors.index.json", data)
    read_json(path)
    (folder / "model.safetensors").touch()
    find_weight_files(folder)


def _json_seeds(folder: Path) -> Iterator[bytes]:
    yield json.dumps({"metadata": {}, "weight_map": {"a": "model.safetensors"}}).encode()
    yield b'\xef\xbb\xbf{"weight_map": {}}'


@cache
def _small() -> JanusConfig:
    """A model that loads in some milliseconds."""
    config = tiny_config(side=2)
    vq = VQConfig(32, (1,), 1, 32, 64, 8)
    return replace(config, llama=replace(config.llama, num_layers=1), vq=vq)


def _header(data: bytes, folder: Path) -> None:
    """The checks that every command makes to find out the kind of a file."""
    path = _written(folder / "a.safetensors", data)
    is_index(path)
    if is_adapter(path):
        open_adapter(path)
    else:
        read_header(path)


def _header_seeds(folder: Path) -> Iterator[bytes]:
    index = next(_index_seeds(folder))
    yield index
    header, _ = split(next(_adapter_seeds(folder)))
    fields = {"__metadata__": header["__metadata__"]}
    yield joined(fields, b"")
    entry = {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}
    yield joined(fields | {"a": entry}, bytes(4))


def _layout(data: bytes, folder: Path) -> None:
    """The layout of a model from names, shapes and config, without its tensors."""
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        return
    config, raw = (table.get(n) if isinstance(table, dict) else None for n in ("config", "shapes"))
    if not isinstance(config, dict) or not isinstance(raw, dict):
        return
    shapes = {
        name: tuple(shape)
        for name, shape in raw.items()
        if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    }
    names = our_names(list(shapes))
    janus = read_config({ours: shapes[name] for name, ours in names.items()}, config, None)
    blenders = blender_names(list(shapes))
    faid = read_blenders({ours: shapes[name] for name, ours in blenders.items()})
    if faid is not None:
        blender_config(faid, janus.llama.num_layers)


def _layout_seeds(folder: Path) -> Iterator[bytes]:
    for data, rename in ((next(_bare(folder)), str), (next(_bare(folder)), transformers_name)):
        header, _ = split(data)
        shapes = {rename(name): entry["shape"] for name, entry in header.items()}
        shapes |= {n: list(t.shape) for n, t in blender_tensors(32, (0,), (1, 2)).items()}
        yield json.dumps({"config": _text_config(), "shapes": shapes}).encode()


def _bare(folder: Path) -> Iterator[bytes]:
    """A model without header fields."""
    write_tiny(folder / "a.safetensors", tiny_model(0, _small()))
    header, body = split((folder / "a.safetensors").read_bytes())
    del header["__metadata__"]
    yield joined(header, body)


def _text_config() -> dict[str, Any]:
    """A config as transformers writes it."""
    config = describe_config(_small())
    text = config.pop("language_config")
    return config | {"text_config": text, "vision_config": {"image_size": 4, "patch_size": 2}}


def _trace(data: bytes, folder: Path) -> None:
    """Read a trace and ask of it what the Retrieval Map does."""
    path = _written(folder / "a.safetensors", data)
    is_trace(path)
    _print_facts(_facts(path))
    trace = load_trace(path, [_traced()])
    for j in range(len(trace.layers)):
        trace.source_shares(j)
    for position in range(trace.grid.size):
        trace.position_facts(position)


@cache
def _traced() -> PatchIndex:
    """The index that the traces belong to."""
    return tiny_index(tiny_model(0, _small()), 3, 0, KeySpec(borders="zero"))


def _trace_seeds(folder: Path) -> Iterator[bytes]:
    index = _traced()
    size, half = index.grid.size, np.full(index.grid.size, 0.5)
    places = np.tile(np.arange(size)[:, None], (1, 2))
    sources = places % 3
    hits = Hits(places.astype(np.float32), index.tokens[sources, places], sources, places)
    layer = TraceLayer(index, RetrievalOptions(0.5), half, hits, places * 0 + 0.5, half)
    for layers in ((layer,), ()):
        tokens = index.tokens[0].astype(np.int64)
        trace = Trace(index.grid, tokens, tokens * 0 - 1, half, layers, Cost(3, 0.5))
        save_trace(trace, folder / "a.safetensors")
        yield (folder / "a.safetensors").read_bytes()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def skip_initialisation() -> None:
    """Do not fill weights that are about to be replaced, which is most of the work of loading a
    tiny model."""
    for kind in (torch.nn.modules.conv._ConvNd, torch.nn.Linear, torch.nn.Embedding):
        kind.reset_parameters = lambda self: None  # type: ignore[method-assign]


def check(target: Target, data: bytes, folder: Path) -> BaseException | None:
    """Run a target; returns what it ended with where that is not allowed."""
    try:
        with redirect_stdout(io.StringIO()):
            target.run(data, folder)
    except InputError:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        return error
    return None


TARGETS = {
    "index": Target(_index, _index_seeds),
    "manifest": Target(_manifest, _manifest_seeds),
    "checkpoint": Target(_checkpoint, _checkpoint_seeds),
    "folder": Target(_folder, _folder_seeds),
    "showo": Target(_showo, _showo_seeds),
    "bin": Target(_bin, _bin_seeds),
    "adapter": Target(_adapter, _adapter_seeds),
    "header": Target(_header, _header_seeds),
    "layout": Target(_layout, _layout_seeds),
    "tokenizer": Target(_tokenizer, _tokenizer_seeds),
    "json": Target(_json, _json_seeds),
    "trace": Target(_trace, _trace_seeds),
}
