"""Fixtures of the tests of the service."""

from __future__ import annotations

import pytest

from tests.support.fake_service import Fakes


@pytest.fixture
def fakes() -> Fakes:
    """Fake deployments, for one test."""
    return Fakes()
