"""One driver at a time for each run: the lease at `RUN/driver.json`, and what the first worker asks before it writes.

The driver of Ray Train holds the lease for its workers. A trainer without such a driver (a trial of one worker, or a
program that uses the library) holds it itself while it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from s2s_ray.config import Config
from s2s_ray.errors import RunError
from s2s_ray.runtime.collectives import rank
from s2s_ray.storage.lease import Lease, driving
from s2s_ray.training.run import run_uri

Check: TypeAlias = Callable[[], None]
"""Raises an error if this process must not write to the run any more."""


def driving_run(config: Config, *, wait: bool = False) -> AbstractContextManager[Lease]:
    """Make this process the only driver of the configured run for the duration of the block, see `driving`."""
    return driving(run_uri(config), f"run {config.train.name!r}", RunError, wait=wait)


@contextmanager
def guarded(config: Config, check: Check | None, *, wait: bool) -> Iterator[Check]:
    """Yield what a worker of the run calls before it writes.

    Args:
        config: the configuration of the run.
        check: the check of a driver that holds the lease; None: the first worker holds it itself.
        wait: wait for the end of another driver that is alive, instead of refusing.

    Raises:
        RunError: another process drives the run.
        StorageError: the lease cannot be read or written.
    """
    if check is not None:
        check()
        yield check
    elif rank() == 0:
        with driving_run(config, wait=wait) as lease:
            yield lease.check
    else:
        yield lambda: None
