"""The networks: sizes, every row of tables 1 and 2, and the inputs and outputs of their methods."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet34

from s2s_ray.config import ModelConfig
from s2s_ray.errors import ViewError
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import SpectralConv2d
from s2s_ray.model.discriminator import Discriminator
from s2s_ray.model.retrieval import BasicBlock, StreetEncoder
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(residual_blocks=6)
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def paper() -> S2S:
    """Return the paper's model, which no test changes."""
    return S2S(ModelConfig()).eval()


@pytest.fixture
def tiny() -> S2S:
    """Return a float64 model in evaluation mode whose statistics and gammas have an effect."""
    model = S2S(TINY).double().eval()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.constant_(module.gamma, 0.3)
        elif isinstance(module, GlobalBatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images(batch: int, config: ModelConfig = TINY) -> Tensor:
    return torch.rand(batch, 3, config.height, config.width, dtype=DOUBLE) * 2 - 1


# Sizes


@pytest.mark.parametrize(
    ("network", "parameters"), [("generator", 9_507_908), ("retrieval", 26_789_520), ("discriminator", 2_788_290)]
)
def test_parameters_of_the_paper(paper: S2S, network: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in paper.get_submodule(network).parameters()) == parameters


def test_the_released_discriminator_has_the_papers_parameters() -> None:
    discriminator = Discriminator(ModelConfig(discriminator_variant="released"))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_788_290


TABLE_1 = {
    "encoder.stem": (32, 112, 616),
    "encoder.stem_norm": (32, 112, 616),
    "encoder.down1": (64, 56, 308),
    "encoder.down1_norm": (64, 56, 308),
    "encoder.down2": (128, 28, 154),
    "encoder.down2_norm": (128, 28, 154),
    "encoder.down3": (256, 14, 77),
    "encoder.down3_norm": (256, 14, 77),
    **{f"encoder.bottleneck.{n}": (256, 14, 77) for n in range(6)},
    "decoder.up3": (128, 28, 154),
    "decoder.up3_norm": (128, 28, 154),
    "decoder.attention": (256, 28, 154),
    "decoder.up2": (64, 56, 308),
    "decoder.up2_norm": (64, 56, 308),
    "decoder.up1": (64, 112, 616),
    "decoder.up1_norm": (64, 112, 616),
    "decoder.head": (3, 112, 616),
    "decoder": (3, 112, 616),
}
CONCATENATED = {"decoder.up3": 256 + 256, "decoder.attention": 128 + 128, "decoder.up2": 256, "decoder.up1": 64 + 64}
TABLE_2 = {
    "conv1": (64, 56, 308),
    "conv2": (128, 28, 154),
    "attention": (128, 28, 154),
    "conv3": (256, 14, 77),
    "conv4": (512, 14, 76),
    "conv5": (1, 14, 75),
}


def shapes_of(network: nn.Module, names: Iterable[str], *inputs: Tensor) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Input and output shapes (without the batch) of named modules in one forward pass, in the order they ran."""
    taken: dict[str, tuple[int, ...]] = {}
    given: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(args[0], Tensor):
                taken[name] = tuple(args[0].shape[1:])
            given[name] = tuple(output.shape[1:])

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.inference_mode():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return taken, given


def test_every_row_of_table_1(paper: S2S) -> None:
    taken, given = shapes_of(paper.generator, TABLE_1, torch.zeros(1, 3, 112, 616))
    assert list(given.items()) == list(TABLE_1.items())
    assert {name: taken[name][0] for name in CONCATENATED} == CONCATENATED


def test_skip_connections_follow_what_they_join(tiny: S2S) -> None:
    """Concatenated behind the decoder's own channels: bottleneck and enc3, up3 and enc2, up2 and enc1."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            given[name], made[name] = args[0], output

        return hook

    for name, module in (*tiny.generator.encoder.named_children(), *tiny.generator.decoder.named_children()):
        module.register_forward_hook(note(name))
    with torch.no_grad():
        encoded = tiny.generator.encoder(images(1))
        tiny.generator.decoder(encoded)
    joined = {"up3": "bottleneck", "attention": "up3_norm", "up1": "up2_norm"}
    skips = {"up3": encoded.enc3, "attention": encoded.enc2, "up1": encoded.enc1}
    for name, before in joined.items():
        assert torch.equal(given[name], torch.cat([made[before], skips[name]], 1)), name
    for n, skip in (("1", encoded.enc1), ("2", encoded.enc2), ("3", encoded.enc3)):
        assert torch.equal(made[f"down{n}_norm"], skip)  # after their instance norm


def test_every_row_of_table_2(paper: S2S) -> None:
    _, given = shapes_of(paper.discriminator, TABLE_2, torch.zeros(1, 6, 112, 616))
    assert list(given.items()) == list(TABLE_2.items())


def test_the_released_discriminator_has_smaller_patches_and_a_plain_first_convolution() -> None:
    discriminator = Discriminator(ModelConfig(discriminator_variant="released", discriminator_channels=4))
    _, given = shapes_of(discriminator, ["conv4", "conv5"], torch.zeros(1, 6, 112, 616))
    assert given == {"conv4": (32, 13, 76), "conv5": (1, 12, 75)}
    spectral = [name for name, module in discriminator.named_children() if isinstance(module, SpectralConv2d)]
    assert spectral == ["conv2", "conv3", "conv4"]


def test_spectral_norm_is_on_every_convolution_but_the_last() -> None:
    model = S2S(TINY)
    for network, last in (("generator", "decoder.head"), ("discriminator", "conv5")):
        convs = {name: m for name, m in model.get_submodule(network).named_modules() if isinstance(m, nn.Conv2d)}
        assert [name for name, conv in convs.items() if not isinstance(conv, SpectralConv2d)] == [last]


def test_widths_resolution_and_masks_follow_the_configuration() -> None:
    config = ModelConfig(
        height=48, width=72, channels=8, residual_blocks=2, discriminator_channels=12, street_blocks=(2, 1, 1), masks=3
    )
    model = S2S(config).eval()
    assert len(model.generator.encoder.bottleneck) == 2
    assert len(model.retrieval.street_encoder.layer1) == 2
    assert model.discriminator.conv1.out_channels == 12
    x = torch.zeros(2, 3, 48, 72)
    with torch.inference_mode():
        assert model.generator.encoder(x).features.shape == (2, 64, 6, 9)
        assert model.synthesize(x).shape == (2, 3, 48, 72)
        assert model.embed_satellite(x).shape == model.embed_street(x).shape == (2, 64 * 3)
    assert config.descriptor_size == 64 * 3


# The bundle


def test_embedding_a_tile_never_runs_the_decoder(tiny: S2S) -> None:
    runs: list[str] = []
    for name, module in tiny.generator.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
    tiny.embed_satellite(images(1))
    assert "encoder.bottleneck.5" in runs
    assert [name for name in runs if name.startswith("decoder")] == []
    tiny.synthesize(images(1))
    assert runs.count("decoder") == 1


def test_descriptors_are_unit_vectors(tiny: S2S) -> None:
    for descriptors in (tiny.embed_satellite(images(3)), tiny.embed_street(images(3))):
        assert descriptors.shape == (3, TINY.descriptor_size)
        torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3, dtype=DOUBLE), atol=1e-12, rtol=0)
        assert (descriptors[0] - descriptors[1]).abs().max() > 1e-6


