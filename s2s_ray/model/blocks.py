"""Building blocks of the networks: spectrally normalised convolutions and residual blocks.

With `circular` the columns of an image are the whole horizon, without a seam: what a convolution needs to the left of
the first column it takes from the last ones, and the reverse. Rolling its input by whole strides then rolls its output.

Sources: the supplement's figures 1 to 3, Miyato et al. 2018 (spectral normalisation).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.model.precision import at_least_float32


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weight is divided by an estimate of its largest singular value.

    The estimate is u . W v with the stored vectors. Only `power_iterate` updates them, never the forward pass: the
    training cycle decides when. A bias whose effect the following instance norm removes (`idle_bias`) exists for
    published checkpoints but is not trained: its gradient is rounding noise, which Adam would turn into full steps.
    """

    EPS = 1e-12
    folded = False
    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        padding_mode: Literal["reflect", "zeros"] = "reflect",
        bias: bool = True,
        idle_bias: bool = False,
        circular: bool = False,
    ) -> None:
        mode: Literal["reflect", "zeros"] = padding_mode if padding else "zeros"
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias, padding_mode=mode)
        self.circular = circular and padding > 0
        if self.bias is not None and idle_bias:
            self.bias.requires_grad_(False)
        matrix = self.weight.flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(matrix.shape[0]), dim=0, eps=self.EPS))
        self.register_buffer("weight_v", F.normalize(torch.randn(matrix.shape[1]), dim=0, eps=self.EPS))
        for _ in range(15):
            self.power_iterate()

    @torch.no_grad()
    def power_iterate(self) -> None:
        """Perform one step of the power iteration on the stored singular vectors."""
        matrix = self.weight.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=self.EPS))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=self.EPS))

    def normalised_weight(self) -> Tensor:
        """Return the weight divided by the estimate, in the precision of the weight."""
        if self.folded:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            # The vectors are cloned so that a later power iteration does not change the inputs of the backward pass.
            sigma = self.weight_u.clone() @ (self.weight.flatten(1) @ self.weight_v.clone())
            return self.weight / sigma

    def fold(self) -> None:
        """Replace the weight by the divided one, irreversibly."""
        self.weight = nn.Parameter(self.normalised_weight().detach(), requires_grad=False)
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        if self.circular:
            x = _wrapped(x, self)
            rows = _padding(self)[0]
            if self.padding_mode == "reflect":
                x, rows = F.pad(x, (0, 0, rows, rows), mode="reflect"), 0
            return F.conv2d(x, self.normalised_weight(), self.bias, self.stride, (rows, 0))
        result: Tensor = self._conv_forward(x, self.normalised_weight(), self.bias)
        return result


class HorizonConv2d(nn.Conv2d):
    """A plain convolution of the whole horizon: columns continue at the other end, rows are padded with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(_wrapped(x, self), self.weight, self.bias, self.stride, (_padding(self)[0], 0))


def conv_class(circular: bool) -> type[nn.Conv2d]:
    """Return the class of convolutions without spectral norm, zero padded or of the whole horizon."""
    return HorizonConv2d if circular else nn.Conv2d


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """Return the padding of rows and columns, which PyTorch also accepts in words."""
    assert not isinstance(conv.padding, str), conv.padding
    return conv.padding


def _wrapped(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Continue the columns at both ends, so that the convolution makes one column for each of its strides."""
    left = _padding(conv)[1]
    result: Tensor = _Wrapping.apply(x, left, conv.kernel_size[1] - conv.stride[1] - left)  # type: ignore[no-untyped-call]
    return result


