"""JSON files that the library writes for itself: typed, with a version, and migrated when an older one is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray.errors import DamagedError, S2SError, StateError, faults_of
from s2s_ray.storage import files

log = logging.getLogger(__name__)

Tree: TypeAlias = dict[str, Any]


class Document(BaseModel):
    """A persisted file: a frozen model whose `format` is the version of its keys.

    A subclass sets `FORMAT` to the version that it writes and gives, in `MIGRATIONS`, the function that turns the tree
    of each earlier version into that of the next. A file without its version has version 1. Keys that the class does
    not have, at any depth, were written by a newer release of the same version: they are logged and left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    FORMAT: ClassVar[int] = 1
    MIGRATIONS: ClassVar[Mapping[int, Callable[[Tree], Tree]]] = {}
    ERROR: ClassVar[type[S2SError]] = StateError
    """Raised for a version that cannot be read."""
    NOUN: ClassVar[str] = "file of this program"
    """The name of such a file in messages."""
    VERSION_KEY: ClassVar[str] = "format"
    """The key of the version in the file."""

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
        tree = dict(tree)
        version = tree.pop(cls.VERSION_KEY, 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DamagedError(f"{uri}: {cls.VERSION_KEY}={version!r}: expected a number from 1 on")
        if version > cls.FORMAT:
            raise cls.ERROR(
                f"{uri} has {cls.VERSION_KEY} {version}, this program reads {cls.FORMAT} and earlier: upgrade s2s-ray"
            )
        migrations = [cls.MIGRATIONS[step] for step in range(version, cls.FORMAT)]
        try:
            for migrate in migrations:
                tree = migrate(tree)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(_damaged(cls.NOUN, uri, repr(error))) from error
        try:
            document = cls.model_validate({**tree, "format": cls.FORMAT})
        except ValidationError as error:
            raise DamagedError(_damaged(cls.NOUN, uri, faults_of(error))) from None
        # Some fields are never written: where a file is, for example.
        names = {field.alias or name: None for name, field in cls.model_fields.items()}
        known = names | document.model_dump(mode="json", by_alias=True)
        if unknown := sorted(_unknown(tree, known)):
            log.warning("%s: ignored keys that this version does not know: %s", uri, ", ".join(unknown))
        return document

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
        tree = self.model_dump(mode="json")
        del tree["format"]
        return {self.VERSION_KEY: self.FORMAT, **tree}


def _damaged(noun: str, uri: str, faults: str) -> str:
    return f"{uri} is damaged: it is not a {noun} that any version writes ({faults}); restore it from a copy"


def _unknown(tree: Any, known: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a tree that are missing from what was understood of it."""
    if isinstance(tree, dict) and isinstance(known, dict):
        for key, value in tree.items():
            if key in known:
                yield from _unknown(value, known[key], f"{path}{key}.")
            else:
                yield f"{path}{key}"
    elif isinstance(tree, list) and isinstance(known, list):
        for value, kept in zip(tree, known, strict=False):
            yield from _unknown(value, kept, path)
