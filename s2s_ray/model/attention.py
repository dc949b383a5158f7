"""Attention: the non-local block of G and D, and what pools local features to descriptors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.model.blocks import SpectralConv2d
from s2s_ray.model.precision import at_least_float32


class NonLocalBlock(nn.Module):
    """Self-attention over positions, as in SAGAN: y = gamma * o(softmax(q.k) v) + x, no scaling of q.k.

    1x1 convolutions without bias, spectral norm; key and value are max-pooled 2x2. gamma starts at 0.
    B C h w -> B C h w, with h and w even. Source: Zhang et al. 2019; Wang et al. 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = SpectralConv2d(channels, channels // 8, 1, bias=False)
        self.key = SpectralConv2d(channels, channels // 8, 1, bias=False)
        self.value = SpectralConv2d(channels, channels // 2, 1, bias=False)
        self.output = SpectralConv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        key = F.max_pool2d(self.key(x), 2).flatten(2).transpose(1, 2)
        value = F.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        attended = attend(query, key, value)
        attended = attended.transpose(1, 2).reshape(x.shape[0], value.shape[2], *x.shape[2:])
        result: Tensor = x + self.gamma * self.output(attended)
        return result


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(q.k) v without the matrix of all pairs of positions in memory: B n d, B m d, B m e -> B n e.

    PyTorch's fused kernels expect a dimension of heads, here one. The kernel for CPUs also needs d = e; appending zeros
    to query and key changes no product.
    """
    if query.device.type == "cpu" and query.shape[2] < value.shape[2]:
        missing = value.shape[2] - query.shape[2]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    query, key, value = (x.contiguous()[:, None] for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]


class SpatialAttention(nn.Module):
    """Spatial-aware feature aggregation: local features B C h w -> unit descriptors B (C*k), float32.

    Each of the k masks is a two-layer linear map n -> n//2 -> n of the channel-wise maximum, n = h*w. A descriptor is
    the mask-weighted sum of the features over positions, flattened channel-major and L2-normalised. n is fixed by the
    resolution. Features count by the share of their pixels that was seen, B 1 h w, if it is given.

    Source: docs/model.md, "Retrieval" (the main paper's SA module; Shi et al. 2019).
    """

    def __init__(self, height: int, width: int, masks: int) -> None:
        super().__init__()
        n = height * width
        self.shape = (height, width)
        self.w1 = nn.Parameter(torch.empty(n, n // 2, masks))
        self.b1 = nn.Parameter(torch.empty(1, n // 2, masks))
        self.w2 = nn.Parameter(torch.empty(n // 2, n, masks))
        self.b2 = nn.Parameter(torch.empty(1, n, masks))
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            nn.init.normal_(weight, 0.0, 0.005)
            nn.init.constant_(bias, 0.1)

    def forward(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        self._check(features)
        with torch.autocast(features.device.type, enabled=False):
            local = weighted(at_least_float32(features), share).flatten(2)
            return F.normalize((local @ self._masks(local.amax(dim=1))).flatten(1), dim=1)

    def turned(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the descriptors of the features rolled right by 0, 1, ... w - 1 columns, B w (C*k), float32.

        The masks depend on the roll through the maxima alone, which are rolled instead of the features; the masks of a
        roll are rolled back and applied to the features as they are.
        """
        self._check(features)
        with torch.autocast(features.device.type, enabled=False):
            local = weighted(at_least_float32(features), share)
            count, (height, width) = len(local), self.shape
            column = torch.arange(width, device=local.device)
            target = (column[None] + column[:, None]) % width  # w w: where each roll shows a column
            maxima = rolls(local.amax(dim=1)).movedim(-2, 1)  # B roll h w
            masks = self._masks(maxima.reshape(count * width, height * width))
            masks = masks.view(count, width, height, width, masks.shape[2])
            masks = masks.gather(3, target[None, :, None, :, None].expand_as(masks))
            masks = masks.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # B n (roll*k)
            sums = (local.flatten(2) @ masks).view(count, local.shape[1], width, self.b1.shape[2])
            return F.normalize(sums.transpose(1, 2).flatten(2), dim=2)

    def _masks(self, maxima: Tensor) -> Tensor:
        """Return the k masks of channel-wise maxima: B n -> B n k."""
        # einsum would copy w1 into another memory order
        hidden = (maxima @ self.w1.flatten(1)).view(len(maxima), *self.w1.shape[1:]) + self.b1
        return torch.einsum("bmk,mnk->bnk", hidden, self.w2) + self.b2

    def _check(self, features: Tensor) -> None:
        if tuple(features.shape[-2:]) != self.shape:
            raise ValueError(f"features have size {tuple(features.shape[-2:])}, this attention expects {self.shape}")


class AzimuthPooling(nn.Module):
    """Aggregation that keeps the azimuth: local features B C h w -> unit descriptors B (k*w), float32.

    A column of features becomes k numbers by one linear map, the same for all columns; the vector of all columns,
    flattened k-major, is L2-normalised. So a descriptor is turned by rolling its columns, and columns of which nothing
    was seen are zero: the product with the descriptor of a tile is then that of the seen directions alone. With
    `even_columns` all columns have the same norm, as those of tiles, of which everything is known; otherwise the norm
    of a column is a learned weight of its direction.

    The share of its pixels that was seen, B 1 h w, weighs every feature and, averaged over the column, the bias.
    """

    def __init__(self, channels: int, height: int, width: int, numbers: int, *, even_columns: bool) -> None:
        super().__init__()
        self.shape = (height, width)
        self.even_columns = even_columns
        self.column = nn.Conv2d(channels, numbers, (height, 1))

    def forward(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        if tuple(features.shape[-2:]) != self.shape:
            raise ValueError(f"features have size {tuple(features.shape[-2:])}, this pooling expects {self.shape}")
        assert self.column.bias is not None
        with torch.autocast(features.device.type, enabled=False):
            sums = F.conv2d(weighted(at_least_float32(features), share), self.column.weight).squeeze(2)
            bias = self.column.bias[:, None]
            columns = sums + (bias if share is None else bias * share.to(sums).mean(2))
            if self.even_columns:
                columns = F.normalize(columns, dim=1)
            return F.normalize(columns.flatten(1), dim=1)

    def turned(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the descriptors of the features rolled right by 0, 1, ... w - 1 columns, B w (k*w), float32."""
        return self.turn(self(features, share))

    def turn(self, descriptors: Tensor) -> Tensor:
        """Return descriptors B D for every roll of their columns, B w D."""
        columns = descriptors.view(len(descriptors), self.column.out_channels, self.shape[1])
        return rolls(columns).transpose(1, 2).flatten(2)


def weighted(features: Tensor, share: Tensor | None) -> Tensor:
    """Return local features B C h w times the share of their pixels that was seen, B 1 h w; None: all."""
    return features if share is None else features * share.to(features)


def rolls(columns: Tensor) -> Tensor:
    """Return ... w rolled right by 0, 1, ... w - 1 columns: ... w w, entry t of the last but one dimension by t."""
    width = columns.shape[-1]
    column = torch.arange(width, device=columns.device)
    return columns[..., (column[None] - column[:, None]) % width]
