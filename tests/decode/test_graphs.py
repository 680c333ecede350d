"""Recorded passes: when they are made, when they are repeated, and when they must not be.

A stand-in records on the CPU: its graph holds the addresses of the weights, as a real one does.
"""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from arrag_engine.decode import GraphRecorder, KeptPasses, Recipe, draw_pictures
from arrag_engine.decode.fixed import FixedPass
from arrag_engine.decode.graphs import Recording
from arrag_engine.faid import Faid
from arrag_engine.grid import Grid
from arrag_engine.settings import Sampling
from tests.decode.test_raster_faid import full_adapter
from tests.tiny import BLANK, PROMPT, tiny_config, tiny_model


class StandIn(GraphRecorder):
    """Records nothing and repeats the work, on any device; it counts, and fails when told to."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.records, self.replays = fails, 0, 0

    def can(self, modules, device):
        return all(weight.device == device for m in modules for weight in m.parameters())

    def record(self, compute, device):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        self.records += 1
        compute()
        return Repeat(self, compute)


class Repeat:
    def __init__(self, recorder, compute):
        self.recorder, self.compute = recorder, compute

    def replay(self):
        self.recorder.replays += 1
        self.compute()


@pytest.fixture
def small():
    return tiny_model(3, replace(tiny_config(), grid=Grid(4, 5)))


def recipe_of(sampling=None, faid=None):
    return Recipe(PROMPT, BLANK, sampling or Sampling(cfg=3.0), faid=faid)


def move(model):
    """Put every weight elsewhere, as a memory manager does."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def test_a_pass_is_recorded_once_and_repeated(small):
    recorder = StandIn()
    kept, plain = KeptPasses(recorder), draw_pictures(small, recipe_of(), [7])
    for _ in range(3):
        drawing = draw_pictures(small, recipe_of(), [7], kept=kept)
        assert torch.equal(drawing.tokens, plain.tokens)
    assert recorder.records == 1
    assert recorder.replays == 3 * drawing.passes


def test_other_numbers_use_the_same_recording(small):
    recorder, adapter = StandIn(), full_adapter(small)
    kept = KeptPasses(recorder)
    for sampling, strength in (
        (Sampling(2.0, 0.8, 9, 0.9), 0.4),
        (Sampling(5.0, 1.2, 5, 0.5), 1.7),
    ):
        recipe = recipe_of(sampling, Faid(adapter, strength))
        wanted = draw_pictures(small, recipe, [7, 8]).tokens
        assert torch.equal(draw_pictures(small, recipe, [7, 8], kept=kept).tokens, wanted)
    assert recorder.records == 1


def test_weights_that_moved_between_drawings_are_recorded_anew(small):
    recorder = StandIn()
    kept = KeptPasses(recorder)
    wanted = draw_pictures(small, recipe_of(), [7], kept=kept).tokens
    move(small)
    assert torch.equal(draw_pictures(small, recipe_of(), [7], kept=kept).tokens, wanted)
    assert recorder.records == 2


def test_weights_that_move_while_drawing_end_the_repeating(small):
    recorder = StandIn()
    kept = KeptPasses(recorder)

    def disturb(decided, tokens):
        if decided == 9:
            move(small)

    wanted = draw_pictures(small, recipe_of(), [7]).tokens
    drawing = draw_pictures(small, recipe_of(), [7], progress=disturb, kept=kept)
    assert torch.equal(drawing.tokens, wanted)
    assert 0 < recorder.replays < drawing.passes


def test_an_adapter_that_moved_is_noticed(small):
    adapter = full_adapter(small)
    recording = Recording(Repeat(None, None), [small, adapter])
    assert recording.holds()
    move(adapter)
    assert not recording.holds()


def test_a_weight_put_in_place_of_another_is_noticed(small):
    recording = Recording(Repeat(None, None), [small])
    old = small.gen_head.vision_head.weight
    small.gen_head.vision_head.weight = torch.nn.Parameter(old.detach().clone(), False)
    assert not recording.holds()


