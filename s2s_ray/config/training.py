"""The section `train`: one run of the trainer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.protocol import Metric
from s2s_ray.config.section import NAME, BelowOne, Positive, Section
from s2s_ray.uri import Uri


class TrainConfig(Section):
    """One run of the trainer."""

    name: str = Field("run", pattern=NAME, description="the run; the same name resumes it")
    storage: Uri = Field(Uri("runs"), description="root of all runs: a directory or an object-store URI")
    epochs: int = Field(200, ge=1)
    batch: int = Field(32, ge=2, description="global batch, whatever the number of workers")
    lr_generator: Positive = 1e-4
    lr_discriminator: Positive = 1e-4
    lr_retrieval: Positive = 1e-4
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant: the paper's rates; cosine: they fall to 0 at the last epoch"
    )
    warmup_steps: int = Field(0, ge=0, description="first steps, over which the rates rise linearly")
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1, description="Ray Train workers")
    min_workers: int | None = Field(
        None, ge=1, description="with fewer nodes, train with as few workers as this and grow again; default: `workers`"
    )
    resize_every_s: Positive = Field(60.0, description="seconds between checks for more nodes, with min_workers")
    use_gpu: bool = Field(False, description="one GPU per worker and nccl; false: gloo on CPUs")
    resources_per_worker: FrozenDict[str, Positive] = Field(
        default_factory=FrozenDict, description="Ray resources of a worker; default: 1 CPU, and 1 GPU with use_gpu"
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
    best_metric: Metric = Field(
        "recall_at_1",
        description="validation figure that chooses the best checkpoint: recall_at_1, or PROTOCOL.FIGURE of one of "
        "evaluation.protocols, such as heading.recall_at_1",
    )
    validate_synthesis: bool = Field(False, description="also measure L1, PSNR and SSIM at validations")
    log_every_s: Positive = Field(10.0, description="seconds between progress lines")
    max_failures: int = Field(3, ge=-1, description="worker failures survived by restarting; -1: any number")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (),
        description="experiment trackers that receive each epoch's metrics, beside history.json; set up by their own "
        "environment variables",
    )

    @model_validator(mode="after")
    def _workers_have_pairs(self) -> Self:
        if self.workers > self.batch:
            raise ValueError(f"workers={self.workers} is more than batch={self.batch}: every worker needs a pair")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self
