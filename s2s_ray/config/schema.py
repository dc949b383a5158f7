"""Typed configuration: one frozen tree, read from a preset or a YAML file, changed with `a.b=value`.

Unknown keys, values out of range and contradictions are refused with a `ConfigError` that names the key,
the value and what is allowed. Nothing here imports PyTorch or Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from s2s_ray.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Resize = Literal["area", "cubic"]
Contrast = Literal["none", "stretch"]
Ablation = Literal["full", "retrieval_only", "no_gan", "separate_features"]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelConfig(Section):
    """Shapes and widths of the three networks (supplement, tables 1 and 2)."""

    height: int = Field(112, description="rows of both images; a multiple of 8, at least 32")
    width: int = Field(616, description="columns of both images; a multiple of 8, at least 32")
    channels: int = Field(32, ge=4, multiple_of=4, description="generator stem; the bottleneck has 8 times as many")
    residual_blocks: int = Field(6, ge=1, description="residual blocks of the bottleneck")
    discriminator_channels: int = Field(64, ge=4, multiple_of=4, description="first convolution of D")
    discriminator_variant: Literal["paper", "released"] = Field(
        "paper", description="paper: table 2's shapes; released: padding and spectral norm of the public code"
    )
    street_blocks: tuple[int, int, int] = Field((3, 4, 6), description="ResNet blocks per stage; 3 4 6 is ResNet34")
    street_weights: str = Field(
        "random", description="'random', 'imagenet' (torchvision's ResNet34) or the URI of such a state dict"
    )
    street_batchnorm: Literal["live", "frozen"] = Field(
        "live", description="live: batch statistics over all workers; frozen: the running statistics"
    )
    masks: int = Field(8, ge=1, description="spatial attention masks per view")
    ablation: Ablation = Field(
        "full",
        description="full; retrieval_only: no synthesis; no_gan: no discriminator; separate_features: G without the "
        "retrieval loss. In the first and the last R encodes the satellite image with an encoder of its own",
    )

    @field_validator("height", "width")
    @classmethod
    def _resolution(cls, value: int) -> int:
        if value < 32 or value % 8:
            raise ValueError("must be a multiple of 8 and at least 32")
        return value

    @field_validator("street_blocks")
    @classmethod
    def _blocks(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 1:
            raise ValueError("each stage needs at least one block")
        return value

    @model_validator(mode="after")
    def _imagenet_is_resnet34(self) -> Self:
        if self.street_weights != "random" and (self.street_blocks != (3, 4, 6) or self.channels != 32):
            raise ValueError(
                "street_weights other than 'random' need street_blocks [3, 4, 6] and channels 32 (ResNet34)"
            )
        return self

    @property
    def synthesizes(self) -> bool:
        """Whether G is trained."""
        return self.ablation != "retrieval_only"

    @property
    def adversarial(self) -> bool:
        """Whether D is trained, and G against it."""
        return self.ablation in ("full", "separate_features")

    @property
    def separate_encoder(self) -> bool:
        """Whether R has a satellite encoder of its own and G no retrieval loss; else R uses G's bottleneck."""
        return self.ablation in ("retrieval_only", "separate_features")

    @property
    def feature_channels(self) -> int:
        """Channels of the local features of both views."""
        return 8 * self.channels

    @property
    def descriptor_size(self) -> int:
        """Numbers in a descriptor: feature channels times masks."""
        return self.feature_channels * self.masks


class LossConfig(Section):
    """Loss weights and the triplet loss (supplement, section B)."""

    lambda_gan: NonNegative = 1.0
    lambda_ret: NonNegative = 1000.0
    lambda_l1: NonNegative = 100.0
    alpha: Positive = Field(10.0, description="sharpness of the soft-margin triplet loss")
    real_label: Fraction = Field(0.9, description="one-sided label smoothing of the GAN loss")
    negative_min_distance_m: NonNegative | None = Field(
        None, description="pairs closer than this are not each other's negatives; needs coordinates"
    )