def test_a_weight_taken_away_is_noticed(small):
    recording = Recording(Repeat(None, None), [small])
    small.gen_head.vision_head.bias = None
    assert not recording.holds()


def test_a_recording_that_fails_is_told_and_the_picture_is_drawn(small):
    kept = KeptPasses(StandIn(fails=True))
    wanted = draw_pictures(small, recipe_of(), [7])
    drawing = draw_pictures(small, recipe_of(), [7], kept=kept)
    assert torch.equal(drawing.tokens, wanted.tokens)
    assert drawing.notes == (
        "The pass could not be recorded as a CUDA graph, so drawing is slower: operation not "
        "permitted when stream is capturing",
    )
    assert wanted.notes == ()
    assert draw_pictures(small, recipe_of(), [7], kept=kept).notes == ()  # it is not tried again


def test_running_out_of_memory_is_not_taken_for_a_failed_recording(small):
    class Full(StandIn):
        def record(self, compute, device):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        draw_pictures(small, recipe_of(), [7], kept=KeptPasses(Full()))


def test_where_weights_lie_elsewhere_nothing_is_recorded(small):
    assert not GraphRecorder().can([small], torch.device("cpu"))
    assert not GraphRecorder().can([small], torch.device("cuda"))
    assert not StandIn().can([small], torch.device("meta"))


def test_without_a_recorder_every_pass_runs_as_it_is(small):
    kept = KeptPasses()
    draw_pictures(small, recipe_of(), [7], kept=kept)
    assert not kept.find(FixedPass, small, recipe_of(), _shape(small)).captured


def _shape(model):
    from arrag_engine.decode.fixed import shape_of

    return shape_of(model, recipe_of(), 1, 1, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("window", [1, 4])
def test_a_cuda_graph_draws_the_same_picture(small, window):
    small.cuda()
    kept, cuda = KeptPasses(GraphRecorder()), torch.device("cuda")
    wanted = draw_pictures(small, recipe_of(), [7], window, device=cuda, kept=KeptPasses())
    for _ in range(2):
        found = draw_pictures(small, recipe_of(), [7], window, device=cuda, kept=kept)
        assert torch.equal(found.tokens, wanted.tokens)
        assert found.notes == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@torch.inference_mode()  # as every pass runs
def test_a_failed_recording_leaves_cuda_as_it_was():
    recorder, cuda, x = GraphRecorder(), torch.device("cuda"), torch.zeros(3, device="cuda")
    here = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        recorder.record(lambda: x.add_(1).cpu(), cuda)  # a recording cannot wait
    assert torch.cuda.current_stream() == here
    assert torch.rand(2, device="cuda").unique().numel() == 2
    x.zero_()
    graph = recorder.record(lambda: x.add_(1), cuda)
    x.zero_()
    graph.replay()
    assert x.tolist() == [1, 1, 1]
    before, large = torch.cuda.memory_allocated(), torch.ones(2**20, device="cuda")
    del large
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before, "memory is freed again"


class Streams:
    """As much of `torch.cuda` as a recording uses; ending it fails, as after a forbidden call."""

    def __init__(self):
        self.here, self.events = Mock(), []

    def current_stream(self, device):
        return self.here

    @contextmanager
    def stream(self, stream):
        before, self.here = self.here, stream
        try:
            yield
        finally:
            self.here = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ((0, 7), "thread_local")
        self.here = stream
        self.events.append("recording")
        try:
            yield
        finally:  # PyTorch does not go back to the former stream
            raise RuntimeError("operation failed due to a previous error during capture")


def test_after_a_failed_recording_stream_and_allocator_are_as_before(monkeypatch):
    fake, ended = Streams(), []
    for name in ("current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "Stream", Mock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda *where: ended.append(where), raising=False
    )
    before = fake.here

    def compute():
        if fake.events:
            raise RuntimeError("not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="previous error") as raised:
        GraphRecorder().record(compute, torch.device("cuda", 1))
    assert "not permitted" in str(raised.value.__context__)
    assert fake.here is before
    assert ended == [(1, (0, 7))]