class _Wrapping(torch.autograd.Function):
    """Columns continued at both ends: ... w -> ... left+w+right, with left and right at most w.

    The gradient of the copied columns is added in place. For the same slices PyTorch's own would fill and add an image
    of zeros for each end, which made a training step on CPUs a tenth longer.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, left: int, right: int) -> Tensor:
        ctx.left, ctx.right = left, right  # type: ignore[attr-defined]
        return torch.cat([x[..., x.shape[-1] - left :], x, x[..., :right]], -1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        left, right = ctx.left, ctx.right  # type: ignore[attr-defined]
        width = gradient.shape[-1] - left - right
        total = gradient[..., left : left + width].clone()
        total[..., width - left :] += gradient[..., :left]
        total[..., :right] += gradient[..., left + width :]
        return total, None, None


def power_iterate(network: nn.Module) -> None:
    """Perform one power iteration in every spectrally normalised convolution of a network in training mode."""
    for module in network.modules():
        if isinstance(module, SpectralConv2d) and module.training:
            module.power_iterate()


def conv_then_pool(conv: SpectralConv2d, x: Tensor) -> Tensor:
    """Compute `avg_pool2d(conv(x), 2)` for a 3x3 convolution with padding 1 as one 4x4 convolution with stride 2.

    Each output is the mean of the convolution at four neighbours, so the kernel is the mean of the 3x3 kernel at four
    offsets. An output takes 16 products instead of 36.

    Args:
        x: B C h w, h and w even.

    Returns: B out h/2 w/2.
    """
    kernel = _over_four_pixels(conv.normalised_weight()) / 4
    return F.conv2d(_bordered(x, conv.padding_mode, conv.circular), kernel, conv.bias, stride=2)


def upsample_then_conv(conv: SpectralConv2d, x: Tensor) -> Tensor:
    """Compute `conv(interpolate(x, scale_factor=2))`, nearest, for a 3x3 convolution with padding 1.

    It is one transposed 4x4 convolution: a pixel of x becomes four equal pixels in the upsampled image, so its
    contribution to its neighbourhood is the sum of the flipped 3x3 kernel at four offsets. An output takes 4 products
    instead of 9. Reflecting the upsampled image at its border repeats the border of x (with zero padding it is zero);
    beyond the ends of a whole horizon it is the column of x at the other end.

    Args:
        x: B C h w.

    Returns: B out 2h 2w.
    """
    if x.shape[0] == 0:  # a worker's share may be empty, and PyTorch does not pad an empty batch
        return cast(Tensor, conv(F.interpolate(x, scale_factor=2, mode="nearest")))
    kernel = _over_four_pixels(conv.normalised_weight().flip(2, 3).transpose(0, 1))
    bordered = _bordered(x, "replicate" if conv.padding_mode == "reflect" else conv.padding_mode, conv.circular)
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
        kernel, bordered = kernel.to(half), bordered.to(half)
    bias = None if conv.bias is None else conv.bias.to(bordered.dtype)
    result: Tensor = _Upsampling.apply(bordered, kernel, bias)  # type: ignore[no-untyped-call]
    return result


def _over_four_pixels(kernel: Tensor) -> Tensor:
    """Return the sum of a kernel at the four offsets of a 2x2 square: a b 3 3 -> a b 4 4."""
    return sum(F.pad(kernel, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1))  # type: ignore[return-value]


class _Upsampling(torch.autograd.Function):
    """A transposed 4x4 convolution with stride 2 without its outer three pixels: B C h+2 w+2 -> B out 2h 2w.

    Its gradients are computed by the strided convolution that it is the adjoint of. Those that PyTorch computes for a
    transposed convolution with padding are equal, but five times slower on CPUs (channels last).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, bordered: Tensor, kernel: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(bordered, kernel)
        return F.conv_transpose2d(bordered, kernel, bias, stride=2, padding=3)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        bordered, kernel = ctx.saved_tensors  # type: ignore[attr-defined]
        wide = F.pad(gradient, (3, 3, 3, 3))
        at_kernel = torch.ops.aten.convolution_backward(
            bordered, wide, kernel, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        at_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None  # type: ignore[attr-defined]
        return F.conv2d(wide, kernel, stride=2), at_kernel, at_bias


def _bordered(x: Tensor, mode: str, circular: bool) -> Tensor:
    """Add a border of one pixel: B C h w -> B C h+2 w+2."""
    if circular:
        x = _Wrapping.apply(x, 1, 1)  # type: ignore[no-untyped-call]
        if mode == "replicate":
            return torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return F.pad(x, (0, 0, 1, 1), mode="constant" if mode == "zeros" else mode)
    if mode == "replicate" and torch.compiler.is_compiling():  # which has no backward for replication_pad2d
        rows = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return torch.cat([rows[..., :1], rows, rows[..., -1:]], 3)
    return F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)


class InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's instance norm that also accepts an empty batch: a worker's share of a short batch may be empty.

    On CPUs PyTorch's own converts channels-last images with slow strided copies; a batch norm of each image computes
    the same and reads them directly.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[0] == 0:
            return input * self.weight[:, None, None] + self.bias[:, None, None]
        if torch.compiler.is_compiling():
            return self._by_its_moments(input)
        if input.device.type == "cpu" and is_channels_last(input):
            affine = (self.weight, self.bias)
            images = [F.batch_norm(image, None, None, *affine, True, 0.0, self.eps) for image in torch.split(input, 1)]
            return images[0] if len(images) == 1 else torch.cat(images)
        return super().forward(input)

    def _by_its_moments(self, x: Tensor) -> Tensor:
        """Compute the definition, at least in float32; a compiler fuses it with its neighbours in any memory order."""
        images = at_least_float32(x)
        variance, mean = torch.var_mean(images, (2, 3), correction=0, keepdim=True)
        normalised = (images - mean) * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def is_channels_last(x: Tensor) -> bool:
    """Return whether B C h w is stored as B h w C."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def instance_norm(channels: int) -> nn.InstanceNorm2d:
    """Return the model's instance norm: affine, eps 1e-5, no running statistics."""
    return InstanceNorm2d(channels, eps=1e-5, affine=True, track_running_stats=False)


class DownBlock(nn.Module):
    """Residual downsampling block (figure 1): B in h w -> B out h/2 w/2, before its instance norm."""

    def __init__(self, in_channels: int, out_channels: int, *, circular: bool = False) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1, circular=circular)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1, idle_bias=True, circular=circular)
        self.skip = SpectralConv2d(in_channels, out_channels, 1, idle_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        main = conv_then_pool(self.conv2, F.relu(self.conv1(F.relu(x)), inplace=True))
        skip: Tensor = self.skip(F.avg_pool2d(x, 2))  # a 1x1 convolution commutes with pooling
        return main + skip


class ResidualBlock(nn.Module):
    """Residual block of the bottleneck (figure 2): B C h w -> B C h w."""

    def __init__(self, channels: int, *, circular: bool = False) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(channels, channels, 3, padding=1, idle_bias=True, circular=circular)
        self.norm1 = instance_norm(channels)
        self.conv2 = SpectralConv2d(channels, channels, 3, padding=1, idle_bias=True, circular=circular)
        self.norm2 = instance_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        main: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        return x + main


class UpBlock(nn.Module):
    """Residual upsampling block (figure 3): B in h w -> B out 2h 2w, before its instance norm."""

    def __init__(self, in_channels: int, out_channels: int, *, circular: bool = False) -> None:
        super().__init__()
        self.norm1 = instance_norm(in_channels)
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1, idle_bias=True, circular=circular)
        self.norm2 = instance_norm(out_channels)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1, idle_bias=True, circular=circular)
        self.skip = SpectralConv2d(in_channels, out_channels, 1, idle_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        main = upsample_then_conv(self.conv1, F.relu(self.norm1(x), inplace=True))
        main = cast(Tensor, self.conv2(F.relu(self.norm2(main), inplace=True)))
        skip: Tensor = self.skip(x)  # a 1x1 convolution commutes with nearest upsampling
        return main + F.interpolate(skip, scale_factor=2, mode="nearest")
