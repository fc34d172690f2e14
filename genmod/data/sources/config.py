"""The recipe's ``data`` section: the source, the format of the images, the splits and the shards."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.data.format.foreign import Resize
from genmod.errors import StorageError


class Splits(Config):
    """Shares of the rows to hold out. A hash of the key selects the rows, independent of the seed."""

    val: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for evaluation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, nothing is left to train on")
        return self


_Side = Annotated[int, Field(gt=0, le=8192)]


def _check_source(text: str) -> str:
    """Check the address of a source, before it appears in plans and manifests."""
    kind, _, where = text.partition(":")
    try:
        storage.check_url(text)
        storage.check_url(where or kind)
    except StorageError as error:
        # This type of error does not print the text, which may contain a password.
        raise PydanticCustomError("secret", "{reason}", {"reason": str(error)}) from None
    return text


SourceText = Annotated[str, AfterValidator(_check_source)]
"""Type of a field: KIND:WHERE, where WHERE is a URL or path."""


NewClassesPolicy = Literal["refuse", "ignore", "rebuild"]
"""What is done with images of classes that the version before does not have."""


Identity = Literal["content", "time"]
"""What identifies a local file of a source: its bytes, or its size and time of modification."""


class SourceOptions(Config):
    """The recipe's choices that a source needs to find and identify its images and labels."""

    image: storage.Line | None = None
    """``data.image``."""
    label: storage.Line | None = None
    """``data.label``."""
    identity: Identity = "content"
    """``data.identity``."""
    labels: bool = True
    """Whether labels are wanted, which ``data.labels=false`` denies: nothing about them is unclear then."""


NO_OPTIONS = SourceOptions()
"""No choices: a source is read by its own rules."""


class DataConfig(Config):
    """The recipe's ``data``: the source, the format of the images, the splits and the shards."""

    source: SourceText
    """``builtin:digits``, ``builtin:mnist5k``, ``idx:FOLDER``, ``folder:FOLDER``, ``npz:FILE``,
    ``webdataset:TARS``, ``parquet:FILES``."""
    image: storage.Line | None = Field(default=None, exclude_if=lambda name: name is None)
    """Member, column or array that contains the image, where a source has several: ``jpg`` or ``photo.png``
    in tars, the column in Parquet files, the array in npz files."""
    label: storage.Line | None = Field(default=None, exclude_if=lambda name: name is None)
    """Member, column, array or file that contains the label, where a source has several: ``txt`` or
    ``json:KEY`` in tars; ``FILE:COLUMN`` next to images; ``folder`` for names of folders, also in tars; the
    column in Parquet files."""
    identity: Identity = "content"
    """``content``: a source is the same only if the bytes of its files are (SHA-256 of local files, checksums
    or ETags of stores). ``time``: of local files, size and time of modification count, and they are not read;
    for large sources. A copy with other times is then another source."""
    image_size: _Side | tuple[_Side, _Side] | None = None
    """Side in pixels, or (height, width). Default: the most common size of a sample of the source."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for RGB. Default: 3 if a sample of the source has colour; grey is then repeated."""
    levels: Literal[2, 256] = 256
    """256, or 2 for binary pixels 0 and 255: thresholded at 128, or drawn (``draw_seed``)."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """With 2 levels: store greys, and draw each pixel as 255 with probability grey / 255. Each row has one
    fixed draw with this seed, for evaluation; training draws again at each visit of a row."""
    resize: Resize = "none"
    """Treatment of images of another size: ``none`` rejects them, ``fit`` stretches them, ``crop`` scales
    them to cover the target and crops the centre, ``pad`` scales them to fit and pads with black."""
    labels: bool | Literal["auto"] = "auto"
    """``true`` requires labels, ``false`` ignores them, ``auto`` uses them if the source has them."""
    classes: int | None = Field(default=None, gt=0, le=BUDGET.classes)
    """Number of classes. Default: as many as the source has."""
    shard_rows: int | None = Field(default=None, gt=0, le=BUDGET.shard_rows)
    """Rows per shard. Default: 2048, or fewer for large images, to stay below 32 MiB of pixels."""
    splits: Splits | Literal["source"] = Splits()
    """``source`` keeps the splits that the source declares: in folders, files or a
    column named train, val and test."""
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """Share of the inputs that may be rejected; the stage fails if it is exceeded."""
    append: bool = False
    """``genmod shard`` writes the dataset's next version: the newest one plus new rows of the source. Does
    not affect the result."""
    new_classes: NewClassesPolicy = "refuse"
    """Images of classes that the version before does not have, when one is appended or retrained: ``refuse``
    fails the stage; ``ignore`` leaves them out and counts them; ``rebuild`` makes the next version of
    all that the source has now, with these classes. A champion that lacks a class is not compared with: the
    limits of ``promote.rules`` alone decide on the first model that has it."""
    workers: int | None = Field(default=None, gt=0, le=65_536)
    """Shards to write in parallel; by default one per CPU. Does not affect the result."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.draw_seed is not None and self.levels != 2:
            raise ValueError("draw_seed draws binary pixels; set levels to 2, or leave it out")
        if self.labels is False and self.label is not None:
            raise ValueError("labels=false contradicts label, which chooses the labels; remove one")
        return self

    @property
    def options(self) -> SourceOptions:
        """The choices for the source."""
        return SourceOptions(
            image=self.image,
            label=self.label,
            identity=self.identity,
            labels=self.labels is not False,
        )

    def result(self) -> dict[str, Any]:
        """Fields that determine the bytes, for the fingerprint; the source is represented by its content."""
        return self.model_dump(
            mode="json",
            exclude={"source", "identity", "max_quarantined", "append", "new_classes", "workers"},
        )