def test_pixels_give_the_results_of_their_normalised_values() -> None:
    model = S2S(TINY).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    normalised = pixels.float() / 127.5 - 1
    with torch.inference_mode():
        for call in (model.embed_satellite, model.embed_street, model.synthesize):
            assert torch.equal(call(pixels), call(normalised))
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 40)
    assert model.normalise(black_and_white).aminmax() == (-1.0, 1.0)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_have_the_chosen_memory_order(last: bool, dtype: torch.dtype) -> None:
    model = S2S(TINY)
    assert model.channels_last
    model.channels_last = last
    for order in (torch.channels_last, torch.contiguous_format):
        pixels = torch.zeros(2, 3, 32, 40, dtype=dtype).contiguous(memory_format=order)
        normalised = model.normalise(pixels)
        assert normalised.is_contiguous(memory_format=torch.channels_last) == last
        assert normalised.is_contiguous() != last


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (3, 32, 40), (1, 6, 32, 40), (1, 3, 32, 48)])
def test_images_of_another_shape_are_refused(tiny: S2S, shape: tuple[int, ...]) -> None:
    for call in (tiny.embed_satellite, tiny.embed_street, tiny.synthesize):
        with pytest.raises(ViewError, match="32, 40") as error:
            call(torch.zeros(shape))
        assert str(shape) in str(error.value)


