"""The training loop: epochs of cycles, validation after each epoch, and checkpoints that resume at any step.

It runs without Ray; `s2s_ray.training.ray_train` starts it on workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from s2s_ray.config import Config
from s2s_ray.data.augmentation import query_views, reference_views
from s2s_ray.data.batch import Batch
from s2s_ray.data.places import metres_rule, places_of
from s2s_ray.data.sampler import GlobalBatchSampler, epoch_order, share
from s2s_ray.data.schema import Metres
from s2s_ray.errors import DivergedError, NotFiniteError, S2SError
from s2s_ray.model.losses import allowed_negatives
from s2s_ray.model.pretrained import initialise_street_encoder
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import rank, sum_over_ranks, world_size
from s2s_ray.training.guard import Check, guarded
from s2s_ray.training.logbook import Logbook
from s2s_ray.training.means import EpochMeans
from s2s_ray.training.mining import MiningSchedule
from s2s_ray.training.ready import open_split
from s2s_ray.training.run import check_resumable, checkpoint_store, run_uri, save_config
from s2s_ray.training.schedule import set_rates
from s2s_ray.training.step import TrainingStep
from s2s_ray.training.telemetry import Gauges, Telemetry
from s2s_ray.training.trackers import open_trackers
from s2s_ray.training.validation import validation_quality, validation_recall

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """The trainer of one run on one worker. Every worker builds the same and calls `fit`."""

    def __init__(self, config: Config, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.train_set = open_split(config, "train", flip=config.data.flip)
        self.validation_set = open_split(config, "val", flip=0.0)
        torch.manual_seed(config.train.seed)
        self.model = S2S(config.model).to(self.device)
        self.cycle = TrainingStep(self.model, config.loss, config.train)
        self.mining = MiningSchedule(config.mining)
        self.store = checkpoint_store(config)
        self.history: list[dict[str, Any]] = []
        self.epoch = 0
        self.batches_done = 0  # of this epoch
        self.global_step = 0
        self._means = EpochMeans()
        self._measure(metres_rule(self.train_set))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.train_set.places)) if name is not None}
        places = [-1 if name is None else numbers[name] for name in self.train_set.places]
        self._named = torch.tensor(places) if numbers else None

    def fit(
        self,
        report: Report = lambda metrics: None,
        *,
        repeat: bool = False,
        gauges: Gauges | None = None,
        check: Check | None = None,
        wait: bool = False,
    ) -> list[dict[str, Any]]:
        """Train to the last epoch, starting from the newest checkpoint of the run if it has one.

        Args:
            report: receives the metrics of each epoch on every worker. On the first worker they include the newest
                stored `checkpoint`, which is not yet the one of this epoch.
            repeat: report the epochs that were finished before this attempt first.
            gauges: receives the state of the training while it runs.
            check: called on the first worker before every write, by the driver that holds the run's lease. None: the
                first worker holds the lease itself.
            wait: wait for the end of another driver of the run that is alive, instead of refusing.

        Returns: the history, one entry per epoch.

        Raises:
            DivergedError: a loss or a gradient is not finite, on every worker at the same step. No checkpoint of that
                state is written.
            RunError, CheckpointError: the run was started with settings that are incompatible with these, or another
                process drives it.
        """
        with guarded(self.config, check, wait=wait) as self._check:
            self.store.require_lease = self._check
            return self._fit(report, repeat, gauges)

    def _fit(self, report: Report, repeat: bool, gauges: Gauges | None) -> list[dict[str, Any]]:
        self._resume()
        for metrics in self.history if repeat else ():
            report(metrics)
        if rank() == 0:
            self._check()
            save_config(self.config)
        train = self.config.train
        trackers = open_trackers(self.config) if rank() == 0 else ()
        logbook = Logbook(run_uri(self.config), train.epochs, train.log_every_s, trackers)
        telemetry = Telemetry(gauges, self.device, train.epochs)
        try:
            if rank() == 0:
                logbook.start()
            while self.epoch < train.epochs:
                self._train_epoch(logbook, telemetry)
                metrics = self._end_epoch(logbook)
                telemetry.epoch(metrics)
                report(metrics)
        except DivergedError as error:
            if rank() == 0:
                self._check()
                logbook.diverged(str(error))
            raise
        finally:
            try:
                self.store.flush()
            finally:
                logbook.close(complete=self.epoch >= train.epochs, drives=not trackers or self._drives())
        return self.history

    def _drives(self) -> bool:
        """Return whether this process is known to drive the run still."""
        try:
            self._check()
        except S2SError:
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything besides the model that the remainder of the run depends on."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.cycle.optimizers.items()},
            "mining": self.mining.state_dict(),
            "history": self.history,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "global_step": self.global_step,
            "sums": self._means.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved position. Learning rates and betas stay as configured: a user may change them in between."""
        for name, optimizer in self.cycle.optimizers.items():
            configured = [_hyperparameters(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            for group, hyperparameters in zip(optimizer.param_groups, configured, strict=True):
                group.update(hyperparameters)
        self.mining.load_state_dict(state["mining"])
        self.history = state["history"]
        self.epoch, self.batches_done = state["epoch"], state["batches_done"]
        self.global_step = state["global_step"]
        self._means.load_state_dict(state["sums"])
        torch.set_rng_state(state["rng"])

    def _resume(self) -> None:
        """Resume from the newest sound checkpoint, the same on every worker, or else load the starting weights."""
        saved = self.store.newest() if rank() == 0 else None
        step = torch.tensor([0], device=self.device)
        if rank() == 0:
            step += -1 if saved is None else saved.meta["step"]
        sum_over_ranks(step)
        if step.item() < 0:
            initialise_street_encoder(self.model.retrieval.street_encoder, self.config.model.street_weights)
            return
        if saved is None:
            saved = self.store.load(int(step.item()))
        check_resumable(saved.uri, saved.meta, self.config, self.train_set.info.digest)
        self.model.load_state_dict(saved.model)
        self.load_state_dict(saved.trainer)
        self._measure(saved.meta["dataset"].get("metres", "utm"))  # a run keeps the rule that it was started with
        logger.info("resumed %s: epoch %d, step %d", saved.uri, self.epoch + 1, self.global_step)

    def _measure(self, metres: Metres) -> None:
        """Measure distances between training pairs by a rule."""
        self._metres, self._places = metres, places_of(self.train_set, metres)

    def _train_epoch(self, logbook: Logbook, telemetry: Telemetry) -> None:
        """Run the remaining cycles of the current epoch."""
        train = self.config.train
        order = epoch_order(self.train_set.shard_sizes, train.seed, self.epoch, self.config.data.window)
        steps = math.ceil(len(order) / train.batch)
        discard = self.mining.discard(self.epoch)
        self.model.train()
        logbook.start_epoch()
        for batch in telemetry.waiting_for(self._batches()):
            pairs = order[self.batches_done * train.batch :][: train.batch]
            set_rates(self.cycle.optimizers, train, self.global_step, steps * train.epochs)
            try:
                losses = self.cycle(
                    self.model.normalise(batch.polar),
                    self.model.normalise(batch.street),
                    seen=self._seen(batch),
                    query=self._query(batch),
                    reference=self._reference(batch),
                    shares=[len(share(pairs, worker, world_size())) for worker in range(world_size())],
                    negatives=self._negatives(pairs),
                    discard=discard,
                )
            except NotFiniteError as error:
                ids = ", ".join(self.train_set.ids[i] for i in pairs)
                raise DivergedError(f"step {self.global_step + 1}: {error} (pairs {ids})") from None
            self.batches_done += 1
            self.global_step += 1
            self._means.add(losses, len(pairs))
            if rank() == 0:
                logbook.step(self.global_step, self.epoch, self.batches_done, steps, len(pairs), losses)
            telemetry.step(self.global_step, self.epoch, len(pairs), losses, self.store.stored_at)
            every = train.checkpoint_every
            if every and self.global_step % every == 0 and self.batches_done < steps:
                self._save({})

    def _batches(self) -> Iterable[Batch]:
        """Yield this worker's shares of the epoch's remaining batches."""
        sampler = GlobalBatchSampler(
            self.train_set.shard_sizes,
            seed=self.config.train.seed,
            window=self.config.data.window,
            batch=self.config.train.batch,
            rank=rank(),
            world=world_size(),
            epoch=self.epoch,
            first_step=self.batches_done,
        )
        loader = DataLoader(
            self.train_set,
            batch_sampler=sampler,
            collate_fn=self.train_set.collate,
            num_workers=self.config.train.loader_workers,
            pin_memory=self.device.type == "cuda",
            # a separate generator: otherwise starting an epoch, even halfway, would advance the run's random state
            generator=torch.Generator().manual_seed(self.config.train.seed),
        )
        return (batch.to(self.device) for batch in loader)

    def _seen(self, batch: Batch) -> Tensor | None:
        """Return what of the panoramas is seen; None: all in the whole data set, the same on every worker."""
        if batch.seen is not None or not self.train_set.info.masked:
            return batch.seen
        return torch.ones((len(batch), *batch.street.shape[-2:]), dtype=torch.bool, device=batch.street.device)

    def _query(self, batch: Batch) -> tuple[Tensor, Tensor | None] | None:
        """Return the panoramas that retrieval learns to ask with, and what of them is seen; None: the aligned ones.

        All workers do the same, also one whose share is empty or wholly seen.
        """
        augmentation, masked = self.config.augmentation, self.train_set.info.masked
        if not (augmentation.varies_query or masked):
            return None
        views = query_views(batch.street, batch.seen, batch.draws)
        seen = views.seen if masked or augmentation.shows_parts else None
        return self.model.normalise(views.street, seen), seen

    def _reference(self, batch: Batch) -> Tensor | None:
        """Return the polar images that retrieval learns to find; None: the aligned ones."""
        if batch.tiles is None or batch.draws is None:
            return None
        size = (self.train_set.height, self.train_set.width)
        return self.model.normalise(reference_views(batch.tiles, self.train_set.tile_size, *size, batch.draws))

    def _negatives(self, pairs: NDArray[np.int64]) -> Tensor | None:
        """Return which pairs of the global batch may be each other's negatives, B B; None if all may.

        Pairs of one named place may not, and neither may those closer than `loss.negative_min_distance_m`.
        """
        distance, allowed = self.config.loss.negative_min_distance_m, None
        if distance is not None:
            places = self._places[pairs]
            points, frames = torch.from_numpy(places.points), torch.from_numpy(places.frames)
            allowed = allowed_negatives(points, frames, places.straight_m(distance))
        if self._named is not None:
            named = self._named[pairs]
            apart = (named[:, None] != named[None]) | (named[:, None] < 0)
            allowed = apart if allowed is None else allowed & apart
        return None if allowed is None else allowed.to(self.device)

    def _end_epoch(self, logbook: Logbook) -> dict[str, Any]:
        """Validate, record the epoch and save a checkpoint; return the metrics of the epoch."""
        metrics = self._means.result()
        metrics |= {"epoch": self.epoch, "step": self.global_step, "discard": self.mining.discard(self.epoch)}
        metrics["pairs_per_second"] = logbook.pairs_per_second()
        last = self.epoch + 1 == self.config.train.epochs
        if last or (self.epoch + 1) % self.config.train.validate_every == 0:
            split = (self.validation_set, self.config.evaluation, self.device)
            metrics |= validation_recall(self.model, *split)
            if self.config.train.validate_synthesis:
                metrics |= validation_quality(self.model, *split)
        self.history.append(metrics)
        self.mining.epoch_ended(self.epoch, metrics["r_loss"], metrics.get("recall_at_1"))
        self.epoch, self.batches_done, self._means = self.epoch + 1, 0, EpochMeans()
        if rank() == 0:
            self._check()
            logbook.end_epoch(self.history)
        self._save(metrics)
        # The checkpoint of this epoch may still be uploading, so the last one that is stored is reported.
        return {**metrics, "checkpoint": self.store.committed}

    def _save(self, metrics: dict[str, Any]) -> None:
        """Pass the state to the store; only the first worker writes."""
        if rank() == 0:
            self._check()
            data = self.train_set.info
            size = data.tile_size
            meta = {
                "run": self.config.train.name,
                "step": self.global_step,
                "epoch": self.epoch,
                "workers": world_size(),
                "metrics": metrics,
                "model": self.config.model.model_dump(mode="json"),
                "config": self.config.model_dump(mode="json"),
                "dataset": {
                    "uri": self.config.data.uri,
                    "digest": data.digest,
                    "geometry": data.geometry.tree(),
                    "metres": self._metres,
                    **({} if size is None else {"tile_m": size.metres, "tile_px": size.px}),
                },
            }
            self.store.save(self.global_step, self.model.state_dict(), self.state_dict(), meta)


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