class MiningConfig(Section):
    """Hard-negative mining as a fine-tuning step (supplement, section B)."""

    start: Literal["never", "plateau"] | Annotated[int, Field(ge=0)] = Field(
        "plateau", description="never, once the loss has converged, or a 0-based epoch"
    )
    discard: tuple[Annotated[float, Field(ge=0.0, lt=100.0)], ...] = Field(
        (90.0, 95.0, 99.0), min_length=1, description="percentage of triplets discarded, stage by stage"
    )
    stage_epochs: int = Field(20, ge=1, description="epochs each stage lasts; the last one stays")
    metric: Literal["triplet", "recall"] = Field("triplet", description="what has to stop improving")
    patience: int = Field(5, ge=1, description="epochs without improvement that make a plateau")
    min_gain: NonNegative = Field(0.01, description="relative improvement that counts")

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: Any) -> Any:
        if value not in ("never", "plateau") and (not isinstance(value, int) or value < 0):
            raise ValueError("must be 'never', 'plateau' or an epoch from 0 on")
        return value


class SyntheticSourceConfig(Section):
    """The procedural city."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(0, ge=0, description="which world")
    train_pairs: int = Field(1000, ge=2, description="pairs of the training region (validation is held out of them)")
    test_pairs: int = Field(300, ge=2, description="pairs of a region that training never sees")
    tile_px: int = Field(128, ge=32, description="side of a satellite tile in pixels")
    tile_m: Positive = Field(64.0, description="side of a satellite tile in metres")
    panorama_height: int = Field(64, ge=16, description="rows of a rendered panorama, elevation +45 to -45 degrees")
    panorama_width: int = Field(352, ge=32, description="columns of a rendered panorama, 360 degrees")
    panorama_rays: int = Field(
        1, ge=1, le=4, description="rays per panorama pixel and axis; 1 will do where the model sees half the pixels"
    )
    spacing_m: Positive = Field(25.0, description="smallest distance between two positions; smaller is harder")
    jitter_m: NonNegative = Field(0.0, description="largest offset of the panorama from the tile's centre")
    occlusion: Fraction = Field(0.3, description="how much trees and vehicles hide along the street")
    panorama_heading: FiniteFloat = Field(0.0, description="compass bearing of the panorama's middle column, degrees")

    @property
    def panorama_rows(self) -> tuple[float, float]:
        """Rows the model sees, as fractions from the top: the renderer draws no others."""
        return (0.0, 1.0)


class ManifestSourceConfig(Section):
    """The user's own images, listed in a CSV or Parquet file."""

    kind: Literal["manifest"] = "manifest"
    uri: str = Field(description="CSV or Parquet with id, satellite, street, split and optional coordinates")
    panorama_heading: FiniteFloat = Field(
        0.0, description="compass bearing of the middle column, degrees, where a row has none"
    )
    panorama_rows: tuple[Fraction, Fraction] | None = Field(
        None,
        description="rows kept, as fractions from the top; default: the middle half of 2:1 panoramas (full spheres), "
        "all of wider ones (cropped already)",
    )
    tiles: str | None = Field(
        None, description="folder of map tiles (z/x/y), or a template with {z}, {x} and {y} or {-y}, to cut tiles from"
    )
    zoom: int | None = Field(None, ge=0, le=24, description="zoom level of the map tiles")
    geotiff: str | None = Field(None, description="GeoTIFF to cut tiles from; needs rasterio (the extra `geotiff`)")
    tile_m: Positive | None = Field(None, description="side of the tiles that are cut, in metres")
    tile_px: int = Field(512, ge=32, description="side of the tiles that are cut, in pixels")

    @field_validator("panorama_rows")
    @classmethod
    def _rows(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the first fraction must be below the second")
        return value

    @model_validator(mode="after")
    def _imagery(self) -> Self:
        if self.tiles is not None and self.geotiff is not None:
            raise ValueError("tiles and geotiff: tiles are cut from one of them, not both")
        if self.cuts_tiles and self.tile_m is None:
            raise ValueError("tile_m is missing: the side in metres of the tiles that are cut around each row's place")
        if (self.tiles is None) != (self.zoom is None):
            raise ValueError("tiles and zoom go together: which map tiles, and of which zoom level")
        return self

    @property
    def cuts_tiles(self) -> bool:
        """Whether satellite tiles are cut out of larger imagery around each row's coordinates."""
        return self.tiles is not None or self.geotiff is not None


class CvusaSourceConfig(Section):
    """CVUSA as its authors distribute it: a folder with splits/, bingmap/ and streetview/."""

    kind: Literal["cvusa"] = "cvusa"
    uri: str = Field(description="the extracted archive: a directory or an object-store URI")
    polar_contrast: Contrast = Field("none", description="stretch: each polar image to the full range, as floats saved")
    resize: Resize = Field("cubic", description="cubic (a = -0.75, no antialiasing) as released, or area")


class CvactSourceConfig(Section):
    """CVACT as its authors distribute it: a folder with ACT_data.mat, ANU_data_small/ and ANU_data_test/."""

    kind: Literal["cvact"] = "cvact"
    uri: str = Field(description="the extracted archives: a directory or an object-store URI")
    test: Literal["val", "test"] = Field("val", description="the test split: CVACT_val (8,884) or CVACT_test (92,802)")
    polar_contrast: Contrast = Field("stretch", description="stretch: each polar image to the full range, as released")


SourceConfig = Annotated[
    SyntheticSourceConfig | ManifestSourceConfig | CvusaSourceConfig | CvactSourceConfig, Field(discriminator="kind")
]
SOURCES: tuple[type[Section], ...] = (SyntheticSourceConfig, ManifestSourceConfig, CvusaSourceConfig, CvactSourceConfig)
_KINDS = {str(source.model_fields["kind"].default): source for source in SOURCES}


class PrepareConfig(Section):
    """How a source becomes a data set."""

    encoding: Literal["png", "jpeg", "webp"] = Field(
        "webp", description="webp and png are lossless, webp the smaller and faster; jpeg is smallest"
    )
    splits: tuple[Literal["train", "val", "test"], ...] = Field(
        ("train", "val", "test"), min_length=1, description="splits to write; [test] for a data set to evaluate on only"
    )
    shard_mb: Positive = Field(64.0, description="aimed size of a shard, in 10^6 bytes of encoded images")
    keep_tiles: bool = Field(False, description="also store the raw satellite tiles (galleries show them)")
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="part of the training split held out where the source names no validation pairs"
    )
    validation_block_m: Positive = Field(500.0, description="side of the blocks held out where there are coordinates")
    parallel: bool = Field(True, description="write shards as Ray Data tasks; false: in this process, without Ray")
    resources: dict[str, Positive] = Field(
        default_factory=dict,
        description="Ray resources of a shard's task; default: 1 CPU. A resource of CPU nodes alone keeps it off GPUs",
    )


