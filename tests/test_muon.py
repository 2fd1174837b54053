"""Muon: what its steps are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mffsr.training.muon import RMS, Muon, build_optimizers, orthogonalise, set_rate


@pytest.mark.parametrize("shape", [(8, 8), (3, 16, 144), (32, 576)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    found = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * 1e-3))
    assert 0.6 < found.min() <= found.max() < 1.3


def test_singular_vectors_stay():
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(16, 40), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.5, 2, 16)) @ v
    rotated = u.mT @ orthogonalise(matrix) @ v.mT
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-4


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 32, 3), nn.Conv2d(64, 8, 1), nn.ConvTranspose2d(16, 16, 4)])
def test_a_step_has_the_size_of_adams_and_goes_downhill(layer):
    weight = layer.weight
    before = weight.detach().clone()
    (weight.square().sum() / 2).backward()
    Muon([weight], lr=1e-2).step()
    moved = weight.detach() - before
    assert moved.square().mean().sqrt() == pytest.approx(RMS * 1e-2, rel=0.3)
    assert (moved * before).sum() < 0


def test_steps_follow_the_running_mean_and_look_ahead():
    torch.manual_seed(2)
    weight, gradients = nn.Parameter(torch.zeros(8, 4, 3, 3)), torch.randn(3, 8, 4, 3, 3)
    optimizer, mean = Muon([weight], lr=0.1, momentum=0.8), torch.zeros(8, 36)
    for gradient in gradients:
        before, weight.grad = weight.detach().clone(), gradient
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient.flatten(1)
        expected = orthogonalise(0.8 * mean + 0.2 * gradient.flatten(1)) * (0.1 * RMS * 6)
        torch.testing.assert_close((before - weight.detach()).flatten(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [1.0, torch.tensor(1.0)], ids=["float", "tensor"])
def test_the_rate_that_is_set_is_that_of_the_next_step(rate):
    weight = nn.Parameter(torch.ones(8, 8, 1, 1))
    optimizer = Muon([weight], lr=rate)
    lengths = []
    for _ in range(2):
        before = weight.detach().clone()
        weight.grad = torch.eye(8)[:, :, None, None]
        set_rate(optimizer, 0.5)
        optimizer.step()
        lengths.append(float((weight.detach() - before).norm()))
        optimizer.state.clear()
        set_rate(optimizer, 0.25)
        optimizer.step()
        lengths.append(float((weight.detach() - before).norm()) - lengths[-1])
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2] * 2, rel=1e-3)


def test_memory_formats_do_not_matter():
    torch.manual_seed(1)
    gradient, start = torch.randn(2, 16, 8, 3, 3)
    ends = []
    for memory in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone().to(memory_format=memory))
        optimizer = Muon([weight], lr=0.1)
        for _ in range(3):
            weight.grad = gradient.clone().to(memory_format=memory)
            optimizer.step()
        ends.append(weight.detach().contiguous())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_convolutions_are_muons_and_the_rest_is_adams():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 3, 3), nn.Linear(16, 16))
    muon, adam = build_optimizers(list(network.parameters()), 1e-3)
    assert [len(o.param_groups[0]["params"]) for o in (muon, adam)] == [1, 7]
    assert isinstance(muon, Muon)
    assert [type(o) for o in build_optimizers([network[2].weight], 1e-3)] == [torch.optim.Adam]
