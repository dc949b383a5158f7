"""Views of unknown heading, whose features are rolled, and views of which a part was seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.errors import ViewError
from s2s_ray.geo.polar import roll_to_north
from s2s_ray.model.attention import AzimuthPooling, NonLocalBlock, SpatialAttention
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.folding import fold
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

DOUBLE = torch.float64
COLUMNS = 9
HORIZON = tiny_model(width=8 * COLUMNS, circular=True)
SEAM = tiny_model(width=8 * COLUMNS)
AZIMUTH = tiny_model(width=8 * COLUMNS, circular=True, pooling="azimuth", azimuth_channels=5)
ROLLS = [1, 4, 8]


def make(config: ModelConfig) -> S2S:
    """Return a float64 model in evaluation mode whose statistics and gammas have an effect."""
    torch.manual_seed(0)
    model = S2S(config).double().eval()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.constant_(module.gamma, 0.3)
        elif isinstance(module, GlobalBatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, SpatialAttention):
            nn.init.normal_(module.w1, std=0.1)  # masks that depend on the image
            nn.init.normal_(module.w2, std=0.1)
    return model


@pytest.fixture(scope="module")
def horizon() -> S2S:
    return make(HORIZON)


@pytest.fixture(scope="module")
def seam() -> S2S:
    return make(SEAM)


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 32, 8 * COLUMNS, dtype=DOUBLE, generator=generator) * 2 - 1


def partly() -> Tensor:
    """Return what is seen of three images: a sector that begins and ends within columns, a band of rows, all."""
    seen = torch.zeros(3, 32, 8 * COLUMNS, dtype=torch.bool)
    seen[0, :, 10:41] = True
    seen[1, 5:20] = True
    seen[2] = True
    return seen


# Without a seam


@torch.no_grad()
@pytest.mark.parametrize("columns", ROLLS)
def test_a_circular_model_rolls_with_its_images(horizon: S2S, columns: int) -> None:
    """The features of both views, the synthesised view and the discriminator's logits."""
    x = images()
    rolled = x.roll(8 * columns, -1)
    pair, rolled_pair = torch.cat([x, x.flip(1)], 1), torch.cat([rolled, rolled.flip(1)], 1)
    for network, whole, turned, columns_of_it in (
        (horizon.retrieval.street_encoder, x, rolled, columns),
        (lambda y: horizon.generator.encoder(y).features, x, rolled, columns),
        (horizon.synthesize, x, rolled, 8 * columns),
        (horizon.discriminator, pair, rolled_pair, columns),
    ):
        torch.testing.assert_close(network(turned), network(whole).roll(columns_of_it, -1), atol=1e-11, rtol=0)


@torch.no_grad()
def test_without_circular_convolutions_a_seam_remains(seam: S2S, horizon: S2S) -> None:
    x = images()
    features = seam.retrieval.street_encoder(x)
    assert (seam.retrieval.street_encoder(x.roll(8, -1)) - features.roll(1, -1)).abs().max() > 1e-3
    assert (horizon.retrieval.street_encoder(x) - features)[..., 4].abs().max() < 1e-12, "far from the ends"
    assert [(name, value.shape) for name, value in seam.state_dict().items()] == [
        (name, value.shape) for name, value in horizon.state_dict().items()
    ]


def test_a_circular_discriminator_has_a_logit_for_each_column() -> None:
    pair = torch.zeros(1, 6, 32, 8 * COLUMNS)
    for variant, rows in (("paper", 4), ("released", 2)):
        config = HORIZON.model_copy(update={"discriminator_variant": variant})
        assert S2S(config).discriminator(pair).shape == (1, 1, rows, COLUMNS)
        config = SEAM.model_copy(update={"discriminator_variant": variant})
        assert S2S(config).discriminator(pair).shape == (1, 1, rows, COLUMNS - 2)


@torch.no_grad()
def test_a_folded_circular_model_is_the_same() -> None:
    model, folded = make(HORIZON), make(HORIZON)
    fold(folded)
    for call in ("embed_street_turned", "embed_satellite", "synthesize"):
        torch.testing.assert_close(getattr(folded, call)(images()), getattr(model, call)(images()), atol=1e-9, rtol=0)


# Unknown heading


