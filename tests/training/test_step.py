"""The training cycle against a plain one: three separate backward passes, PyTorch's Adam, plain losses."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.errors import NotFiniteError
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import SpectralConv2d
from s2s_ray.model.losses import info_nce, turned_info_nce
from s2s_ray.model.s2s import S2S
from s2s_ray.training.gradients import frozen
from s2s_ray.training.step import LOSS_NAMES, TrainingStep
from tests.support.models import tiny_model

TINY = tiny_model(residual_blocks=6, discriminator_channels=8)
TRAIN = TrainConfig(lr_generator=1e-3, lr_discriminator=2e-3, lr_retrieval=5e-4)
NETWORKS = ("generator", "discriminator", "retrieval")
# An instance norm follows both ways out of this one, so that its bias has no effect: its gradient is rounding.
NOISE = "decoder.up2_norm.bias"

NEGATIVES = torch.ones(4, 4, dtype=torch.bool)
NEGATIVES[0, 1] = NEGATIVES[1, 0] = NEGATIVES[3, 2] = False


@pytest.fixture
def model() -> S2S:
    """Return a float64 model in training mode whose attention has an effect."""
    torch.manual_seed(0)
    model = S2S(TINY).double().train()
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.constant_(module.gamma, 0.3)
    return model


def batch(pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    satellite, street = torch.rand(2, pairs, 3, 32, 40, dtype=torch.float64, generator=generator) * 2 - 1
    return satellite, street


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class PlainCycle:
    """The cycle of the specification, on a copy of the model with PyTorch's BatchNorm."""

    def __init__(self, model: S2S, loss: LossConfig, train: TrainConfig) -> None:
        self.model = copy.deepcopy(model)
        self.loss = loss
        self.norms = list(_replace_batchnorms(self.model.retrieval))
        rates = (train.lr_generator, train.lr_discriminator, train.lr_retrieval)
        self.optimizers = {
            name: torch.optim.Adam(
                [p for p in self.model.get_submodule(name).parameters() if p.requires_grad], lr=rate, betas=(0.5, 0.999)
            )
            for name, rate in zip(NETWORKS, rates, strict=True)
        }

    def __call__(
        self,
        satellite: Tensor,
        street: Tensor,
        *,
        order: str = "DRG",
        seen: Tensor | None = None,
        query: tuple[Tensor, Tensor | None] | None = None,
        reference: Tensor | None = None,
        discard: float = 0.0,
        negatives: Tensor | None = None,
    ) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
        """The losses by name, and each network's gradients in its own step."""
        generator, discriminator = self.model.generator, self.model.discriminator
        _power_iterate(generator)
        fake, features = generator(satellite)
        share = 1.0
        if seen is not None:
            fake, street, share = fake * seen[:, None], street * seen[:, None], seen.double().mean().item()
        asked = (street, seen) if query is None else query
        if reference is not None:
            features = generator.encoder(reference).features
        _power_iterate(discriminator)
        losses: dict[str, float] = {}
        gradients: dict[str, dict[str, Tensor]] = {}
        for step in order:
            if step == "D":
                real_term = _cross_entropy(discriminator(torch.cat([satellite, street], 1)), self.loss.real_label)
                fake_term = _cross_entropy(discriminator(torch.cat([satellite, fake.detach()], 1)), 0.0)
                loss = (real_term + fake_term) / 2
                losses["d_loss"] = loss.item()
                gradients["discriminator"] = self._step("discriminator", loss)
            elif step == "R":
                loss = self._retrieval(features.detach(), asked, discard, negatives)
                losses["r_loss"] = loss.item()
                gradients["retrieval"] = self._step("retrieval", loss)
            else:
                for norm in self.norms:
                    norm.momentum = 0.0  # normalises with batch statistics, updates nothing
                gan = _cross_entropy(discriminator(torch.cat([satellite, fake], 1)), self.loss.real_label)
                retrieval = self._retrieval(features, asked, discard, negatives)
                l1 = (fake - street).abs().mean() / share
                loss = self.loss.lambda_gan * gan + self.loss.lambda_ret * retrieval + self.loss.lambda_l1 * l1
                losses |= {"gan": gan.item(), "ret_weighted": self.loss.lambda_ret * retrieval.item()}
                losses |= {"l1_weighted": self.loss.lambda_l1 * l1.item(), "g_loss": loss.item()}
                gradients["generator"] = self._step("generator", loss)
                for norm in self.norms:
                    norm.momentum = 0.1
        return losses, gradients

    def _step(self, network: str, loss: Tensor) -> dict[str, Tensor]:
        self.model.zero_grad()
        loss.backward(retain_graph=True)
        self.optimizers[network].step()
        named = self.model.get_submodule(network).named_parameters()
        return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}

    def _retrieval(
        self, features: Tensor, asked: tuple[Tensor, Tensor | None], discard: float, negatives: Tensor | None
    ) -> Tensor:
        satellites = self.model.retrieval.embed_satellite(features)
        streets = self.model.retrieval.embed_street(*asked)
        if self.loss.retrieval == "infonce":
            return self._info_nce(satellites @ streets.T, negatives)
        losses = []
        for anchors, others in ((satellites, streets), (streets, satellites)):
            for i in range(len(anchors)):
                for j in range(len(anchors)):
                    if i != j and (negatives is None or negatives[i, j]):
                        to_positive = (anchors[i] - others[i]).square().sum()
                        to_negative = (anchors[i] - others[j]).square().sum()
                        losses.append(torch.log1p(torch.exp(self.loss.alpha * (to_positive - to_negative))))
        hardest = torch.stack(losses).sort(descending=True).values
        kept = -(-len(hardest) * round(100 - discard) // 100)
        return hardest[: max(1, kept)].mean()

    def _info_nce(self, cosines: Tensor, negatives: Tensor | None) -> Tensor:
        losses = []
        for rows in (cosines, cosines.T):
            for i in range(len(rows)):
                chosen = [j for j in range(len(rows)) if i == j or negatives is None or negatives[i, j]]
                target = torch.full((len(chosen),), self.loss.label_smoothing / len(chosen), dtype=rows.dtype)
                target[chosen.index(i)] += 1 - self.loss.label_smoothing
                losses.append(-(target * (self.loss.scale * rows[i, chosen]).log_softmax(0)).sum())
        return torch.stack(losses).mean()


def _replace_batchnorms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GlobalBatchNorm2d):
                plain = nn.BatchNorm2d(child.num_features).to(child.weight)
                plain.load_state_dict(child.state_dict())
                setattr(parent, name, plain)
                yield plain


