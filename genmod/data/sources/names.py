"""What names of files mean: hidden ones, splits, and kinds of files that are no images."""

from __future__ import annotations

import re
from functools import lru_cache

from genmod.data.sources.census import Census
from genmod.data.sources.split_names import split_in_path, split_named, split_words
from genmod.manifest import Split

HIDDEN = "hidden files and files of the operating system"
"""Kind of the files that every source passes over."""

_HIDDEN_NAMES = frozenset(
    ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
     "$recycle.bin", "system volume information", "lost+found")
)  # fmt: skip

_YEAR = re.compile(r"[-_ ]?(?:19|20)\d\d\Z")

_EXTENSION = re.compile(r"[a-z0-9]{1,10}\Z")
_KINDS = {
    "text files": "txt md rst log html htm pdf doc docx rtf",
    "annotations that are not read": "json xml mat yaml yml",
    "tables that are not read as labels": "csv tsv jsonl parquet xlsx xls",
    "archives that are not unpacked": "zip tar gz tgz bz2 xz 7z rar zst",
    "arrays": "npy npz pkl pt pth h5 hdf5",
    "videos": "mp4 mov avi mkv webm mpg mpeg",
}
_KIND_OF = {extension: kind for kind, text in _KINDS.items() for extension in text.split()}


def is_hidden(path: str) -> bool:
    """Whether operating systems hide a file or one of its folders.

    Hidden are names that start with a dot, among them resource forks (``._name``), and thumbnails.

    >>> is_hidden("./._0001.png"), is_hidden("../a/0001.png")
    (True, False)
    """
    return any(is_hidden_name(name) for name in path.split("/"))


def is_hidden_name(name: str) -> bool:
    """Whether operating systems hide a file or folder of this name, without the folders that it is in."""
    return (name[:1] == "." and name not in (".", "..")) or name.lower() in _HIDDEN_NAMES


@lru_cache(maxsize=4096)
def split_of_folder(name: str) -> Split | None:
    """Split that a folder's whole name declares, in any case; a year may follow.

    >>> split_of_folder("Training"), split_of_folder("val2017"), split_of_folder("cat")
    ('train', 'val', None)
    """
    return split_named(_YEAR.sub("", name))


def split_of_tar(path: str) -> Split | None:
    """Split that a tar declares, as in :func:`split_in_path`, else by a word in the name of a folder.

    >>> split_of_tar("imagenet-val-000.tar"), split_of_tar("test/0.tar"), split_of_tar("cifar_train/0.tar")
    ('val', 'test', 'train')
    """
    folders = reversed(path.split("/")[:-1])
    return split_in_path(path) or next(filter(None, (split_words(f)[0] for f in folders)), None)


def extension_of(name: str) -> str:
    """Extension of a file name in lower case, without the dot; empty if there is none."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and stem else ""


def pass_over_file(census: Census, name: str, image_format: str | None = None) -> None:
    """Count a file that is no image by its kind and extension.

    Args:
        census: of the source.
        name: path of the file.
        image_format: format of an image that is not read; None of anything else.
    """
    extension = extension_of(name)
    is_known = bool(_EXTENSION.match(extension))
    if image_format is not None:
        kind = f"{image_format} images, which are not read; convert them to PNG or JPEG"
    elif not extension:
        kind = "files without an extension"
    elif extension in _KIND_OF:
        kind = f"{_KIND_OF[extension]} (.{extension})"
    else:
        kind = f"files (.{extension})" if is_known else "other files"
    census.pass_over(kind, name)
