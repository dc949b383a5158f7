"""JSON files that the library writes for itself: typed, with a version, and migrated when an older one is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray.errors import DamagedError, S2SError, StateError
from s2s_ray.storage import files

log = logging.getLogger(__name__)

Tree: TypeAlias = dict[str, Any]


class Document(BaseModel):
    """A persisted file: a frozen model whose `format` is the version of its keys.

    A subclass sets `FORMAT` to the version that it writes and gives, in `MIGRATIONS`, the function that turns the tree
    of each earlier version into that of the next. A file without `format` has version 1. Keys that the class does
    not have were written by a newer release of the same version: they are logged and left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    FORMAT: ClassVar[int] = 1
    MIGRATIONS: ClassVar[Mapping[int, Callable[[Tree], Tree]]] = {}
    ERROR: ClassVar[type[S2SError]] = StateError
    """Raised for a version that cannot be read."""

    format: int = 1

    @classmethod
    def parse(cls, tree: Any, uri: str) -> Self:
        """Validate the tree of a file, migrating it from an earlier version first.

        Args:
            tree: the content of the file.
            uri: the file, for messages.

        Raises:
            S2SError: `ERROR`, if a newer version that this one cannot read wrote the file.
            DamagedError: no version writes such a tree.
        """
        if not isinstance(tree, dict):
            raise DamagedError(
                f"{uri} holds {type(tree).__name__}, expected a mapping: it is damaged or another kind of file"
            )
        version = tree.get("format", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DamagedError(f"{uri}: format={version!r}: expected a number from 1 on")
        if version > cls.FORMAT:
            raise cls.ERROR(f"{uri} has format {version}, this version reads up to {cls.FORMAT}: upgrade s2s-ray")
        migrations = [cls.MIGRATIONS[step] for step in range(version, cls.FORMAT)]
        try:
            for migrate in migrations:
                tree = migrate(dict(tree))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{uri} is not a valid {cls.__name__} of format {version} ({error!r})") from error
        if unknown := sorted(str(key) for key in set(tree) - _keys(cls)):
            log.warning("%s: ignored keys that this version does not know: %s", uri, ", ".join(unknown))
        try:
            return cls.model_validate({**tree, "format": cls.FORMAT})
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in error.errors())
            raise DamagedError(f"{uri} is not a valid {cls.__name__} ({faults})") from None

    @classmethod
    def from_bytes(cls, content: bytes, uri: str) -> Self:
        """Validate the content of a JSON file. Raises the errors of `parse`."""
        return cls.parse(files.parse_json(content, uri), uri)

    @classmethod
    def read(cls, uri: str) -> Self:
        """Read a JSON file at a URI. Raises the errors of `parse`, and StorageError."""
        return cls.from_bytes(files.read_bytes(uri), uri)

    def write(self, uri: str) -> None:
        """Write the file at a URI. Raises StorageError."""
        files.write_bytes(uri, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of the JSON file; equal documents have equal bytes."""
        return files.json_bytes(self.tree())

    def tree(self) -> Tree:
        """Return the tree of the file."""
        return {**self.model_dump(mode="json"), "format": self.FORMAT}


def _keys(cls: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in cls.model_fields.items()}
