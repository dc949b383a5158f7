"""Each building block against its plain form: convolutions, attention, spectral and batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.model.attention import NonLocalBlock, SpatialAttention
from s2s_ray.model.batchnorm import GlobalBatchNorm2d, track_statistics
from s2s_ray.model.blocks import (
    DownBlock,
    SpectralConv2d,
    UpBlock,
    conv_class,
    conv_then_pool,
    power_iterate,
    upsample_then_conv,
)
from s2s_ray.model.discriminator import Discriminator
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(residual_blocks=6)
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def normalised_weight(conv: SpectralConv2d) -> Tensor:
    """W / (u . W v), written out."""
    matrix = conv.weight.reshape(conv.weight.shape[0], -1)
    return conv.weight / torch.dot(conv.weight_u, torch.mv(matrix, conv.weight_v))


def plain_conv(conv: SpectralConv2d, x: Tensor) -> Tensor:
    """A reflection-padded convolution of the generator as the specification writes it."""
    pad = conv.kernel_size[0] // 2
    return F.conv2d(F.pad(x, (pad,) * 4, mode="reflect") if pad else x, normalised_weight(conv), conv.bias)


def assert_same_function(ours: nn.Module, plain: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Equal outputs, and equal gradients of the input and of every trained parameter."""
    parameters = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    results = []
    for function in (ours, plain):
        source = x.clone().requires_grad_()
        output = function(source)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).cos()
        results.append((output, *torch.autograd.grad((output * weights).sum(), [source, *parameters])))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


# Attention


