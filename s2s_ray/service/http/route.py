"""The routes of the API, which refuse what they do not know: a misspelt parameter would silently change the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

import orjson
from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from s2s_ray.errors import RequestError
from s2s_ray.service.http import openapi
from s2s_ray.service.http.parameters import deadline, shown

_ALIKE = 0.4  # likeness of two names, from 0 to 1, below which neither is meant for the other
_LARGEST_STRAY_BODY = 4096  # enough to name the keys of a JSON object that was sent to a route without a body


async def understood(request: Request) -> None:
    """Refuse query parameters, headers of this service and bodies that the route has not. Raises RequestError (400)."""
    route: APIRoute = request.scope["route"]
    described = request.app.openapi()["paths"][route.path_format][request.method.lower()]
    known = [parameter["name"] for parameter in described.get("parameters", ()) if parameter["in"] == "query"]
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in given.items():
        if name not in known:
            raise RequestError(400, f"Unknown query parameter {shown(name)}: {_instead(name, known)}.")
        if count > 1:
            raise RequestError(400, f"Query parameter {name!r} is given {count} times: give it once.")
    for name in request.headers:
        if name.startswith("s2s-") and name != "s2s-timeout":
            raise RequestError(400, f"Unknown header {shown(name)}: the only one of its kind is S2S-Timeout.")
    if "requestBody" not in described:
        await _require_no_body(request)


class StrictRoute(APIRoute):
    """A route that checks requests after the other dependencies of the route, so after access control."""

    def __init__(
        self,
        *args: Any,
        dependencies: Sequence[Dependency] | None = None,
        responses: openapi.Responses | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            *args,
            dependencies=[*(dependencies or ()), Depends(understood), Depends(deadline)],
            responses=openapi.errors(openapi.NOT_UNDERSTOOD) | (responses or {}),
            **options,
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like another one, whatever its case; None if none looks like it."""

    def likeness(candidate: str) -> float:
        return SequenceMatcher(None, name.casefold(), candidate.casefold()).ratio()

    found = max(known, key=likeness)
    return found if likeness(found) >= _ALIKE else None


def _instead(name: str, known: Sequence[str]) -> str:
    if not known:
        return "this path takes none"
    found, takes = nearest(name, known), f"this path takes {', '.join(sorted(known))}"
    return takes if found is None else f"the nearest known one is {found!r}; {takes}"


async def _require_no_body(request: Request) -> None:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LARGEST_STRAY_BODY:
                break
    except ClientDisconnect:
        raise RequestError(400, "The connection closed before the whole request had arrived.") from None
    content = bytes(body).strip()
    if content in (b"", b"{}", b"null"):
        return
    try:
        keys = ", ".join(shown(key) for key in orjson.loads(content))
    except (orjson.JSONDecodeError, TypeError):
        keys = ""
    raise RequestError(400, f"This path takes no body{f', so nothing named {keys}' if keys else ''}: send none.")