def _power_iterate(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            matrix = module.weight.detach().reshape(module.weight.shape[0], -1)
            v = matrix.T @ module.weight_u
            module.weight_v = v / v.norm()
            u = matrix @ module.weight_v
            module.weight_u = u / u.norm()


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    probability = logits.sigmoid()
    return -(label * probability.log() + (1 - label) * (1 - probability).log()).mean()


def assert_same_gradients(found: nn.Module, expected: dict[str, Tensor]) -> None:
    """Compare tensor by tensor, relative to the gradient of the whole network if that of a tensor is rounding."""
    gradients = {name: parameter.grad for name, parameter in found.named_parameters() if parameter.grad is not None}
    assert set(gradients) == set(expected)
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= 1e-10 * max(gradient.norm(), 1e-6 * total), name


@pytest.mark.parametrize(("discard", "negatives"), [(0.0, None), (60.0, None), (0.0, NEGATIVES), (60.0, NEGATIVES)])
def test_a_cycle_is_three_plain_steps(model: S2S, discard: float, negatives: Tensor | None) -> None:
    plain, cycle = PlainCycle(model, LossConfig(), TRAIN), TrainingStep(model, LossConfig(), TRAIN)
    for seed in range(2):
        satellite, street = batch(4, seed)
        expected, gradients = plain(satellite, street, discard=discard, negatives=negatives)
        found = cycle(satellite, street, discard=discard, negatives=negatives)
        assert {name: found[name] for name in LOSS_NAMES} == pytest.approx(expected, rel=1e-9)
        for network in NETWORKS:
            assert_same_gradients(model.get_submodule(network), gradients[network])
    triplets = 24 if negatives is None else 18
    assert found["valid"] == triplets
    assert found["kept"] == (triplets if discard == 0 else {24: 10, 18: 8}[triplets])
    for network in NETWORKS:
        weights = plain.model.get_submodule(network).state_dict()
        for name, value in model.get_submodule(network).state_dict().items():
            if name != NOISE and not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(value, weights[name], atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


INFONCE = LossConfig(retrieval="infonce", scale=8.0, label_smoothing=0.2)


def views(pairs: int, seed: int = 0) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return other views of the same places: street views of which a part was seen, and satellite images."""
    reference, street = batch(pairs, seed + 100)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 30, (pairs, 1), generator=generator)
    columns = torch.arange(40)
    seen = ((columns >= first) & (columns < first + 25))[:, None].repeat(1, 32, 1)
    return (street, seen), reference


@pytest.mark.parametrize("loss", [LossConfig(), INFONCE], ids=["triplet", "infonce"])
@pytest.mark.parametrize("negatives", [None, NEGATIVES])
@pytest.mark.parametrize("given", ["both", "query", "reference", "neither"])
def test_retrieval_compares_other_views_than_synthesis(
    model: S2S, loss: LossConfig, negatives: Tensor | None, given: str
) -> None:
    plain, cycle = PlainCycle(model, loss, TRAIN), TrainingStep(model, loss, TRAIN)
    query, reference = views(4)
    options = {
        "query": query if given in ("both", "query") else None,
        "reference": reference if given in ("both", "reference") else None,
        "negatives": negatives,
    }
    expected, gradients = plain(*batch(4), **options)
    found = cycle(*batch(4), **options)
    assert {name: found[name] for name in LOSS_NAMES} == pytest.approx(expected, rel=1e-9)
    assert found["kept"] == found["valid"] == (24 if negatives is None else 18)
    for network in NETWORKS:
        assert_same_gradients(model.get_submodule(network), gradients[network])


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_loss_over_headings_reaches_both_networks(micro_batch: int | None) -> None:
    """With azimuth pooling, against plain backward passes."""
    torch.manual_seed(0)
    config = TINY.model_copy(
        update={"pooling": "azimuth", "circular": True, "azimuth_channels": 3, "street_batchnorm": "frozen"}
    )
    model = S2S(config).double().train()
    loss = INFONCE.model_copy(update={"turned": 0.6})
    (street, seen), reference = views(4)
    plain = copy.deepcopy(model)
    _power_iterate(plain.generator)

    def mixed() -> Tensor:
        satellites = plain.retrieval.embed_satellite(plain.generator.encoder(reference).features)
        columns = plain.retrieval.embed_street(street, seen)
        turned = plain.retrieval.embed_street_turned(street, seen)
        one = info_nce(satellites, columns, scale=8.0, label_smoothing=0.2, negatives=NEGATIVES).loss
        other = turned_info_nce(satellites, turned, scale=8.0, label_smoothing=0.2, negatives=NEGATIVES)
        return 0.4 * one + 0.6 * other

    expected = mixed()
    named = dict(plain.retrieval.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(expected, named.values()), strict=True))
    train = TRAIN.model_copy(update={"micro_batch": micro_batch})
    found = TrainingStep(model, loss, train)(*batch(4), query=(street, seen), reference=reference, negatives=NEGATIVES)
    assert found["r_loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert_same_gradients(model.retrieval, gradients)


@pytest.mark.parametrize("with_query", [True, False])
def test_synthesis_learns_from_what_is_seen_alone(model: S2S, with_query: bool) -> None:
    satellite, street = batch(4)
    seen = torch.zeros(4, 32, 40, dtype=torch.bool)
    seen[0] = True
    seen[1:, 8:24, 4:14] = True
    others = {"seen": seen, "query": (street.roll(4, -1), seen.roll(4, -1)) if with_query else None}
    plain = PlainCycle(model, LossConfig(), TRAIN)
    losses, gradients = plain(satellite, street, **others)  # type: ignore[arg-type]
    painted = torch.where(seen[:, None], street, torch.rand_like(street))  # what is not seen may be anything
    found = TrainingStep(model, LossConfig(), TRAIN)(satellite, painted, **others)  # type: ignore[arg-type]
    for name in LOSS_NAMES:
        assert found[name] == pytest.approx(losses[name], rel=1e-9)
    for network in NETWORKS:
        assert_same_gradients(model.get_submodule(network), gradients[network])


def test_other_views_change_no_target_of_synthesis(model: S2S) -> None:
    other = copy.deepcopy(model)
    query, reference = views(4)
    expected = TrainingStep(model, LossConfig(), TRAIN)(*batch(4))
    found = TrainingStep(other, LossConfig(), TRAIN)(*batch(4), query=query, reference=reference)
    for name in ("d_loss", "gan", "l1_weighted"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12)
    assert found["r_loss"] != pytest.approx(expected["r_loss"], rel=1e-3)


def test_the_aligned_views_as_other_views_are_the_same_cycle(model: S2S) -> None:
    other = copy.deepcopy(model)
    satellite, street = batch(4)
    everything = torch.ones(4, 32, 40, dtype=torch.bool)
    expected = TrainingStep(model, LossConfig(), TRAIN)(satellite, street)
    found = TrainingStep(other, LossConfig(), TRAIN)(
        satellite, street, query=(street.clone(), everything), reference=satellite.clone()
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_what_a_query_did_not_see_trains_nothing(model: S2S) -> None:
    other = copy.deepcopy(model)
    (street, seen), reference = views(4)
    changed = torch.where(seen[:, None], street, 0.9)
    expected = TrainingStep(model, INFONCE, TRAIN)(*batch(4), query=(street, seen), reference=reference)
    assert TrainingStep(other, INFONCE, TRAIN)(*batch(4), query=(changed, seen), reference=reference) == expected
    assert moved(state_of(model), other) == set()


@pytest.mark.parametrize(
    ("order", "stale"), [("GDR", {"gan", "ret_weighted"}), ("RGD", {"gan"}), ("DGR", {"ret_weighted"})]
)
def test_the_generator_step_sees_the_updated_networks(model: S2S, order: str, stale: set[str]) -> None:
    wrong = PlainCycle(model, LossConfig(), TRAIN)
    satellite, street = batch(4)
    expected, _ = wrong(satellite, street, order=order)
    found = TrainingStep(model, LossConfig(), TRAIN)(satellite, street)
    differing = {name for name in LOSS_NAMES if found[name] != pytest.approx(expected[name], rel=1e-4)}
    assert differing - {"g_loss"} == stale


def test_statistics_are_updated_once_per_cycle(model: S2S) -> None:
    """Expect one power iteration of G and D on the weights before their steps, and one BatchNorm update of R."""
    plain = PlainCycle(model, LossConfig(), TRAIN)
    for network in (plain.model.generator, plain.model.discriminator):
        _power_iterate(network)
    satellite, street = batch(4)
    plain.model.retrieval.embed_street(street)
    expected = state_of(plain.model)
    before = state_of(model)
    TrainingStep(model, LossConfig(), TRAIN)(satellite, street)
    statistics = ("weight_u", "weight_v", "running_mean", "running_var", "num_batches_tracked")
    names = [name for name in before if name.endswith(statistics)]
    assert len(names) > 100
    for name in names:
        torch.testing.assert_close(model.state_dict()[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")
    assert {n for n in moved(before, model) if n.endswith("num_batches_tracked")} == {
        n for n in names if n.endswith("num_batches_tracked")
    }


def test_exactly_the_trained_weights_change(model: S2S) -> None:
    before = state_of(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    untrained = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert len(untrained) == 29  # biases before an instance norm, one of another instance norm among them
    TrainingStep(model, LossConfig(), TRAIN)(*batch(4))
    changed = moved(before, model)
    assert trained - changed == set()
    assert changed & untrained == set()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_each_network_has_its_own_rate(model: S2S) -> None:
    """Adam's first step equals the rate unless the gradient is tiny."""
    before = state_of(model)
    TrainingStep(model, LossConfig(), TRAIN)(*batch(4))
    for network, rate in zip(NETWORKS, (1e-3, 2e-3, 5e-4), strict=True):
        name = {"generator": "decoder.head.weight", "discriminator": "conv5.weight"}.get(network, "street_attention.b2")
        step = (model.state_dict()[f"{network}.{name}"] - before[f"{network}.{name}"]).abs().max()
        assert step.item() == pytest.approx(rate, rel=1e-3)


def test_a_single_pair_leaves_the_triplet_term_out(model: S2S) -> None:
    cycle = TrainingStep(model, LossConfig(), TRAIN)
    cycle(*batch(4))  # Adam now has a momentum that would move R without a gradient
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = cycle(*batch(1), discard=90.0)
    assert (found["r_loss"], found["ret_weighted"], found["kept"], found["valid"]) == (0.0, 0.0, 0.0, 0.0)
    assert found["g_loss"] == pytest.approx(found["gan"] + found["l1_weighted"])
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in changed if name.startswith("retrieval")} == set()
    assert {"generator.decoder.head.weight", "discriminator.conv5.weight"} <= changed


def test_no_valid_negative_leaves_the_triplet_term_out(model: S2S) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.retrieval.named_parameters()}
    found = TrainingStep(model, LossConfig(), TRAIN)(*batch(3), negatives=torch.eye(3, dtype=torch.bool))
    assert (found["r_loss"], found["kept"], found["valid"]) == (0.0, 0.0, 0.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.retrieval.named_parameters())


