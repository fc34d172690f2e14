"""The only place that uses private names of s3fs and fsspec. Each says why; a test fails when one is gone.

Apart from :mod:`genmod.compat`, because that module imports torch, which takes seconds. pyproject.toml limits
both packages to the versions that this module was tested with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from fsspec.asyn import AsyncFileSystem


def coroutine_of(fs: AsyncFileSystem, method: str) -> Callable[..., Awaitable[Any]]:
    """The asynchronous form of a file system's method, e.g. ``cat_file``.

    Private: ``AsyncFileSystem._METHOD``. The public methods block, so that no deadline could end them.
    """
    return cast(Callable[..., Awaitable[Any]], getattr(fs, f"_{method}"))


async def call_s3(fs: AsyncFileSystem, method: str, path: str, **parameters: Any) -> dict[str, Any]:
    """One S3 request by its botocore name, with the file system's client and credentials.

    Private: ``s3fs.S3FileSystem._call_s3``. fsspec has no public way to upload single parts, to create an
    object with ``If-None-Match`` and metadata, or to read the ETag of an answer.

    Args:
        fs: an ``s3fs.S3FileSystem``; call this on its event loop.
        method: e.g. ``put_object``.
        path: ``BUCKET/KEY``.
        **parameters: of the request.
    """
    s3 = cast(Any, fs)
    bucket, key, _ = s3.split_path(path)
    return cast("dict[str, Any]", await s3._call_s3(method, Bucket=bucket, Key=key, **parameters))