def test_the_non_local_block_is_a_softmax_over_positions() -> None:
    block = NonLocalBlock(16).double()
    nn.init.constant_(block.gamma, 0.3)

    def naive(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape

        def project(conv: SpectralConv2d, features: Tensor) -> Tensor:
            return torch.einsum("oc,bchw->bohw", normalised_weight(conv)[:, :, 0, 0], features)

        def pooled(features: Tensor) -> Tensor:
            return features.reshape(batch, -1, height // 2, 2, width // 2, 2).amax((3, 5)).flatten(2)

        query, key, value = project(block.query, x).flatten(2), project(block.key, x), project(block.value, x)
        scores = torch.einsum("bcn,bcm->bnm", query, pooled(key))
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        mixed = torch.einsum("bnm,bcm->bcn", weights, pooled(value)).reshape(batch, channels // 2, height, width)
        return block.gamma * project(block.output, mixed) + x

    x = torch.randn(2, 16, 6, 10, dtype=DOUBLE)
    assert (block(x) - x).abs().max() > 1e-3
    assert_same_function(block, naive, x)


def test_the_non_local_block_starts_as_the_identity() -> None:
    block = NonLocalBlock(8)
    x = torch.randn(1, 8, 4, 6)
    assert torch.equal(block(x), x)


def test_spatial_attention_position_by_position() -> None:
    attention = SpatialAttention(3, 5, masks=2).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)  # as it starts, every hidden number is positive
    features = torch.randn(2, 4, 3, 5, dtype=DOUBLE)
    expected = torch.zeros(2, 4, 2, dtype=DOUBLE)
    for b in range(2):
        strongest = features[b].reshape(4, 15).max(0).values
        for k in range(2):
            hidden = strongest @ attention.w1[:, :, k] + attention.b1[0, :, k]
            mask = hidden @ attention.w2[:, :, k] + attention.b2[0, :, k]
            for c in range(4):
                expected[b, c, k] = (features[b, c].reshape(15) * mask).sum()
    flat = expected.reshape(2, 8)  # channel-major: C0 k0, C0 k1, C1 k0, ...
    torch.testing.assert_close(attention(features), flat / flat.pow(2).sum(1, keepdim=True).sqrt())
    assert attention.w1.shape == (15, 7, 2)


def test_spatial_attention_refuses_another_resolution() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(3, 5\)"):
        SpatialAttention(3, 5, masks=2)(torch.zeros(1, 4, 5, 3))


# The horizon


def horizon_conv(weight: Tensor, bias: Tensor, x: Tensor, stride: int, padding: int, mode: str) -> Tensor:
    """A convolution pixel by pixel, whose columns are numbered modulo the width."""
    (height, width), kernel = x.shape[2:], weight.shape[2]
    rows, columns = (height + 2 * padding - kernel) // stride + 1, width // stride
    result = torch.zeros(x.shape[0], weight.shape[0], rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            total = bias.clone()
            for di in range(kernel):
                row = i * stride - padding + di
                if mode == "reflect":
                    row = abs(row) if row < height else 2 * (height - 1) - row
                if 0 <= row < height:
                    for dj in range(kernel):
                        total = total + x[:, :, row, (j * stride - padding + dj) % width] @ weight[:, :, di, dj].T
            result[:, :, i, j] = total
    return result


@pytest.mark.parametrize("mode", ["reflect", "zeros", "plain"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 2, 3), (7, 1, 3), (4, 2, 1), (4, 1, 1)]
)
def test_circular_convolutions_continue_at_the_other_end(mode: Any, kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(2, 3, 6, 8, dtype=DOUBLE)
    if mode == "plain":
        conv = conv_class(circular=True)(3, 4, kernel, stride, padding).double()
        weight = conv.weight
    else:
        conv = SpectralConv2d(3, 4, kernel, stride=stride, padding=padding, padding_mode=mode, circular=True).double()
        weight = normalised_weight(conv)
    assert conv.bias is not None
    expected = horizon_conv(weight, conv.bias, x, stride, padding, mode)
    torch.testing.assert_close(conv(x), expected, atol=1e-12, rtol=0)
    assert conv(x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (7, 2, 3), (4, 1, 1)])
def test_gradients_of_circular_convolutions(kernel: int, stride: int, padding: int) -> None:
    """In both memory orders, which the gradient keeps."""
    conv = SpectralConv2d(2, 3, kernel, stride=stride, padding=padding, circular=True).double()
    x = torch.randn(2, 2, 4, 4, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,))
    images = torch.randn(2, 4, 4, 6, dtype=DOUBLE).to(memory_format=torch.channels_last).requires_grad_()
    wide = conv_class(circular=True)(4, 3, kernel, stride, padding).double()(images)
    (gradient,) = torch.autograd.grad(wide.square().sum(), images)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


# Spectral normalisation


@pytest.mark.parametrize("kernel", [1, 3])
def test_power_iterations_find_the_largest_singular_value(kernel: int) -> None:
    conv = SpectralConv2d(5, 7, kernel, padding=kernel // 2).double()
    nn.init.normal_(conv.weight)
    for _ in range(3000):
        conv.power_iterate()
    sigma = torch.linalg.matrix_norm(conv.weight.reshape(7, -1), 2)
    x = torch.randn(2, 5, 6, 9, dtype=DOUBLE)
    padded = F.pad(x, (kernel // 2,) * 4, mode="reflect") if kernel > 1 else x
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight / sigma, conv.bias), atol=1e-9, rtol=0)


def test_one_power_iteration() -> None:
    conv = SpectralConv2d(4, 6, 3, padding=1).double()
    nn.init.normal_(conv.weight)
    matrix, u = conv.weight.detach().reshape(6, -1), conv.weight_u.clone()
    conv.power_iterate()
    v = matrix.T @ u
    v = v / v.norm()
    u = matrix @ v
    torch.testing.assert_close(conv.weight_v, v)
    torch.testing.assert_close(conv.weight_u, u / u.norm())


@pytest.mark.parametrize("training", [True, False])
def test_forward_never_changes_the_singular_vectors(training: bool) -> None:
    model = S2S(TINY).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(("_u", "_v"))}
    assert before
    x = torch.rand(2, 3, TINY.height, TINY.width) * 2 - 1
    model.discriminator(torch.cat([x, model.generator(x)[0]], 1)).sum().backward()
    state = model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, state[name])] == []


