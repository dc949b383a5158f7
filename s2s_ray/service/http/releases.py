"""The routes of the registry: the releases of the served name, promotion and rollback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Depends

from s2s_ray import registry, storage
from s2s_ray.errors import RequestError, S2SError, StorageError
from s2s_ray.service.http import openapi
from s2s_ray.service.http.exchange import PERHAPS_CHANGED, Exchange
from s2s_ray.service.http.parameters import shown
from s2s_ray.service.http.responses import as_sentence
from s2s_ray.service.http.route import StrictRoute
from s2s_ray.service.http.security import Api, administrator, authorized
from s2s_ray.service.schemas import Promotion, Releases

T = TypeVar("T")
log = logging.getLogger("s2s_ray.service")

router = APIRouter(prefix="/v1", route_class=StrictRoute)
_LONGEST_ID = 255  # a release is a folder of this name
_CHANGES = openapi.errors(
    openapi.UNAUTHORIZED,
    {
        503: "The storage of the registry failed; without Retry-After, since the change may have been made",
        504: "Not completed within S2S-Timeout; the change may have been made",
    },
    {403: "A token that may not change releases, or a service without admin tokens"},
    {
        404: "No such release, or no previous one",
        409: "The service is pinned to one release, or the release has no index or is below the floor of its name",
    },
)


@router.get(
    "/releases",
    tags=["service"],
    dependencies=[Depends(authorized)],
    responses=openapi.errors(
        openapi.UNAUTHORIZED, openapi.UNAVAILABLE, {404: "No such name in the registry"}, openapi.PINNED
    ),
)
async def releases(api: Api) -> Releases:
    """List the releases of the served name."""
    listed = await _in_registry(api, registry.list_releases)
    if not listed:
        raise RequestError(404, f"The registry has no release of {api.service.args.name!r}.")
    current = await _in_registry(api, registry.current)
    return Releases.model_validate(
        {
            "release": api.release.id,
            "releases": [
                {
                    "release": one.id,
                    "run": one.run,
                    "step": one.step,
                    "created": one.created.isoformat(),
                    "indexed": one.index_uri is not None,
                    "current": one.id == current,
                }
                for one in listed
            ],
        }
    )


@router.post(
    "/releases/{release}/promote",
    tags=["administration"],
    dependencies=[Depends(administrator)],
    responses=_CHANGES,
)
async def promote(api: Api, release: str) -> Promotion:
    """Make a release the current one; the service switches to it once it is loaded everywhere."""
    if len(release) > _LONGEST_ID:
        raise RequestError(404, f"The registry has no release {shown(release)}.")
    return await _change(api, lambda root, name: registry.promote(root, name, release))


@router.post(
    "/releases/rollback",
    tags=["administration"],
    dependencies=[Depends(administrator)],
    responses=_CHANGES,
)
async def rollback(api: Api) -> Promotion:
    """Make the previous release the current one again."""
    return await _change(api, registry.rollback)


async def _change(api: Exchange, function: Callable[[str, str], registry.Release]) -> Promotion:
    """Change the current release with a function of the registry that returns the new one.

    Raises:
        RequestError: as `_in_registry`; with a 503, the change may have been made.
    """
    api.changing = True
    chosen = await _in_registry(api, function)
    # Nothing that can fail comes after the change. A service that cannot load its release can be rolled back as well.
    return Promotion(release=None if api.stamp is None else api.stamp.id, current=chosen.id)


async def _in_registry(api: Exchange, function: Callable[[str, str], T]) -> T:
    """Call a function of the registry with its root and the served name.

    Raises:
        RequestError: 409 if the service is pinned to a release or the release has no index, 404 for an unknown
            release, 503 if the registry cannot be read or written; after a change without `Retry-After`, because
            callers that repeat it on their own would change the release twice.
    """
    args = api.service.args
    if not args.follows:
        raise RequestError(409, "This service is pinned to one release.")
    assert args.registry is not None
    assert args.name is not None
    root = storage.absolute(args.registry)
    try:
        return await asyncio.to_thread(function, root, args.name)
    except StorageError as error:
        log.error("the registry cannot be read or written: %s", error)
        if api.changing:
            raise RequestError(503, f"The registry cannot be read or written. {PERHAPS_CHANGED}") from None
        raise api.service.overloaded("The registry cannot be read or written; try again later.") from None
    except S2SError as error:
        text = str(error).removeprefix(f"registry {root}: ").replace(root, "the registry")  # callers need no address
        raise RequestError(error.http_status, as_sentence(text)) from None