@torch.no_grad()
@pytest.mark.parametrize("seen", [None, partly()], ids=["all seen", "partly seen"])
@pytest.mark.parametrize("config", [HORIZON, AZIMUTH], ids=["attention", "azimuth"])
def test_turned_descriptors_are_those_of_rolled_images(config: ModelConfig, seen: Tensor | None) -> None:
    x, model = images(), make(config)
    found = model.embed_street_turned(x, seen)
    assert found.shape == (3, COLUMNS, config.descriptor_size)
    for column in range(COLUMNS):
        heading = column * 360 / COLUMNS
        asked = None if seen is None else roll_to_north(seen, heading)
        expected = model.embed_street(roll_to_north(x, heading), asked)
        torch.testing.assert_close(found[:, column], expected, atol=1e-12, rtol=0)
    assert (found[:, 1:] - found[:, :1]).abs().amax((0, 2)).min() > 1e-3, "no two headings are alike"


@torch.no_grad()
def test_with_a_seam_features_are_rolled_all_the_same(seam: S2S) -> None:
    x = images()
    features = seam.retrieval.street_encoder(x)
    found = seam.embed_street_turned(x)
    for column in range(COLUMNS):
        expected = seam.retrieval.street_attention(features.roll(column, -1))
        torch.testing.assert_close(found[:, column], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[:, 0], seam.embed_street(x), atol=1e-12, rtol=0)