class DataConfig(Section):
    """Where the data set is and how it is read."""

    uri: str = Field("data/synthetic", description="the data set: a directory or an object-store URI")
    cache_dir: str | None = Field(None, description="node-local shard cache; default: a folder below the temp dir")
    cache_gb: Positive = Field(50.0, description="largest size of the cache, in 10^9 bytes")
    window: int = Field(8, ge=1, description="shards whose pairs are shuffled together")
    flip: Fraction = Field(0.5, description="probability that both images of a pair are mirrored, training only")


class TrainConfig(Section):
    """One run of the trainer."""

    name: str = Field("run", pattern=_NAME, description="the run; the same name resumes it")
    storage: str = Field("runs", description="root of all runs: a directory or an object-store URI")
    epochs: int = Field(200, ge=1)
    batch: int = Field(32, ge=2, description="global batch, whatever the number of workers")
    lr_generator: Positive = 1e-4
    lr_discriminator: Positive = 1e-4
    lr_retrieval: Positive = 1e-4
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1, description="Ray Train workers")
    min_workers: int | None = Field(
        None, ge=1, description="with fewer nodes, train with as few workers as this and grow back; default: `workers`"
    )
    resize_every_s: Positive = Field(60.0, description="seconds between looks for more nodes, with min_workers")
    use_gpu: bool = Field(False, description="one GPU per worker and nccl; false: gloo on CPUs")
    resources_per_worker: dict[str, Positive] = Field(
        default_factory=dict, description="Ray resources of a worker; default: 1 CPU, and 1 GPU with use_gpu"
    )
    threads: int = Field(1, ge=1, description="PyTorch threads per worker on CPUs")
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = Field(True, description="images in memory as B H W 3; convolutions are faster that way")
    compile: bool = Field(
        False, description="torch.compile and CUDA graphs: faster after minutes of compiling; no bit-identical resume"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="pairs a worker computes at a time, for less memory; needs street_batchnorm frozen"
    )
    loader_workers: int = Field(0, ge=0, description="decoding processes per training worker")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints inside an epoch")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints kept, beside the best")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    validate_synthesis: bool = Field(False, description="also measure L1, PSNR and SSIM at validations")
    log_every_s: Positive = Field(10.0, description="seconds between progress lines")
    max_failures: int = Field(3, ge=-1, description="worker failures survived by restarting; -1: any number")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="experiment trackers told each epoch beside history.json; set up by their own variables"
    )

    @model_validator(mode="after")
    def _workers_have_pairs(self) -> Self:
        if self.workers > self.batch:
            raise ValueError(f"workers={self.workers} is more than batch={self.batch}: every worker needs a pair")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self


