"""Access control: bearer tokens, of which the settings hold the SHA-256 and never the secret.

The secrets are 256 random bits (`s2s token`), so a plain hash is enough: they cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from s2s_ray.errors import RequestError
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.settings import Token

_bearer = HTTPBearer(auto_error=False, description="Required only if the service is configured with tokens.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


Api = Annotated[Exchange, Depends(_exchange)]
"""The exchange of a request, as a parameter of its route."""


async def authorized(api: Api, credentials: Credentials) -> None:
    """Admit callers with a token, or everyone if no tokens are configured. Raises RequestError (401)."""
    tokens = api.service.args.tokens
    if tokens:
        api.caller = _identify(tokens, credentials).name


async def administrator(api: Api, credentials: Credentials) -> None:
    """Admit callers with an admin token. Raises RequestError (401, 403)."""
    tokens = api.service.args.tokens
    if not any(token.admin for token in tokens):
        raise RequestError(
            403, "This service has no admin token configured, so releases can be changed only in the registry."
        )
    token = _identify(tokens, credentials)
    api.caller = token.name
    if not token.admin:
        raise RequestError(403, f"Token {token.name!r} is not allowed to change releases.")


def _identify(tokens: tuple[Token, ...], credentials: HTTPAuthorizationCredentials | None) -> Token:
    if credentials is None:
        raise RequestError(401, "A token is required: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
    digest = hashlib.sha256(credentials.credentials.encode()).hexdigest()
    # Every token is compared, even after a match, so that the time reveals nothing about the position.
    fitting = [token for token in tokens if hmac.compare_digest(token.sha256, digest)]
    if not fitting:
        raise RequestError(401, "Unknown token.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
    return fitting[0]