def test_gradients_of_turned_descriptors() -> None:
    """By finite differences: a loss over headings reaches the features and both layers of the masks."""
    torch.manual_seed(0)
    attention = SpatialAttention(2, 3, masks=2).double()
    features = torch.randn(2, 4, 2, 3, dtype=DOUBLE, requires_grad=True)
    weights = [parameter.detach().requires_grad_() for parameter in attention.parameters()]
    names = [name for name, _ in attention.named_parameters()]

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention.turned(x)

    def turned(x: Tensor, *values: Tensor) -> Tensor:
        state = {f"attention.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Turned(), state, (x,))

    assert torch.autograd.gradcheck(turned, (features, *weights))


# Partly seen


@torch.no_grad()
@pytest.mark.parametrize("config", [HORIZON, SEAM, AZIMUTH], ids=["horizon", "seam", "azimuth"])
def test_what_is_unseen_has_no_influence(config: ModelConfig) -> None:
    model, x, seen = make(config), images(), partly()
    other = torch.where(seen[:, None], x, torch.randn_like(x).clamp(-1, 1))
    for call in (model.embed_street, model.embed_street_turned, model.retrieval.embed_street):
        assert torch.equal(call(x, seen), call(other, seen))
    assert (model.embed_street(x, seen)[0] - model.embed_street(x)[0]).abs().max() > 1e-3
    other[0, :, 3, 15] += 0.1  # a seen pixel
    assert not torch.equal(model.embed_street(x, seen)[0], model.embed_street(other, seen)[0])


@torch.no_grad()
def test_features_count_by_the_share_of_their_pixels_that_was_seen(seam: S2S) -> None:
    x, seen = images(), partly()
    blank = x.clone()
    blank[~seen[:, None].expand_as(x)] = 0.0
    features = seam.retrieval.street_encoder(blank)
    for b in range(3):
        for i in range(4):
            for j in range(COLUMNS):
                pixels = seen[b, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                features[b, :, i, j] *= pixels.sum() / 64
    expected = seam.retrieval.street_attention(features)
    torch.testing.assert_close(seam.embed_street(x, seen), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_view_that_was_seen_entirely_has_the_descriptor_without_a_mask(seam: S2S) -> None:
    everything = torch.ones(3, 32, 8 * COLUMNS, dtype=torch.bool)
    found = seam.embed_street(images(), everything)
    torch.testing.assert_close(found, seam.embed_street(images()), atol=1e-14, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("config", [SEAM, AZIMUTH], ids=["attention", "azimuth"])
def test_nothing_seen_gives_no_descriptor_and_no_fault(config: ModelConfig) -> None:
    nothing = torch.zeros(3, 32, 8 * COLUMNS, dtype=torch.bool)
    assert make(config).embed_street(images(), nothing).eq(0).all()


# Azimuth pooling


def pooled_by_hand(pooling: AzimuthPooling, features: Tensor, share: Tensor, *, even_columns: bool) -> Tensor:
    """Column by column and number by number, in the order of the definition."""
    count, channels, height, width = features.shape
    weight, bias = pooling.column.weight, pooling.column.bias
    assert bias is not None
    columns = torch.zeros(count, len(weight), width, dtype=features.dtype)
    for b in range(count):
        for k in range(len(weight)):
            for j in range(width):
                columns[b, k, j] = bias[k] * sum(share[b, 0, i, j] for i in range(height)) / height
                for c in range(channels):
                    for i in range(height):
                        columns[b, k, j] += weight[k, c, i, 0] * features[b, c, i, j] * share[b, 0, i, j]
    if even_columns:
        columns = columns / columns.square().sum(1, keepdim=True).sqrt()
    flat = columns.reshape(count, -1)
    return flat / flat.square().sum(1, keepdim=True).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("even_columns", [True, False])
def test_azimuth_pooling_is_its_definition(even_columns: bool) -> None:
    torch.manual_seed(0)
    pooling = AzimuthPooling(3, 2, 5, 4, even_columns=even_columns).double()
    features, share = torch.randn(2, 3, 2, 5, dtype=DOUBLE), torch.rand(2, 1, 2, 5)
    everything = torch.ones(2, 1, 2, 5, dtype=DOUBLE)
    for given, used in ((None, everything), (share, share)):
        expected = pooled_by_hand(pooling, features, used, even_columns=even_columns)
        torch.testing.assert_close(pooling(features, given), expected, atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match=r"\(5, 2\), this pooling expects \(2, 5\)"):
        pooling(torch.zeros(1, 3, 5, 2))


@torch.no_grad()
def test_a_model_that_pools_by_azimuth() -> None:
    """Its tiles have even columns; of a partial view only the seen columns differ from zero."""
    model = make(AZIMUTH)
    assert AZIMUTH.descriptor_size == 5 * COLUMNS
    tiles = model.embed_satellite(images()).view(3, 5, COLUMNS)
    torch.testing.assert_close(tiles.norm(dim=1), torch.full((3, COLUMNS), COLUMNS**-0.5, dtype=DOUBLE))
    views = model.embed_street(images(), partly()).view(3, 5, COLUMNS)
    assert views.norm(dim=1)[2].std() > 1e-3
    unseen = views[0].eq(0).all(0)
    assert [column for column in range(COLUMNS) if not unseen[column]] == [1, 2, 3, 4, 5]
    torch.testing.assert_close(views.flatten(1).norm(dim=1), torch.ones(3, dtype=DOUBLE))


@torch.no_grad()
def test_descriptors_of_azimuth_pooling_turn_by_themselves() -> None:
    pooling = AzimuthPooling(3, 2, 5, 4, even_columns=False).double()
    features = torch.randn(2, 3, 2, 5, dtype=DOUBLE)
    turned = pooling.turn(pooling(features))
    for column in range(5):
        torch.testing.assert_close(turned[:, column], pooling(features.roll(column, -1)), atol=1e-14, rtol=0)


def test_unseen_pixels_are_the_padding_and_not_black(seam: S2S) -> None:
    black = torch.zeros(3, 3, 32, 8 * COLUMNS, dtype=torch.uint8)
    seen = partly()
    normalised = seam.normalise(black, seen)
    assert torch.equal(normalised, torch.where(seen[:, None], -1.0, 0.0).to(DOUBLE).expand(3, 3, 32, 8 * COLUMNS))
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("seen", [None, partly()], ids=["all seen", "partly seen"])
def test_masked_images_keep_their_memory_order(seen: Tensor | None) -> None:
    """The other order would be slower, and be compiled again."""
    model = make(AZIMUTH)
    given: list[Tensor] = []
    model.retrieval.street_encoder.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    for call in (model.embed_street, model.embed_street_turned):
        call(images(), seen)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in given)


@pytest.mark.parametrize(
    "seen",
    [
        torch.ones(3, 32, 8 * COLUMNS),
        torch.ones(2, 32, 8 * COLUMNS, dtype=torch.bool),
        torch.ones(3, 1, 32, 8 * COLUMNS, dtype=torch.bool),
        torch.ones(3, 4, COLUMNS, dtype=torch.bool),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(seam: S2S, seen: Tensor) -> None:
    with pytest.raises(
        ViewError, match=r"seen is torch\.\w+ of shape .* expected bool of shape \(3, 32, 72\)"
    ) as error:
        seam.embed_street(images(), seen)
    assert str(tuple(seen.shape)) in str(error.value)


@torch.no_grad()
def test_masked_statistics_are_those_of_zeros() -> None:
    """In training mode batch norm counts unseen pixels, as zeros."""
    model, x, seen = make(HORIZON).train(), images(), partly()
    blank = torch.where(seen[:, None], x, 0.0)
    batch = F.conv2d(
        F.pad(blank, (3, 3, 0, 0), mode="circular"), model.retrieval.street_encoder.conv1.weight, None, 2, (3, 0)
    )
    given: list[Tensor] = []
    model.retrieval.street_encoder.bn1.register_forward_hook(lambda module, args, output: given.append(output))
    model.embed_street(x, seen)
    mean, variance = batch.mean((0, 2, 3), keepdim=True), batch.var((0, 2, 3), correction=0, keepdim=True)
    norm = model.retrieval.street_encoder.bn1
    expected = (batch - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(given[0], expected.relu_(), atol=1e-10, rtol=0)  # the activation is in place