def test_images_of_another_dtype_are_refused(tiny: S2S) -> None:
    with pytest.raises(ViewError, match="int64"):
        tiny.synthesize(torch.zeros(1, 3, 32, 40, dtype=torch.int64))


def assert_independent_of_the_batch(model: S2S, x: Tensor, tolerance: float) -> None:
    with torch.inference_mode():
        for call in (model.embed_satellite, model.embed_street, model.synthesize):
            alone = torch.cat([call(x[i : i + 1]) for i in range(len(x))])
            torch.testing.assert_close(call(x), alone, atol=tolerance, rtol=0)


def test_results_do_not_depend_on_the_batch(tiny: S2S) -> None:
    assert_independent_of_the_batch(tiny, images(5), 1e-12)


def test_results_do_not_depend_on_the_batch_in_single_precision() -> None:
    config = ModelConfig(height=64, width=352, channels=8, street_blocks=(1, 1, 1))
    assert_independent_of_the_batch(S2S(config).eval(), images(3, config).float(), 1e-6)


def test_the_synthesised_view_is_the_heads_tanh(tiny: S2S) -> None:
    heads: list[Tensor] = []
    tiny.generator.decoder.head.register_forward_hook(lambda module, args, output: heads.append(output))
    view = tiny.synthesize(images(1))
    torch.testing.assert_close(view, heads[0].tanh())


def test_starting_weights() -> None:
    """Convolutions without spectral norm N(0, 0.02) and zero biases, attention N(0, 0.005) and 0.1, gamma 0."""
    model = S2S(ModelConfig(height=64, width=96, channels=16, discriminator_channels=64, street_blocks=(1, 1, 1)))
    for conv in (model.generator.decoder.head, model.discriminator.conv5):
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert conv.bias is not None
        assert conv.bias.eq(0).all()
    attention = model.retrieval.satellite_attention
    for weight in (attention.w1, attention.w2):
        assert weight.std().item() == pytest.approx(0.005, rel=0.05)
        assert weight.mean().abs().item() < 1e-4
    assert attention.b1.eq(0.1).all()
    assert attention.b2.eq(0.1).all()
    gammas = [module.gamma.item() for module in model.modules() if isinstance(module, NonLocalBlock)]
    assert gammas == [0.0, 0.0]