def test_the_weights_of_the_losses(model: S2S) -> None:
    default = TrainingStep(copy.deepcopy(model), LossConfig(), TRAIN)(*batch(4))
    found = TrainingStep(model, LossConfig(lambda_gan=0.5, lambda_ret=2.0, lambda_l1=3.0), TRAIN)(*batch(4))
    assert found["gan"] == pytest.approx(default["gan"])
    assert found["ret_weighted"] == pytest.approx(default["ret_weighted"] * 2 / 1000)
    assert found["l1_weighted"] == pytest.approx(default["l1_weighted"] * 3 / 100)
    assert found["g_loss"] == pytest.approx(0.5 * found["gan"] + found["ret_weighted"] + found["l1_weighted"])


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
@pytest.mark.parametrize("loss", [LossConfig(), INFONCE], ids=["triplet", "infonce"])
def test_pieces_of_other_views_have_the_gradients_of_the_whole_batch(
    model: S2S, micro_batch: int, loss: LossConfig
) -> None:
    for norm in (module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)):
        norm.frozen = True
    pieces = copy.deepcopy(model)
    query, reference = views(4)
    options = {"seen": query[1], "query": query, "reference": reference, "negatives": NEGATIVES}
    expected = TrainingStep(model, loss, TRAIN)(*batch(4), **options)
    cycle = TrainingStep(pieces, loss, TRAIN.model_copy(update={"micro_batch": micro_batch}))
    assert cycle(*batch(4), **options) == pytest.approx(expected, rel=1e-9)
    for network in NETWORKS:
        named = model.get_submodule(network).named_parameters()
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        assert_same_gradients(pieces.get_submodule(network), gradients)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
@pytest.mark.parametrize(("discard", "negatives"), [(0.0, None), (60.0, NEGATIVES)])
def test_pieces_have_the_gradients_of_the_whole_batch(
    model: S2S, micro_batch: int, discard: float, negatives: Tensor | None
) -> None:
    for norm in (module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)):
        norm.frozen = True
    pieces = copy.deepcopy(model)
    whole = TrainingStep(model, LossConfig(), TRAIN)
    cycle = TrainingStep(pieces, LossConfig(), TRAIN.model_copy(update={"micro_batch": micro_batch}))
    for seed in range(2):
        expected = whole(*batch(4, seed), discard=discard, negatives=negatives)
        assert cycle(*batch(4, seed), discard=discard, negatives=negatives) == pytest.approx(expected, rel=1e-9)
        for network in NETWORKS:
            named = model.get_submodule(network).named_parameters()
            gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
            assert_same_gradients(pieces.get_submodule(network), gradients)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(pieces.get_buffer(name), buffer, msg=lambda m, n=name: f"{n}: {m}")


