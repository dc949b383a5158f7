"""Who may ask: bearer tokens, of which the configuration holds the SHA-256 and never the secret.

The secrets are 256 random bits (`s2s token`), for which a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from s2s_ray.errors import RequestError
from s2s_ray.service.settings import Token

_bearer = HTTPBearer(auto_error=False, description="Only where the service is configured with tokens.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def authorized(request: Request, credentials: Credentials) -> None:
    """Let callers with a token in; where no tokens are configured, everyone. Raises RequestError (401)."""
    tokens: tuple[Token, ...] = request.app.state.service.args.tokens
    if tokens:
        request.state.exchange.caller = _identify(tokens, credentials).name


async def administrator(request: Request, credentials: Credentials) -> None:
    """Let callers with an admin token in. Raises RequestError (401, 403)."""
    tokens: tuple[Token, ...] = request.app.state.service.args.tokens
    if not any(token.admin for token in tokens):
        raise RequestError(403, "This service has no admin token configured, so releases change in the registry only.")
    token = _identify(tokens, credentials)
    request.state.exchange.caller = token.name
    if not token.admin:
        raise RequestError(403, f"The token {token.name!r} may ask, but not change releases.")


def _identify(tokens: tuple[Token, ...], credentials: HTTPAuthorizationCredentials | None) -> Token:
    if credentials is None:
        raise RequestError(401, "A token is needed: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
    digest = hashlib.sha256(credentials.credentials.encode()).hexdigest()
    # All are compared, whichever fits, so that the time says nothing about where.
    fitting = [token for token in tokens if hmac.compare_digest(token.sha256, digest)]
    if not fitting:
        raise RequestError(401, "This token is not known here.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
    return fitting[0]