def biases(model: S2S, *, idle: bool) -> dict[str, nn.Parameter]:
    """Convolution biases of the generator by name: those not trained, or the trained ones."""
    convs = {name: m for name, m in model.generator.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    return {name: conv.bias for name, conv in convs.items() if conv.bias.requires_grad is not idle}


def test_the_biases_that_are_not_trained_are_those_before_an_instance_norm() -> None:
    model = S2S(TINY)
    blocks = [f"encoder.bottleneck.{n}.conv{m}" for n in range(6) for m in (1, 2)]
    blocks += [f"encoder.down{n}.{conv}" for n in (1, 2, 3) for conv in ("conv2", "skip")]
    blocks += [f"decoder.up{n}.{conv}" for n in (1, 2, 3) for conv in ("conv1", "conv2", "skip")]
    assert set(biases(model, idle=True)) == {"encoder.stem", *blocks}
    untrained = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    idle = {f"generator.{conv}.bias" for conv in biases(model, idle=True)}
    assert untrained == idle | {"generator.decoder.up2_norm.bias"}  # every way on from it ends in an instance norm


def test_a_bias_that_is_not_trained_does_not_change_the_outputs(tiny: S2S) -> None:
    x = images(2)
    with torch.no_grad():
        expected = tiny.generator(x)
        for name, bias in {**biases(tiny, idle=True), "up2_norm": tiny.generator.decoder.up2_norm.bias}.items():
            before = bias.clone()
            bias += torch.randn_like(bias)
            for output, reference in zip(tiny.generator(x), expected, strict=True):
                torch.testing.assert_close(output, reference, atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
            bias.copy_(before)


def test_a_trained_bias_does_change_the_outputs(tiny: S2S) -> None:
    x = images(1)
    with torch.no_grad():
        expected = tiny.synthesize(x)
        for name, bias in biases(tiny, idle=False).items():
            bias += torch.randn_like(bias)
            assert (tiny.synthesize(x) - expected).abs().max() > 1e-6, name


def test_the_configuration_freezes_batchnorm() -> None:
    for choice in ("live", "frozen"):
        encoder = StreetEncoder(TINY.model_copy(update={"street_batchnorm": choice}))
        norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 1 + 3 * 2 + 2
        assert {norm.frozen for norm in norms} == {choice == "frozen"}


# The street encoder


@pytest.mark.parametrize("training", [True, False])
def test_the_street_encoder_is_a_resnet34_without_its_max_pool(training: bool) -> None:
    theirs = resnet34(weights=None).train(training)
    encoder = StreetEncoder(ModelConfig()).train(training)
    own = encoder.state_dict()
    encoder.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in own})
    x = torch.rand(2, 3, 32, 40) * 2 - 1
    with torch.no_grad():
        stem = theirs.relu(theirs.bn1(theirs.conv1(x)))
        expected = theirs.layer3(theirs.layer2(theirs.layer1(stem)))
        features = encoder(x)
    assert features.shape == (2, 256, 4, 5)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_the_projection_of_a_block_is_the_strided_convolution() -> None:
    block = BasicBlock(4, 6, stride=2).double()
    assert block.downsample is not None
    projection = block.downsample[0]
    x = torch.randn(2, 4, 5, 8, dtype=DOUBLE, requires_grad=True)
    output, expected = projection(x), nn.functional.conv2d(x, projection.weight, stride=2)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    gradients = (torch.autograd.grad(y, [x, projection.weight], direction) for y in (output, expected))
    torch.testing.assert_close(*gradients)


NARROW_BLOCK = """
import torch
from s2s_ray.model.retrieval import BasicBlock
torch.set_num_threads(2)
block = BasicBlock(8, 16, stride=2)
for _ in range(100):
    output = block(torch.rand(5, 8, 16, 20).to(memory_format=torch.channels_last))
    output.backward(torch.ones_like(output))
"""


def test_a_narrow_encoder_trains_with_several_threads() -> None:
    """With a strided 1x1 convolution the process dies of a corrupted heap."""
    ended = subprocess.run([sys.executable, "-c", NARROW_BLOCK], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_the_street_branch_does_not_depend_on_the_generator(tiny: S2S) -> None:
    other = copy.deepcopy(tiny)
    for parameter in other.generator.parameters():
        nn.init.normal_(parameter)
    x = images(1)
    assert torch.equal(tiny.embed_street(x), other.embed_street(x))
    assert not torch.equal(tiny.embed_satellite(x), other.embed_satellite(x))
