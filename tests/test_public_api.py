"""The public API: what `s2s_ray` exports, what the reference documents, and that nothing heavy is imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import s2s_ray

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "api" / "public.md"


def test_the_reference_documents_exactly_the_public_names() -> None:
    documented = re.findall(r"^::: s2s_ray\.(\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted([*documented, "__version__"]) == sorted(s2s_ray.__all__)


@pytest.mark.parametrize("name", s2s_ray.__all__)
def test_each_name_can_be_imported(name: str) -> None:
    value = getattr(s2s_ray, name)

    assert name in dir(s2s_ray)
    assert name == "__version__" or value.__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = s2s_ray.nothing


def test_the_package_is_imported_without_anything_heavy() -> None:
    script = "import s2s_ray, sys; assert 's2s_ray.errors' not in sys.modules; print(len(sys.modules))"
    bare = subprocess.run([sys.executable, "-c", "import sys; print(len(sys.modules))"], capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert int(done.stdout) - int(bare.stdout) < 20
