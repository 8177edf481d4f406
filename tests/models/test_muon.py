"""Muon against its formula, against torch's own on matrices, and against AdamW on what is no kernel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.muon import POLYNOMIAL, Muon, is_kernel, orthogonal
from models.schedules import build_optimizer
from utils.optim_config import OptimConfig


def by_the_formula(matrix: torch.Tensor) -> torch.Tensor:
    a, b, c = POLYNOMIAL
    found = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = found @ found.T
        found = a * found + b * square @ found + c * square @ square @ found
    return found


@pytest.mark.parametrize("shape", [(16, 27), (128, 3456), (64, 8), (5, 5)])
def test_singular_values_end_alike_and_their_vectors_stay(shape):
    torch.manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(side, min(shape)))[0] for side in shape)
    values = torch.logspace(0, -1.5, min(shape))
    matrix = left * values @ right.T
    found = orthogonal(matrix)
    torch.testing.assert_close(found.double(), by_the_formula(matrix), rtol=0, atol=1e-5)
    # In the same directions, each between 0.6 and 1.25 times as long as one.
    turned = left.T @ found @ right
    ends = turned.diagonal()
    assert ends.min() > 0.6 and ends.max() < 1.25
    torch.testing.assert_close(turned, torch.diag(ends), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonal(matrix.T.contiguous()), found.T, rtol=0, atol=1e-5)


def test_nothing_has_no_direction():
    assert torch.equal(orthogonal(torch.zeros(4, 6)), torch.zeros(4, 6))


def train(optimizer: torch.optim.Optimizer, weight: nn.Parameter, shape: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(3)
    for _ in range(30):
        weight.grad = torch.randn(shape).reshape(weight.shape)
        optimizer.step()
    return weight.detach().reshape(shape)


@pytest.mark.parametrize("shape", [(16, 54), (48, 24)])
def test_a_kernel_moves_as_a_matrix_does_by_the_muon_of_torch(shape):
    start = torch.randn(shape)
    kernel = nn.Parameter(start.reshape(shape[0], -1, 2, 3, 1).clone())
    matrix = nn.Parameter(start.clone())
    known = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    ours = train(Muon([kernel], lr=0.02, weight_decay=0.3), kernel, shape)
    theirs = train(known, matrix, shape)
    moved = (theirs - start).abs().mean()
    # torch computes the directions in bf16, which is 0.002 of the way; a momentum of 0.94 is 0.018.
    assert (ours - theirs).abs().mean() < 0.008 * moved


def test_what_is_no_kernel_moves_as_by_adamw():
    network = nn.Sequential(nn.Conv3d(2, 4, 1), nn.InstanceNorm3d(4, affine=True), nn.Linear(3, 5))
    other = copy.deepcopy(network)
    assert not any(map(is_kernel, network.parameters()))
    optimizers = (
        Muon(network.parameters(), lr=0.01, weight_decay=0.1),
        torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1),
    )
    for seed in range(5):
        for each, optimizer in zip((network, other), optimizers, strict=True):
            torch.manual_seed(seed)
            for parameter in each.parameters():
                parameter.grad = torch.randn_like(parameter) * 0.01
            optimizer.step()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_the_steps_of_a_cpu():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(4, 8, 3), nn.Conv3d(8, 2, 1))
    found = []
    for device in ("cpu", "cuda"):
        network = copy.deepcopy(plain).to(device)
        optimizer = Muon(network.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(3):
            network(torch.ones(1, 4, 5, 5, 5, device=device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([parameter.detach().cpu() for parameter in network.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)


def test_layout_and_what_has_no_gradient_change_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(4, 8, 3), nn.ConvTranspose3d(8, 4, 2, stride=2), nn.Conv3d(4, 2, 1))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    assert [is_kernel(parameter) for parameter in plain.parameters()] == [True, False, True, False, False, False]
    unused = nn.Parameter(torch.ones(3))
    found = []
    for network in (plain, last):
        optimizer = Muon([*network.parameters(), unused], lr=0.01, weight_decay=0.1)
        for _ in range(3):
            network(torch.ones(1, 4, 5, 5, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([parameter.detach() for parameter in network.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    assert torch.equal(unused, torch.ones(3))


def test_it_is_one_of_the_optimisers_and_takes_a_closure():
    weight = nn.Parameter(torch.ones(4, 3, 3))
    options = OptimConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer([weight], options, fused=True)
    assert isinstance(optimizer, Muon)
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.param_groups[0]["weight_decay"] == 0.5

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 36
    assert weight.square().sum() < 36
