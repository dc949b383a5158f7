"""The fast training cycle against the plain one (`benchmarks/plain.py`), on a GPU if there is one and on the CPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.plain import NETWORKS, PlainCycle
from s2s_ray.config import LossConfig, ModelConfig, TrainConfig
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.blocks import InstanceNorm2d, SpectralConv2d
from s2s_ray.model.s2s import S2S
from s2s_ray.training.step import LOSS_NAMES, TrainingStep
from tests.support.models import tiny_model

TINY = tiny_model(residual_blocks=6, width=48, discriminator_channels=8)
SMALLEST = TINY.model_copy(update={"residual_blocks": 1})
# PyTorch's compiler warns about deprecated parts of PyTorch that it uses, and about TF32, which is off.
OF_THE_COMPILER = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\..*", r"ignore::UserWarning:torch\..*")


def a_model(device: str, dtype: torch.dtype, config: ModelConfig = TINY) -> S2S:
    """Return a model in training mode whose attention has an effect and whose features have a mean."""
    torch.manual_seed(0)
    model = S2S(config).train()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.constant_(module.gamma, 0.3)
    for block in model.generator.encoder.bottleneck:
        nn.init.normal_(block.norm2.bias)
    return model.to(device, dtype)


def a_batch(model: S2S, pairs: int, config: ModelConfig = TINY) -> tuple[Tensor, Tensor]:
    """Return a batch in the model's memory order."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, pairs, 3, config.height, config.width), generator=generator, dtype=torch.uint8)
    satellite, street = (model.normalise(images.to(next(model.parameters()).device)) for images in pixels)
    return satellite, street


def assert_same_gradients(found: nn.Module, expected: nn.Module) -> None:
    """Compare as in the test of workers: to 1e-10 of a tensor's norm, or of a millionth of its network's."""
    for network in NETWORKS:
        gradients = {n: p.grad for n, p in expected.get_submodule(network).named_parameters() if p.grad is not None}
        total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for name, gradient in gradients.items():
            mine = found.get_parameter(f"{network}.{name}").grad
            assert mine is not None
            assert (mine - gradient).norm() <= 1e-10 * max(gradient.norm(), 1e-6 * total), f"{network}.{name}"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pairs", [1, 3])
def test_a_cycle_equals_the_plain_one_in_both_memory_orders(device: str, channels_last: bool, pairs: int) -> None:
    model = a_model(device, torch.float64)
    train = TrainConfig(channels_last=channels_last)
    plain, cycle = PlainCycle(model, LossConfig(), train), TrainingStep(model, LossConfig(), train)
    satellite, street = a_batch(model, pairs)
    assert satellite.is_contiguous(memory_format=torch.channels_last) == channels_last
    found = cycle(satellite, street)
    if pairs == 1:  # no triplet
        assert (found["r_loss"], found["kept"]) == (0.0, 0.0)
        return
    expected = plain(satellite.contiguous(), street.contiguous())
    assert {name: found[name] for name in LOSS_NAMES} == pytest.approx(expected, rel=1e-9)
    assert_same_gradients(model, plain.model)


