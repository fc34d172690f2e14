"""Splits that sources declare in the names of folders, files and arrays, and in the values of a column."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from urllib.parse import unquote

from genmod.data.sources.census import Census
from genmod.manifest import SPLITS, Split

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
_WORD = re.compile(r"[^\W_]+")


def split_named(text: str) -> Split | None:
    """The split that a whole name stands for, in any case; None if it is the name of no split.

    >>> split_named("Validation"), split_named("fold 3")
    ('val', None)
    """
    return _SPLIT_NAMES.get(text.strip().lower())


def split_words(name: str) -> tuple[Split | None, str]:
    """The split that a word of a name stands for, and the other words.

    No split if words stand for different ones.

    >>> split_words("X_train"), split_words("emnist-letters-test"), split_words("train-test")
    (('train', 'x'), ('test', 'emnist_letters'), (None, 'train_test'))
    """
    words = [word.lower() for word in _WORD.findall(name)]
    splits: dict[str, Split | None] = {
        word: split_named(word.rstrip("0123456789")) or split_named(word) for word in words
    }
    names: set[Split] = {split for split in splits.values() if split is not None}
    if len(names) != 1:
        return None, "_".join(words)
    return names.pop(), "_".join(word for word in words if splits[word] is None)


def partitions_of(path: str) -> dict[str, str]:
    """Columns that the folders of a path declare as Hive does: ``KEY=VALUE``.

    >>> partitions_of("split=train/label=a%20b/part-0.parquet")
    {'split': 'train', 'label': 'a b'}
    """
    parts = (folder.partition("=") for folder in posixpath.dirname(path).split("/"))
    return {unquote(key): unquote(value) for key, equals, value in parts if key and equals}


def split_in_path(path: str) -> Split | None:
    """The split that a file declares by a folder named as one, else by a word of its own name.

    Args:
        path: path of the file below the source, with folders.

    >>> split_in_path("test/a.parquet"), split_in_path("data/train-00000-of-00002.parquet")
    ('test', 'train')
    """
    folders = posixpath.dirname(path).split("/")
    by_folder: set[Split] = {
        split for folder in folders if (split := split_named(folder)) is not None
    }
    if by_folder:
        return by_folder.pop() if len(by_folder) == 1 else None
    return split_words(posixpath.basename(path).partition(".")[0])[0]


def report_splits(census: Census, splits: Iterable[Split | None], by: str) -> None:
    """Report the splits that a source declares, if any; ``by`` says by what, in the plural."""
    declared = set(splits)
    names = [split for split in SPLITS if split in declared]
    if names:
        census.decide(
            f"the {by} declare the splits {', '.join(names)}: data.splits=source keeps them, "
            "shares ignore them"
        )