class EvaluationConfig(Section):
    """What `evaluate` measures and draws."""

    split: Literal["train", "val", "test"] = "test"
    batch: int = Field(64, ge=1)
    chunk: int = Field(4096, ge=1, description="queries compared with the gallery at a time")
    radius_m: NonNegative | None = Field(
        None, description="a match counts within this distance; default: only the pair's own tile"
    )
    lpips: Literal["alex", "vgg", "squeeze"] | None = Field(
        None, description="backbone of LPIPS; default: not measured"
    )
    fid: Literal["inception", "resnet18", "resnet34", "resnet50"] | None = Field(
        None, description="backbone of FID and KID; default: not measured"
    )
    weights: str | None = Field(
        None, description="directory or URI with those backbones' weight files; default: PyTorch's cache or the network"
    )
    gallery_rows: int = Field(8, ge=0, description="queries drawn in the galleries")


Scalar = bool | int | float | str | None


class ParameterConfig(Section):
    """One searched key: a range `low`..`high`, or `choices`."""

    low: float | None = Field(None, description="smallest value")
    high: float | None = Field(None, description="largest value")
    log: bool = Field(False, description="uniform in the logarithm")
    step: Positive | None = Field(None, description="distance of the values tried, from low on; not with log")
    integer: bool = Field(False, description="whole numbers only")
    choices: tuple[Scalar | tuple[Scalar, ...], ...] | None = Field(None, description="the values, instead of a range")
    when: dict[str, tuple[Scalar | tuple[Scalar, ...], ...]] = Field(
        default_factory=dict, description="searched only where these other searched keys have one of these values"
    )

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log, self.integer) != (None, None, None, False, False):
                raise ValueError("choices stand alone, without low, high, log, step and integer")
            if len(self.choices) < 2:
                raise ValueError(f"choices={list(self.choices)!r}: at least two are needed")
        elif self.low is None or self.high is None:
            raise ValueError("either choices, or low and high are needed")
        elif self.low >= self.high:
            raise ValueError(f"the range low={self.low:g} to high={self.high:g} is empty: low must be below high")
        elif self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g}: must be above 0 with log")
        elif self.log and self.step is not None:
            raise ValueError(f"step={self.step:g}: not with log")
        elif self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low={self.low:g} and high={self.high:g} must be whole numbers with integer")
        return self


_SPACE = {
    "loss.lambda_ret": ParameterConfig(low=100.0, high=10000.0, log=True),
    "loss.lambda_l1": ParameterConfig(low=10.0, high=1000.0, log=True),
    "loss.alpha": ParameterConfig(low=2.0, high=50.0, log=True),
    "mining.start": ParameterConfig(choices=("never", "plateau")),
    "mining.discard.0": ParameterConfig(low=50.0, high=97.0, when={"mining.start": ("plateau",)}),
}


