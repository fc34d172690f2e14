"""Files anywhere: URLs, whole-object writes, the one atomic step that publishes a result, a cache.

Local files, and remote stores that a request may fail on: see :mod:`genmod.storage.retry`.
"""

from genmod.storage.objects import (
    check_writable,
    create,
    exists,
    fsync_dir,
    list_names,
    read_blocks,
    read_bytes,
    read_ranges,
    remove,
    sha256,
    sha256_of,
    size_bytes,
    walk_files,
    write_bytes,
)
from genmod.storage.settings import (
    FORWARDED_VARIABLES,
    VARIABLE,
    CacheConfig,
    StorageConfig,
    environment_of,
    settings,
)
from genmod.storage.urls import filesystem, join, resolve

__all__ = [
    "FORWARDED_VARIABLES",
    "VARIABLE",
    "CacheConfig",
    "StorageConfig",
    "check_writable",
    "create",
    "environment_of",
    "exists",
    "filesystem",
    "fsync_dir",
    "join",
    "list_names",
    "read_blocks",
    "read_bytes",
    "read_ranges",
    "remove",
    "resolve",
    "settings",
    "sha256",
    "sha256_of",
    "size_bytes",
    "walk_files",
    "write_bytes",
]
