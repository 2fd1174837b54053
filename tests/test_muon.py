"""Muon: what its steps are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mffsr.training.muon import RMS, Muon, build_optimizers, orthogonalise


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