class TuneConfig(Section):
    """A sweep: Ray Tune's trials of the one trainer, proposed by Optuna."""

    name: str = Field("sweep", pattern=_NAME, description="the sweep; the same name continues it")
    storage: str = Field("sweeps", description="root of all sweeps: a directory or an object-store URI")
    trials: int = Field(20, ge=1, description="trials in all; more of them extend a finished sweep")
    concurrent: int | None = Field(None, ge=1, description="most trials at a time; default: what the cluster holds")
    space: dict[str, ParameterConfig] = Field(
        default_factory=lambda: dict(_SPACE), description="dotted key -> what to search it over"
    )
    sampler: str = Field("TPESampler", description="a class of optuna.samplers")
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="its arguments")
    seed: int = Field(0, ge=0, description="of the sampler, where it takes one")
    synthesis: Literal["l1", "psnr", "ssim"] | None = Field(
        None, description="second objective beside validation R@1: l1 down, psnr up or ssim up; default: none"
    )
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="what stops poor trials early")
    grace_epochs: int = Field(1, ge=1, description="epochs that every trial gets")
    reduction: int = Field(3, ge=2, description="asha: one in so many goes on at each rung")
    max_failures: int = Field(2, ge=0, description="times a trial is restarted after its process was lost")
    study: str | None = Field(
        None, description="an Optuna RDB URL (sqlite:///..., postgresql://...); default: a journal beside the trials"
    )
    registry: str = Field("registry", description="where the best checkpoint is published, under the sweep's name")

    @model_validator(mode="after")
    def _early_stopping_needs_one_objective(self) -> Self:
        if self.synthesis is not None and self.scheduler != "none":
            raise ValueError(
                f"scheduler={self.scheduler!r} compares trials by one objective, and synthesis={self.synthesis!r} "
                "makes two: set tune.scheduler=none"
            )
        return self


class AblateConfig(Section):
    """An ablation study: the configured training in several variants and with several seeds, side by side."""

    name: str = Field("ablation", pattern=_NAME, description="the study; the same name continues it")
    storage: str = Field("ablations", description="root of all studies: a directory or an object-store URI")
    arms: tuple[Ablation, ...] = Field(
        ("full", "retrieval_only", "no_gan", "separate_features"), description="values of model.ablation to compare"
    )
    differences: dict[str, dict[str, Scalar | tuple[Scalar, ...]]] = Field(
        default_factory=dict, description="further arms by name: dotted keys and their values, over the configuration"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="values of train.seed for each arm"
    )
    concurrent: int | None = Field(None, ge=1, description="most runs at a time; default: what the cluster holds")
    max_failures: int = Field(2, ge=0, description="times a run is restarted after its process was lost")
    examples: int = Field(3, ge=1, description="pairs shown in the comparison of synthesised views")

    @model_validator(mode="after")
    def _distinct_arms(self) -> Self:
        for what, values in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}={list(values)!r}: one of them is there twice")
        if both := sorted(set(self.arms) & set(self.differences)):
            raise ValueError(f"differences.{both[0]}: {both[0]!r} is one of the arms already")
        if not self.arms and not self.differences:
            raise ValueError("neither arms nor differences: there is nothing to compare")
        for name in self.differences:
            if not re.match(_NAME, name):
                raise ValueError(f"differences: {name!r} cannot name a run (letters, digits, '.', '_', '-')")
        return self


