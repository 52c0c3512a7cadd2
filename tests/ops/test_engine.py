"""Which engines there are, what each can do, and which one computes."""

import pytest
import torch
from helpers.oracle import make, make_network

from nnunet_octreenca.ops import cpu_engine, cuda_engine, engine_for, engine_named, torch_engine
from nnunet_octreenca.ops.engine import ENGINES, BandEngine, Engine, OctreeEngine, WindowEngine
from nnunet_octreenca.ops.native import ENGINE_VARIABLE, cpu_module

STATE, WEIGHTS = make((4, 5), 13, 1, 9, 1)
needs_cpp = pytest.mark.skipif(cpu_module() is None, reason="the C++ engine is not built")


@pytest.mark.parametrize(
    ("engine", "name", "kinds"),
    [
        (torch_engine, "torch", {WindowEngine}),
        (cpu_engine, "cpu", {OctreeEngine, BandEngine}),
        (cuda_engine, "cuda", {OctreeEngine, WindowEngine}),
    ],
)
def test_names_and_abilities(engine, name, kinds):
    assert engine_named(name) is engine
    assert isinstance(engine, Engine)
    assert {
        kind for kind in (OctreeEngine, WindowEngine, BandEngine) if isinstance(engine, kind)
    } == (kinds)


def test_every_engine_can_stream_an_image():
    """inference.stream has a way for bands and one for windows."""
    assert all(isinstance(engine, (BandEngine, WindowEngine)) for engine in ENGINES)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'cuda12' must be one of 'cpu', 'cuda', 'torch'"):
        engine_named("cuda12")


@needs_cpp
def test_the_fastest_that_supports_a_tensor_computes(monkeypatch):
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert engine_for(STATE, WEIGHTS) is cpu_engine
    assert engine_for(STATE.half(), WEIGHTS) is torch_engine
    monkeypatch.setenv(ENGINE_VARIABLE, "torch")
    assert engine_for(STATE, WEIGHTS) is torch_engine


@needs_cpp
def test_reasons_name_the_tensor_whatever_is_wanted(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "torch")
    assert torch_engine.unsupported_reason(STATE, WEIGHTS) is None
    assert cpu_engine.unsupported_reason(STATE, WEIGHTS) is None
    assert "not on torch.float16 on cpu" in cpu_engine.unsupported_reason(STATE.half(), WEIGHTS)
    assert "not on torch.float32 on cpu" in cuda_engine.unsupported_reason(STATE, WEIGHTS)


def test_a_missing_module_is_the_reason(monkeypatch):
    monkeypatch.setattr(cpu_engine, "cpu_module_problem", lambda: "no such file")
    assert cpu_engine.unsupported_reason(STATE, WEIGHTS) == (
        "the C++ module is not there (no such file)"
    )


@pytest.mark.parametrize("engine", [torch_engine, pytest.param(cpu_engine, marks=needs_cpp)])
@pytest.mark.parametrize("channels", [5, 13, 16])
def test_trajectories_have_the_channels_that_fake_tensors_promise(engine, channels):
    state, weights = make((4, 5), channels, 1, 9, 1)
    draws = torch_engine.FireDraws(0.5, 0, 0, [0, 0])
    _, trajectory = engine.forward(state, weights, 3, draws, True)
    assert trajectory.shape == (3, 1, 4, 5, engine.trajectory_channels(channels, channels - 1))


@pytest.mark.parametrize("channels", [1, 13, 16, 17])
def test_padding_is_the_least_that_fills_whole_groups(channels):
    for engine, group in ((torch_engine, 1), (cuda_engine, 16)):
        padded = engine.padded_channels(channels)
        assert padded % group == 0
        assert channels <= padded < channels + group


@needs_cpp
@pytest.mark.parametrize(
    ("image", "engine", "why"),
    [
        (torch.zeros(1, 3, 8, 9, dtype=torch.float64), "", "this image is torch.float64"),
        (torch.zeros(1, 3, 8, 9), "torch", "OCTREENCA_ENGINE turns both off"),
    ],
)
def test_a_refused_precision_says_why(image, engine, why, monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, engine)
    network, _ = make_network((8, 9))
    with pytest.raises(ValueError, match=f"state='float16' need the C.. engine .*{why}"):
        network.to(image.dtype).segment(image, state="float16")
