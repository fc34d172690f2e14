"""Local and remote files by URL: whole-object reads and writes, create-if-absent writes, and a file cache.

Requests to remote stores are retried: see :mod:`genmod.storage.retry`.
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
    SETTINGS_VARIABLE,
    CacheConfig,
    StorageConfig,
    configure,
    environment_of,
    settings,
    settings_environment,
)
from genmod.storage.urls import filesystem, join, resolve

__all__ = [
    "FORWARDED_VARIABLES",
    "SETTINGS_VARIABLE",
    "CacheConfig",
    "StorageConfig",
    "check_writable",
    "configure",
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
    "settings_environment",
    "sha256",
    "sha256_of",
    "size_bytes",
    "walk_files",
    "write_bytes",
]