def test_pieces_need_the_memory_of_one(model: S2S) -> None:
    """Count the values that the backward pass keeps at a time."""
    for norm in (module for module in model.modules() if isinstance(module, GlobalBatchNorm2d)):
        norm.frozen = True

    def kept_at_once(micro_batch: int | None) -> int:
        held: dict[int, int] = {}
        most = 0

        def pack(saved: Tensor) -> Tensor:
            nonlocal most
            storage = saved.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, held.pop, storage.data_ptr(), None)
            most = max(most, sum(held.values()))
            return saved

        cycle = TrainingStep(copy.deepcopy(model), LossConfig(), TRAIN.model_copy(update={"micro_batch": micro_batch}))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            cycle(*batch(8))
        return most

    assert kept_at_once(1) < kept_at_once(None) / 3


@pytest.mark.parametrize("poisoned", ["satellite", "street"])
def test_a_bad_pair_is_detected_before_any_weight_changes(model: S2S, poisoned: str) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    views = dict(zip(("satellite", "street"), batch(4), strict=True))
    views[poisoned][2, 1, 7, 9] = torch.nan
    with pytest.raises(NotFiniteError, match="d_loss is nan"):
        TrainingStep(model, LossConfig(), TRAIN)(**views)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_exploding_weights_are_detected_before_the_generator_changes(model: S2S) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.generator.named_parameters()}
    rates = TRAIN.model_copy(update={"lr_discriminator": 1e300})
    with pytest.raises(NotFiniteError, match=r"gan is (nan|inf)"):
        TrainingStep(model, LossConfig(), rates)(*batch(4))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.generator.named_parameters())