def test_a_network_power_iterates_in_training_mode_only() -> None:
    network = Discriminator(ModelConfig(discriminator_channels=16))
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            nn.init.normal_(module.weight)
    before = {name: value.clone() for name, value in network.state_dict().items() if name.endswith(("_u", "_v"))}
    power_iterate(network.eval())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    power_iterate(network.train())
    assert not any(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def test_a_power_iteration_after_the_forward_does_not_reach_its_gradient() -> None:
    conv = SpectralConv2d(3, 4, 3, padding=1).double()
    x = torch.randn(1, 3, 5, 7, dtype=DOUBLE)
    expected = torch.autograd.grad(conv(x).pow(2).sum(), conv.weight)[0]
    output = conv(x).pow(2).sum()
    conv.power_iterate()
    torch.testing.assert_close(torch.autograd.grad(output, conv.weight)[0], expected, atol=0, rtol=0)


def test_gradients_pass_through_sigma() -> None:
    conv = SpectralConv2d(2, 3, 3, padding=1).double()
    x = torch.randn(1, 2, 4, 5, dtype=DOUBLE)

    def output(weight: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(output, (conv.weight.detach().clone().requires_grad_(),))
    assert_same_function(conv, lambda source: plain_conv(conv, source), x)
    # Larger weights change nothing, so the gradient along the weights themselves is zero.
    gradient = torch.autograd.grad((conv(x) - conv.bias.view(1, 3, 1, 1)).pow(2).sum(), conv.weight)[0]
    assert (gradient * conv.weight).sum().abs().item() < 1e-12


# Blocks


def test_the_down_block_is_its_figure() -> None:
    block = DownBlock(3, 5).double()

    def plain(x: Tensor) -> Tensor:
        main = plain_conv(block.conv2, plain_conv(block.conv1, x.relu()).relu())
        return F.avg_pool2d(main, 2) + F.avg_pool2d(plain_conv(block.skip, x), 2)

    assert_same_function(block, plain, torch.randn(2, 3, 6, 10, dtype=DOUBLE))


def test_the_up_block_is_its_figure() -> None:
    block = UpBlock(5, 3).double()
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def normalise(norm: nn.InstanceNorm2d, x: Tensor) -> Tensor:
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    def upsample(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def plain(x: Tensor) -> Tensor:
        main = plain_conv(block.conv1, upsample(normalise(block.norm1, x).relu()))
        main = plain_conv(block.conv2, normalise(block.norm2, main).relu())
        return main + plain_conv(block.skip, upsample(x))

    assert_same_function(block, plain, torch.randn(2, 5, 3, 5, dtype=DOUBLE))


# Batch normalisation


def batchnorms() -> tuple[GlobalBatchNorm2d, nn.BatchNorm2d]:
    """Ours and PyTorch's with the same parameters and running statistics."""
    theirs = nn.BatchNorm2d(3).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    nn.init.normal_(theirs.running_mean)
    nn.init.uniform_(theirs.running_var, 0.5, 2.0)
    ours = GlobalBatchNorm2d(3).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_batchnorm_equals_pytorchs() -> None:
    ours, theirs = batchnorms()
    x = torch.randn(4, 3, 5, 7, dtype=DOUBLE) * 3 + 1
    with track_statistics(ours):
        for step in range(3):
            mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
            outputs = ours(mine + step), theirs(reference + step)
            torch.testing.assert_close(*outputs, atol=1e-12, rtol=1e-12)
            for output in outputs:
                output.pow(3).sum().backward()
            torch.testing.assert_close(mine.grad, reference.grad, atol=1e-10, rtol=1e-10)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-12, rtol=1e-12)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=0, rtol=0)


def test_batchnorm_statistics_change_only_while_they_are_tracked() -> None:
    ours, theirs = batchnorms()
    network = nn.Sequential(nn.Sequential(ours))
    x = torch.randn(4, 3, 5, 7, dtype=DOUBLE)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.testing.assert_close(network(x), theirs(x), atol=1e-12, rtol=1e-12)  # batch statistics all the same
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in before.items())

    def fail_while_tracking() -> None:
        with track_statistics(network):
            network(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_tracking()
    assert ours.num_batches_tracked == before["num_batches_tracked"] + 1
    network(x)
    assert ours.num_batches_tracked == before["num_batches_tracked"] + 1


def test_a_frozen_batchnorm_uses_its_running_statistics() -> None:
    ours, theirs = batchnorms()
    ours.frozen = True
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = torch.randn(4, 3, 5, 7, dtype=DOUBLE)
    with track_statistics(ours):
        assert torch.equal(ours.train()(x), theirs.eval()(x))
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 10), (14, 6)])
@pytest.mark.parametrize("fused", [conv_then_pool, upsample_then_conv])
def test_fused_convolutions_equal_the_plain_ones(
    fused: Callable[[SpectralConv2d, Tensor], Tensor], mode: Any, height: int, width: int, circular: bool
) -> None:
    """Forward, and the gradients of image, weight and bias, in float64."""
    torch.manual_seed(0)
    conv = SpectralConv2d(5, 7, 3, padding=1, padding_mode=mode, circular=circular).double()
    x = torch.randn(3, 5, height, width, dtype=torch.float64, requires_grad=True)
    if fused is conv_then_pool:
        plain = F.avg_pool2d(conv(x), 2)
    else:
        plain = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    found = fused(conv, x)
    weights = torch.randn_like(plain)
    assert conv.bias is not None
    inputs = [x, conv.weight, conv.bias]
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("fused", "shape"), [(conv_then_pool, (0, 7, 2, 3)), (upsample_then_conv, (0, 7, 8, 12))])
def test_fused_convolutions_accept_an_empty_share(
    fused: Callable[[SpectralConv2d, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    conv = SpectralConv2d(5, 7, 3, padding=1)
    found = fused(conv, torch.zeros(0, 5, 4, 6, requires_grad=True))
    assert found.shape == shape
    found.sum().backward()
    assert conv.weight.grad is not None
    assert not conv.weight.grad.any()
