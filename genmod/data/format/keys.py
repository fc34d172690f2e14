"""Sample keys: the names of samples in a tar, derived from their names in the source."""

from __future__ import annotations

import hashlib
import re

from genmod.data.format.foreign import EXTENSIONS

MAX_KEY_LENGTH = 80
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
_NOT_KEY = re.compile(r"[^A-Za-z0-9_-]+")
_STEM_LENGTH, _DIGEST_HEX = 48, 16


def sample_key(name: str) -> str:
    """Derive the key of a sample from its name in the source.

    A name of at most 80 letters, digits, ``-`` and ``_`` is its own key. In other names, special characters
    become ``-`` (dots and slashes have a meaning in a tar), and a digest of the whole name is appended.

    >>> sample_key("train-00000007")
    'train-00000007'
    """
    if KEY_PATTERN.match(name):
        return name
    stem, dot, extension = name.rpartition(".")
    readable = stem if dot and extension.lower() in EXTENSIONS else name
    readable = _NOT_KEY.sub("-", readable).strip("-")[-_STEM_LENGTH:].lstrip("-")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_HEX // 2)
    return f"{readable}-{digest.hexdigest()}" if readable else digest.hexdigest()