def test_the_norms_of_the_gradients(model: S2S) -> None:
    found = TrainingStep(model, LossConfig(), TRAIN)(*batch(4))
    for network, name in zip(NETWORKS, ("g_grad_norm", "d_grad_norm", "r_grad_norm"), strict=True):
        gradients = [p.grad for p in model.get_submodule(network).parameters() if p.grad is not None]
        assert found[name] == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item())


def test_evaluation_mode_updates_no_statistics(model: S2S) -> None:
    before = state_of(model)
    TrainingStep(model.eval(), LossConfig(), TRAIN)(*batch(2))
    parameters = {name for name, _ in model.named_parameters()}
    assert moved(before, model) - parameters == set()


def test_a_frozen_batchnorm_never_changes() -> None:
    torch.manual_seed(0)
    model = S2S(TINY.model_copy(update={"street_batchnorm": "frozen"})).double().train()
    before = state_of(model.retrieval)
    TrainingStep(model, LossConfig(), TRAIN)(*batch(3))
    changed = moved(before, model.retrieval)
    assert {name for name in changed if "running" in name or "tracked" in name} == set()
    assert "street_encoder.bn1.weight" in changed  # its affine part is trained all the same


def test_frozen_networks_thaw_even_after_an_error(model: S2S) -> None:
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def fail() -> None:
        with frozen(model.generator, model.retrieval):
            networks = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
            assert networks == {"discriminator"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_bfloat16_follows_single_precision(model: S2S) -> None:
    """D and R change much in their steps: a stale cast of a weight would show in gan and ret_weighted."""
    for block in model.generator.encoder.bottleneck:
        nn.init.normal_(block.norm2.bias)  # features of zero mean alone make descriptors of rounding
    model.float()
    train = TRAIN.model_copy(update={"lr_discriminator": 0.01, "lr_retrieval": 0.001})
    satellite, street = (images.float() for images in batch(6))
    stale, _ = PlainCycle(model, LossConfig(), train)(satellite, street, order="GDR")
    losses = {}
    for precision in ("fp32", "bf16"):
        trained = copy.deepcopy(model)
        cycle = TrainingStep(trained, LossConfig(), train.model_copy(update={"precision": precision}))
        losses[precision] = cycle(satellite, street)
        assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
        assert all(p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)
    for name in LOSS_NAMES:
        assert losses["bf16"][name] == pytest.approx(losses["fp32"][name], rel=0.05), name
        assert losses["bf16"][name] != losses["fp32"][name], name
    for name in ("gan", "ret_weighted"):
        assert losses["bf16"][name] != pytest.approx(stale[name], rel=0.1), name
