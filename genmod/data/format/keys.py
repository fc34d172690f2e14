"""Keys of samples: what a tar calls the sample that its source calls by some name."""

from __future__ import annotations

import hashlib
import re

from genmod.data.format.codecs import EXTENSIONS

MAX_KEY_LENGTH = 80
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_-]+")
_KEPT, _DIGEST_HEX = 48, 16


def key_of(name: str) -> str:
    """The key of a sample that the source calls ``name``.

    A name of letters, digits, ``-`` and ``_`` is its own key. Anything else (dots and slashes mean something
    in a tar) is rewritten, and a digest of the whole name keeps keys apart.
    """
    if KEY_PATTERN.match(name):
        return name
    stem, dot, extension = name.rpartition(".")
    readable = stem if dot and extension.lower() in EXTENSIONS else name
    readable = _NOT_KEY.sub("-", readable).strip("-")[-_KEPT:].lstrip("-")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_HEX // 2)
    return f"{readable}-{digest.hexdigest()}" if readable else digest.hexdigest()
