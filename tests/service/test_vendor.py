"""The npm packages of the page: fetched, missing, and not the pinned ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from s2s_ray.errors import TamperedError
from s2s_ray.service.deploy import vendor

NPM = """#!/bin/sh
# npm pack --silent --pack-destination FOLDER PACKAGE
{command}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that packages are installed into, with an archive beside it that a fake npm can hand out."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        content = b"code"
        member = tarfile.TarInfo("package/LICENSE")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(vendor, "VENDOR", tmp_path / "vendor")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def install_npm(folder: Path, command: str) -> None:
    program = folder / "npm"
    program.write_text(NPM.format(command=command))
    program.chmod(0o755)


def test_a_package_that_cannot_be_fetched_leaves_the_page_without_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_npm(folder, "echo no network >&2; exit 1")
    vendor.main()
    assert "npm could not fetch" in capsys.readouterr().err
    assert not (folder / "vendor" / "versions").exists()


def test_a_package_that_is_not_the_pinned_one_is_refused(folder: Path) -> None:
    install_npm(folder, f'cp {folder}/package.tgz "$4"')
    with pytest.raises(TamperedError, match=r"has sha512-.*, expected sha512-.*; it was not installed"):
        vendor.main()
    assert not (folder / "vendor" / "versions").exists()
