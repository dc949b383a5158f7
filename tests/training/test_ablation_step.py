"""The training cycle of each ablation against plain backward passes of its losses; idle networks stay unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.config import (
    Ablation,
    Config,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from s2s_ray.errors import ConfigError, NoSynthesisError
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.blocks import power_iterate
from s2s_ray.model.losses import triplet_loss
from s2s_ray.model.s2s import (
    S2S,
)
from s2s_ray.training.step import TrainingStep

TINY = {"height": 32, "width": 40, "channels": 4, "discriminator_channels": 8, "street_blocks": (1, 1, 1), "masks": 2}
TRAIN = TrainConfig(lr_generator=1e-3, lr_discriminator=2e-3, lr_retrieval=5e-4)
LOSS = LossConfig()
LOSSES = {
    "full": {"d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss"},
    "retrieval_only": {"r_loss"},
    "no_gan": {"r_loss", "ret_weighted", "l1_weighted", "g_loss"},
    "separate_features": {"d_loss", "r_loss", "gan", "l1_weighted", "g_loss"},
}
TRAINED = {
    "full": {"generator", "discriminator", "retrieval"},
    "retrieval_only": {"retrieval"},
    "no_gan": {"generator", "retrieval"},
    "separate_features": {"generator", "discriminator", "retrieval"},
}
ABLATIONS = list(LOSSES)


def make(ablation: Ablation, **model_options: object) -> S2S:
    torch.manual_seed(0)
    model = S2S(ModelConfig.model_validate(TINY | {"ablation": ablation} | model_options)).double().train()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.constant_(module.gamma, 0.3)
    return model


def batch(pairs: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    satellite, street = torch.rand(2, pairs, 3, 32, 40, dtype=torch.float64, generator=generator) * 2 - 1
    return satellite, street


def entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def plain_cycle(model: S2S, ablation: str, satellite: Tensor, street: Tensor) -> dict[str, float]:
    """One cycle in the order of the specification, with PyTorch's own optimisers."""
    generator, discriminator, retrieval = model.generator, model.discriminator, model.retrieval
    optimizers = {
        name: torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr, betas=(0.5, 0.999))
        for name, network, lr in (
            ("G", generator, TRAIN.lr_generator),
            ("D", discriminator, TRAIN.lr_discriminator),
            ("R", retrieval, TRAIN.lr_retrieval),
        )
    }

    def step(name: str, loss: Tensor) -> None:
        model.zero_grad()
        loss.backward(retain_graph=True)
        optimizers[name].step()

    def triplets(features: Tensor) -> Tensor:
        return triplet_loss(retrieval.embed_satellite(features), retrieval.embed_street(street), alpha=10.0).loss

    losses = {}
    own = ablation in ("retrieval_only", "separate_features")
    if ablation != "retrieval_only":
        power_iterate(generator)
        fake, features = generator(satellite)
    if ablation in ("full", "separate_features"):
        power_iterate(discriminator)
        real = entropy(discriminator(torch.cat([satellite, street], 1)), 0.9)
        d_loss = (real + entropy(discriminator(torch.cat([satellite, fake.detach()], 1)), 0.0)) / 2
    if own:
        assert retrieval.satellite_encoder is not None
        power_iterate(retrieval.satellite_encoder)
    r_loss = triplets(retrieval.satellite_encoder(satellite).features if own else features.detach())
    losses["r_loss"] = r_loss.item()
    if ablation in ("full", "separate_features"):
        losses["d_loss"] = d_loss.item()
        step("D", d_loss)
    step("R", r_loss)
    if ablation == "retrieval_only":
        return losses
    l1 = 100 * (fake - street).abs().mean()
    losses["l1_weighted"] = l1.item()
    g_loss = l1
    if ablation != "no_gan":
        gan = entropy(discriminator(torch.cat([satellite, fake], 1)), 0.9)
        losses["gan"] = gan.item()
        g_loss = g_loss + gan
    if not own:
        weighted = 1000 * triplets(features)
        losses["ret_weighted"] = weighted.item()
        g_loss = g_loss + weighted
    losses["g_loss"] = g_loss.item()
    step("G", g_loss)
    return losses


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_cycle_equals_the_plain_one(ablation: Ablation) -> None:
    model = make(ablation)
    plain = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    values = TrainingStep(model, LOSS, TRAIN)(*batch())
    expected = plain_cycle(plain, ablation, *batch())
    assert set(expected) == LOSSES[ablation]
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(values) - set(expected) <= {"kept", "valid", "d_grad_norm", "r_grad_norm", "g_grad_norm"}
    wanted = plain.state_dict()
    for name, value in model.state_dict().items():
        network = name.partition(".")[0]
        if network not in TRAINED[ablation]:
            assert torch.equal(value, before[name]), name
        elif "running" not in name and "num_batches" not in name and name != "generator.decoder.up2_norm.bias":
            torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9, msg=name)
    moved = {
        name.partition(".")[0]
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter.detach(), before[name])
    }
    assert moved == TRAINED[ablation]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_pieces_give_the_step_of_the_whole_batch(ablation: Ablation) -> None:
    whole, pieces = (make(ablation, street_batchnorm="frozen") for _ in range(2))
    one = TrainingStep(whole, LOSS, TRAIN)(*batch(5))
    many = TrainingStep(pieces, LOSS, TRAIN.model_copy(update={"micro_batch": 2}))(*batch(5))
    assert many == pytest.approx(one, rel=1e-9)
    for (name, value), other in zip(whole.state_dict().items(), pieces.state_dict().values(), strict=True):
        if name != "generator.decoder.up2_norm.bias":
            torch.testing.assert_close(value, other, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_reference_is_embedded_by_the_encoder_of_the_ablation(ablation: Ablation) -> None:
    """Only that encoder runs, and without the generator's decoder."""
    model = make(ablation)
    satellite, street = batch()
    reference = satellite.flip(0)
    runs: dict[str, list[Tensor]] = {"generator.encoder": [], "retrieval.satellite_encoder": []}
    for name, inputs in runs.items():
        if name in dict(model.named_modules()):
            model.get_submodule(name).register_forward_hook(lambda _, args, __, inputs=inputs: inputs.append(args[0]))
    TrainingStep(model, LOSS, TRAIN)(satellite, street, reference=reference)
    own = ablation in ("retrieval_only", "separate_features")
    seen_by_r = runs["retrieval.satellite_encoder" if own else "generator.encoder"]
    assert any(torch.equal(x, reference) for x in seen_by_r)
    if own:
        assert not any(torch.equal(x, reference) for x in runs["generator.encoder"])
        assert not any(torch.equal(x, satellite) for x in runs["retrieval.satellite_encoder"])


@pytest.mark.parametrize("ablation", ["retrieval_only", "separate_features"])
def test_descriptors_come_from_the_separate_encoder(ablation: Ablation) -> None:
    model = make(ablation).eval()
    satellite, _ = batch(2)
    before = model.embed_satellite(satellite)
    with torch.no_grad():
        model.generator.encoder.stem.weight.add_(1)
    assert torch.equal(model.embed_satellite(satellite), before)
    assert model.retrieval.satellite_encoder is not None
    with torch.no_grad():
        model.retrieval.satellite_encoder.stem.weight.mul_(-1).add_(0.1)
    assert not torch.equal(model.embed_satellite(satellite), before)
    if ablation == "separate_features":
        views, descriptors = model.synthesize_and_embed(satellite)
        torch.testing.assert_close(descriptors, model.embed_satellite(satellite))
        torch.testing.assert_close(views, model.synthesize(satellite))
        return
    with pytest.raises(NoSynthesisError, match=r"model.ablation='retrieval_only' and synthesises no street views"):
        model.synthesize(satellite)


def test_a_seed_gives_all_ablations_the_same_start() -> None:
    states = [make(ablation).state_dict() for ablation in ("full", "retrieval_only")]  # type: ignore[arg-type]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    extra = set(states[1]) - set(states[0])
    assert extra
    assert all(name.startswith("retrieval.satellite_encoder.") for name in extra)
    # of the architecture of G's encoder
    encoder = {name for name in states[0] if name.startswith("generator.encoder.")}
    assert {name.replace("retrieval.satellite_encoder.", "generator.encoder.") for name in extra} == encoder


@pytest.mark.parametrize("key", ["train.validate_synthesis", "tune.synthesis"])
def test_comparing_views_needs_a_generator(key: str) -> None:
    section, field = key.split(".")
    value: object = True if section == "train" else "l1"
    tree = {section: {field: value}, "model": {"ablation": "retrieval_only"}}
    tree.setdefault("tune", {})["scheduler"] = "none"
    with pytest.raises(ConfigError, match=f"{key} measures synthesised views, and model.ablation='retrieval_only'"):
        Config.from_tree(tree)
