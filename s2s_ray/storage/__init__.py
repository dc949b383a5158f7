"""Files at a URI, and directories that are published as a whole.

The modules `conditional` (conditional writes), `cache` (shards on this node) and `documents` (typed JSON files) are
imported by name. Importing this package imports neither pyarrow nor boto3: they are loaded for the first remote URI.
"""

from __future__ import annotations

from s2s_ray.storage.files import (
    absolute,
    delete,
    download,
    exists,
    join,
    list_folders,
    list_names,
    modified,
    name,
    open_input,
    parent,
    read_bytes,
    read_json,
    sha256,
    size,
    upload,
    write_bytes,
    write_json,
)
from s2s_ray.storage.filesystem import is_local, local_faults, local_path
from s2s_ray.storage.manifest import MANIFEST, Manifest, is_complete, read_manifest, read_published, with_manifest
from s2s_ray.storage.publication import publish
from s2s_ray.storage.published import check, fetch, local_copy, on_this_machine

__all__ = [
    "MANIFEST",
    "Manifest",
    "absolute",
    "check",
    "delete",
    "download",
    "exists",
    "fetch",
    "is_complete",
    "is_local",
    "join",
    "list_folders",
    "list_names",
    "local_copy",
    "local_faults",
    "local_path",
    "modified",
    "name",
    "on_this_machine",
    "open_input",
    "parent",
    "publish",
    "read_bytes",
    "read_json",
    "read_manifest",
    "read_published",
    "sha256",
    "size",
    "upload",
    "with_manifest",
    "write_bytes",
    "write_json",
]
