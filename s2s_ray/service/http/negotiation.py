"""Content negotiation: the media type of a response by the `Accept` header."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from s2s_ray.errors import RequestError


def negotiate(accept: str, offered: Sequence[str]) -> str | None:
    """Return the media type that an `Accept` header prefers, the first of equals; None if it accepts none."""
    ranges: dict[str, float] = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[kind] = min(max(float(quality), 0.0), 1.0)
        except ValueError:
            ranges[kind] = 0.0

    def preference(kind: str) -> float:
        family = f"{kind.partition('/')[0]}/*"
        return ranges.get(kind, ranges.get(family, ranges.get("*/*", 0.0)))

    best = max(offered, key=preference)
    return best if preference(best) > 0 else None


def accepted(request: Request, offered: Sequence[str]) -> str:
    """Return the media type of the response. Raises RequestError (406)."""
    kind = negotiate(request.headers.get("accept", "*/*"), offered)
    if kind is None:
        raise RequestError(406, f"Accept names none of {', '.join(offered)}.")
    return kind