@pytest.mark.parametrize("circular", [False, True])
def test_channels_last_images_keep_their_order(device: str, circular: bool) -> None:
    """No layer of the networks falls back to the other order, which would be slow and go unnoticed."""
    model = a_model(device, torch.float32, SMALLEST.model_copy(update={"circular": circular}))
    model.channels_last = True
    if device == "cuda":
        pytest.skip("PyTorch's instance norm for CUDA changes the order")
    strides: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, (SpectralConv2d, InstanceNorm2d)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: strides.update(
                    {name: output.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    satellite, _ = a_batch(model, 2)
    fake, _ = model.generator(satellite)
    model.discriminator(torch.cat([satellite, fake], 1))
    assert len(strides) > 40
    assert [name for name, kept in strides.items() if not kept] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@OF_THE_COMPILER
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_compiled_cycle_equals_the_eager_one(device: str, micro_batch: int | None) -> None:
    """Weights after two cycles agree too, with a batch of another size, which is not compiled, in between.

    Piece by piece each network is called several times a cycle, and what it gave must outlive its next call.
    """
    config = SMALLEST.model_copy(update={"street_batchnorm": "live" if micro_batch is None else "frozen"})
    eager, compiled = (a_model(device, torch.float64, config) for _ in range(2))
    cycles = [
        TrainingStep(model, LossConfig(), TrainConfig(batch=4, micro_batch=micro_batch, compile=compile))
        for model, compile in ((eager, False), (compiled, True))
    ]
    for pairs in (4, 3, 4):
        expected, found = (cycle(*a_batch(eager, pairs)) for cycle in cycles)
        assert found == pytest.approx(expected, rel=1e-9)
        assert_same_gradients(compiled, eager)
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@OF_THE_COMPILER
def test_a_compiled_cycle_of_other_views_equals_the_eager_one(device: str) -> None:
    """Retrieval compares partial views with other satellite images, and the encoder of G is compiled by itself."""
    options = {"street_batchnorm": "frozen", "circular": True, "pooling": "azimuth"}
    config = SMALLEST.model_copy(update=options)
    eager, compiled = (a_model(device, torch.float64, config) for _ in range(2))
    loss = LossConfig(retrieval="infonce", turned=0.5)
    cycles = [
        TrainingStep(model, loss, TrainConfig(batch=4, compile=compile))
        for model, compile in ((eager, False), (compiled, True))
    ]
    satellite, street = a_batch(eager, 4)
    seen = (torch.arange(config.width, device=device) < 50).expand(4, config.height, config.width)
    views = {"query": (street.flip(0), seen), "reference": satellite.flip(3)}
    for _ in range(2):
        expected, found = (cycle(satellite, street, **views) for cycle in cycles)
        assert found == pytest.approx(expected, rel=1e-9)
        assert_same_gradients(compiled, eager)


@pytest.mark.slow
@pytest.mark.timeout(600)
@OF_THE_COMPILER
def test_a_compiled_cycle_in_bfloat16_follows_single_precision(device: str) -> None:
    """The compiler keeps rounded values in float32, so a module that compares values must not be compiled."""
    values = []
    for train in (
        TrainConfig(batch=4),
        TrainConfig(batch=4, precision="bf16"),
        TrainConfig(batch=4, precision="bf16", compile=True),
    ):
        model = a_model(device, torch.float32, SMALLEST)
        cycle = TrainingStep(model, LossConfig(), train)
        values.append([cycle(*a_batch(model, 4)) for _ in range(2)])
    for single, eager, compiled in zip(*values, strict=True):
        assert compiled == pytest.approx(single, rel=0.05)
        assert compiled != eager


def test_bfloat16_follows_single_precision(device: str) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        model = a_model(device, torch.float32)
        cycle = TrainingStep(model, LossConfig(), TrainConfig(precision=precision))
        losses[precision] = cycle(*a_batch(model, 4))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name in LOSS_NAMES:
        assert losses["bf16"][name] == pytest.approx(losses["fp32"][name], rel=0.05), name
        assert losses["bf16"][name] != losses["fp32"][name], name


def test_a_cycle_keeps_less_for_its_backward_passes_than_the_plain_one(device: str) -> None:
    """Compare the bytes that the forward pass of G keeps, each storage once; the attention matrix is not among them."""
    config = ModelConfig(height=64, width=176, channels=8, discriminator_channels=8, street_blocks=(1, 1, 1), masks=2)
    model = a_model(device, torch.float32, config)
    plain = PlainCycle(model, LossConfig(), TrainConfig()).model
    satellite, _ = a_batch(model, 2, config)

    def kept(network: nn.Module) -> list[int]:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = network(satellite)
        assert output[0].shape == satellite.shape
        return list(storages.values())

    positions = config.height // 4 * config.width // 4
    matrix = 2 * positions * positions // 4 * 4
    ours, theirs = kept(model.generator), kept(plain.generator)
    assert sum(ours) < 0.8 * sum(theirs)
    assert matrix in theirs
    assert matrix not in ours


def test_w_over_sigma_is_computed_once_per_weight_and_optimiser_step(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of G once, before its step; those of D before its step and again, updated, for the step of G."""
    model = a_model(device, torch.float32)
    made: Counter[int] = Counter()
    normalised_weight = SpectralConv2d.normalised_weight

    def counted(conv: SpectralConv2d) -> Tensor:
        made[id(conv)] += 1
        return normalised_weight(conv)

    monkeypatch.setattr(SpectralConv2d, "normalised_weight", counted)
    TrainingStep(model, LossConfig(), TrainConfig())(*a_batch(model, 3))
    for network, times in (("generator", 1), ("discriminator", 2)):
        convs = [m for m in model.get_submodule(network).modules() if isinstance(m, SpectralConv2d)]
        assert len(convs) > 5
        assert {made[id(conv)] for conv in convs} == {times}


def test_peak_memory_of_a_cycle_is_below_that_of_the_plain_one(device: str) -> None:
    """On a GPU, whose allocator counts; `benchmarks/train_step.py` measures CPUs in separate processes."""
    if device == "cpu":
        pytest.skip("no allocator counts on CPUs")
    peaks = []
    for kind in (TrainingStep, PlainCycle):
        config = ModelConfig(height=64, width=352, street_blocks=(1, 1, 1))
        model = a_model(device, torch.float32, config)
        cycle, batch = kind(model, LossConfig(), TrainConfig()), a_batch(model, 4, config)
        cycle(*batch)  # Adam's moments
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cycle(*batch)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]
