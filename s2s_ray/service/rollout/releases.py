"""Releases as the service holds them: resolved once, loaded once, changed together.

Every request is stamped with one release when it comes in, and every call it makes carries that stamp. A replica
that does not hold the release yet loads it before it answers, so that no answer is ever mixed; the rollout sees to
it that requests are stamped with a release only when all replicas have loaded it, so that nobody waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from s2s_ray import registry, storage
from s2s_ray.config import ModelConfig
from s2s_ray.errors import RegistryError
from s2s_ray.index import IndexInfo, read_info
from s2s_ray.model.checkpoint_meta import model_config, read_meta
from s2s_ray.service.settings import ServeArgs


class ReleaseKey(NamedTuple):
    """What a call carries: enough for a replica to load the release."""

    id: str
    checkpoint_uri: str
    index_uri: str


class Located(NamedTuple):
    """A release and what its checkpoint and its index say of themselves."""

    key: ReleaseKey
    meta: dict[str, Any]
    config: ModelConfig
    info: IndexInfo


def locate(args: ServeArgs, release: str | None = None) -> Located:
    """What the arguments ask for, or another release of the same name.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: what is to be served is not there, or
            the index is of another checkpoint.
    """
    if args.registry is not None and args.name is not None:
        found = registry.resolve(storage.absolute(args.registry), args.name, release or args.release)
        if found.index_uri is None:
            raise RegistryError(
                f"registry {args.registry}: release {found.id!r} of {args.name!r} has no index; attach one first"
            )
        key, mark = ReleaseKey(found.id, found.checkpoint_uri, found.index_uri), found.fingerprint
    else:
        assert args.checkpoint is not None
        assert args.index is not None, "ServeArgs has one or the other"
        checkpoint, index = storage.absolute(args.checkpoint), storage.absolute(args.index)
        mark = registry.fingerprint(checkpoint)
        key = ReleaseKey(registry.release_id(read_meta(checkpoint), mark), checkpoint, index)
    meta, info = read_meta(key.checkpoint_uri), read_info(key.index_uri)
    config = model_config(meta, key.checkpoint_uri)
    info.require(config.descriptor_size, mark)
    return Located(key, meta, config, info)


def candidates(args: ServeArgs) -> list[str | None]:
    """Releases to start with, the best first: a damaged one must not keep the service down. None: as given."""
    if not args.follows:
        return [None]
    assert args.registry is not None
    assert args.name is not None
    return list(registry.lineage(storage.absolute(args.registry), args.name)) or [None]