class Config(Section):
    """Everything a run needs, saved with it as `config.yaml`."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    mining: MiningConfig = MiningConfig()
    source: SourceConfig = SyntheticSourceConfig()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tune: TuneConfig = TuneConfig()
    ablate: AblateConfig = AblateConfig()

    @model_validator(mode="after")
    def _pieces_have_no_statistics(self) -> Self:
        if self.train.micro_batch is not None and self.model.street_batchnorm == "live":
            raise ValueError(
                f"train.micro_batch={self.train.micro_batch} computes a batch in pieces, and model.street_batchnorm="
                "'live' normalises by the statistics of the whole batch, which no piece knows: set "
                "model.street_batchnorm=frozen, or leave train.micro_batch unset"
            )
        return self

    @model_validator(mode="after")
    def _views_to_compare(self) -> Self:
        if not self.model.synthesizes:
            for key, asked in (
                ("train.validate_synthesis", self.train.validate_synthesis),
                ("tune.synthesis", self.tune.synthesis is not None),
            ):
                if asked:
                    raise ValueError(
                        f"{key} measures synthesised views, and model.ablation={self.model.ablation!r} makes none"
                    )
        return self

    @field_validator("source", mode="before")
    @classmethod
    def _synthetic_by_default(cls, value: Any) -> Any:
        return {"kind": "synthetic", **value} if isinstance(value, Mapping) else value

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a nested mapping. Raises `ConfigError` with one line per fault."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls)) from None

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def preset_names() -> list[str]:
    """Names that `--config` takes besides file names."""
    return sorted(p.name.removesuffix(".yaml") for p in _presets().iterdir() if p.name.endswith(".yaml"))


def load_config(config: str | Path = "paper", overrides: Iterable[str] = ()) -> Config:
    """Read a preset or a YAML file and apply `a.b=value` overrides in their order.

    A file may start from a preset with a top-level `preset: NAME`; its other keys are merged over it. Values
    of overrides are YAML (`train.batch=16`, `model.street_blocks=[1,1,1]`).

    Raises:
        ConfigError: no such preset or file, not a mapping, an unknown key, a value that is not allowed.
    """
    tree = _read(str(config))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r}: expected a.b=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not YAML ({error})") from None
        if isinstance(value, str):
            value = _number(value)
        _assign(tree, key, value)
    return Config.from_tree(tree)


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; a number is the place in a list (`mining.discard.0`). Raises `ConfigError`."""
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise ConfigError(f"{key}: unknown key; {part!r} is none of {_parts(node)}")
    return node


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values at dotted keys, validated. Raises `ConfigError`."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        value_at(config, key)
        *parents, leaf = key.split(".")
        node: Any = tree
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[int(leaf) if isinstance(node, list) else leaf] = value
    return Config.from_tree(tree)


def _parts(node: Any) -> str:
    if isinstance(node, dict):
        return ", ".join(node)
    return f"0 to {len(node) - 1}" if isinstance(node, list) else "nothing: it is a single value"


def _presets() -> Any:
    return resources.files("s2s_ray.config") / "presets"


def _number(text: str) -> float | str:
    """YAML 1.1 reads `1e-4` as a string; people who write it mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _read(config: str) -> dict[str, Any]:
    if config in preset_names():
        text, name = (_presets() / f"{config}.yaml").read_text(encoding="utf-8"), f"preset {config}"
    elif Path(config).is_file():
        text, name = Path(config).read_text(encoding="utf-8"), config
    else:
        raise ConfigError(f"config {config!r} is neither a preset ({', '.join(preset_names())}) nor a file")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} holds {type(tree).__name__}, expected a mapping of sections")
    base = tree.pop("preset", None)
    if base is None:
        return tree
    if base not in preset_names():
        raise ConfigError(f"{name}: preset={base!r} is not one of {', '.join(preset_names())}")
    return _merge(_read(str(base)), tree)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in top and base.get("kind", "synthetic") != top["kind"]:
        return dict(top)  # another kind of source shares no keys with the one it replaces
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), dict)
        base[key] = _merge(base[key], value) if both else value
    return base


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = _split(key)
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}={value!r}: {parent!r} is not a section")
        tree = child
    if leaf == "kind" and tree.get("kind", "synthetic") != value:
        tree.clear()
    tree[leaf] = value


def _split(key: str) -> list[str]:
    """Parts of a dotted key; below `tune.space` the names are dotted keys themselves."""
    parts = key.split(".")
    if parts[:2] != ["tune", "space"] or len(parts) == 2:
        return parts
    searched, last = parts[2:], []
    if len(searched) > 2 and searched[-1] in ParameterConfig.model_fields:
        searched, last = searched[:-1], searched[-1:]
    return ["tune", "space", ".".join(searched), *last]


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        shown = ".".join(part for part in path if part not in _KINDS)
        if fault["type"] == "extra_forbidden":
            allowed = ", ".join(_fields(model, path[:-1]))
            lines.append(f"{shown}={fault['input']!r}: unknown key; known here: {allowed}")
        elif fault["type"] == "missing":
            lines.append(f"{shown} is missing: it has no default")
        else:
            lines.append(f"{shown or 'config'}={_short(fault['input'])}: {fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part in _KINDS:
            model = _KINDS[part]
        elif part in model.model_fields:
            inner = model.model_fields[part].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)
