"""References to environment variables: `${env:NAME}` stands for a password or key in a setting that is stored.

The reference is what is written to files and handed to other processes. Its value is inserted where the address is
used, from the environment of the process that uses it.
"""

from __future__ import annotations

import os
import re

from s2s_ray.errors import ConfigError
from s2s_ray.secrets import REFERENCE, expect, holds_secret, masked_address


def resolved(text: str) -> str:
    """Return an address with the values of its references.

    The value is inserted as it is: a password with characters such as `@` has to be percent-encoded in the variable.

    Raises:
        ConfigError: a variable that is not set.
    """

    def value(found: re.Match[str]) -> str:
        expect(found[1])
        if not os.environ.get(found[1]):
            raise ConfigError(
                f"{text}: the environment variable {found[1]} is not set in this process, and {found[0]} stands for it"
            )
        return os.environ[found[1]]

    return REFERENCE.sub(value, text)


def refuse_secret(text: str, key: str | None = None) -> None:
    """Raise ConfigError for an address, the value of `key`, with a password or key instead of a reference to it."""
    if holds_secret(text):
        shown = masked_address(text)
        raise ConfigError(f"{shown if key is None else f'{key}={shown!r}'}: {ADVICE}")


ADVICE = (
    "holds a password or key, which would be written to files and logs: put it into an environment variable NAME and "
    "write ${env:NAME} in its place (s3:// takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
)
