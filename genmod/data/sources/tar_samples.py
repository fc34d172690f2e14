"""Samples of a WebDataset tar: its members grouped by key, with the image and the label of each sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

from genmod.budget import BUDGET
from genmod.data.format.foreign import EXTENSIONS
from genmod.data.format.magic import HEAD_BYTES, image_format, unread_format
from genmod.data.format.tar import Member, walk
from genmod.data.sources.census import Census
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.folder_classes import FOLDER
from genmod.data.sources.labels import label_of, parse_label
from genmod.data.sources.names import HIDDEN, is_hidden, pass_over_file, split_of_folder
from genmod.data.sources.source import BAD_LABEL, NO_LABEL
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError, sanitize

_LABEL = "cls"
"""Extension of the label, where the recipe chooses none."""

_TEXT_BYTES = 4096
"""Bytes of a label that is a text; larger members are no labels."""

_JSON_BYTES = 1 << 20
"""Bytes of a JSON document with a label; larger ones are not read."""

_LABEL_KEYS = ("label", "labels", "class", "class_name", "cls", "category", "target")
"""Keys of JSON documents that are reported, if no member is a label."""


@dataclass(slots=True)
class TarSample:
    """The members of one key."""

    image: tuple[int, int] | None = None
    """Offset and size of the image in the tar."""
    extension: str = ""
    """Extension of the image."""
    label: int | str = NO_LABEL
    reason: str | None = None
    """Why the sample is rejected."""
    names: set[str] = field(default_factory=set[str])
    others: list[str] | None = None
    """Extensions of further images."""


@dataclass(frozen=True)
class Choice:
    """Which members are the image and the label of a sample."""

    images: tuple[str, ...]
    """Extensions by ``data.image``; empty: the only image of a sample."""
    label: str | None
    """Extension of the label; None: no member is read as the label."""
    key: str | None
    """Key of the label in a JSON document; None: the member is a text."""
    is_default: bool
    """Whether the recipe has no ``data.label``."""


def choose(options: SourceOptions) -> Choice:
    """The members that ``data.image`` and ``data.label`` mean. ConfigError for a text that means none."""
    images = tuple(
        part.strip().lstrip(".").lower() for part in (options.image or "").split(";") if part
    )
    if options.label == FOLDER or not options.labels:
        return Choice(images, None, None, is_default=False)
    extension, colon, key = (options.label or _LABEL).partition(":")
    extension = extension.strip().lstrip(".").lower()
    if (extension.rpartition(".")[2] == "json") != bool(colon and key):
        raise ConfigError(
            f"recipe: data.label is {sanitize(options.label or '')!r}, expected an extension of the tars' "
            "members, e.g. cls or label.txt, a key of JSON members, e.g. json:label, or folder"
        )
    return Choice(images, extension, key or None, options.label is None)


class TarReader:
    """Groups the members of tars by key: the path up to the first dot of the file name."""

    def __init__(self, options: SourceOptions, census: Census) -> None:
        self._choice, self._census = choose(options), census
        self.without_extension = 0
        """Images that are known by their content alone."""
        self.extensions: dict[str, None] = {}
        """Extensions of images, a few."""
        self._hints: dict[str, str] = {}
        self._folders: dict[str, None] = {}
        """Folders of images, a few."""

    def samples(self, stream: IO[bytes], url: str) -> dict[str, TarSample]:
        """Samples of one tar, in the order of their first members.

        Raises:
            DataError: not a tar, or a sample has several images and the recipe chooses none.
        """
        samples: dict[str, TarSample] = {}
        for number, member in enumerate(walk(stream, url, every=True)):
            BUDGET.check(url, "write smaller tars", tar_members=number)
            if len(member.name) > BUDGET.name_chars:
                start = f"{member.name[: BUDGET.name_chars]}... at byte {member.offset}"
                samples[start] = TarSample(reason=f"has a name of {len(member.name)} characters")
            elif is_hidden(member.name):
                self._census.pass_over(HIDDEN, member.name)
            else:
                self._add(samples, member, stream)
        for sample in samples.values():
            if sample.others and sample.reason is None:
                self._refuse(url, [sample.extension, *sample.others])
        return samples

    def _add(self, samples: dict[str, TarSample], member: Member, stream: IO[bytes]) -> None:
        """Record an image or a label, or why the sample is rejected; count other members."""
        folder, slash, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        extension = extension.lower()
        is_label = extension == self._choice.label
        is_image = not is_label and self._is_image(member, extension, stream)
        if not member.regular and not (is_image or is_label):
            return
        sample = samples.setdefault(folder + slash + stem, TarSample())
        if not member.regular:
            sample.reason = f"its member .{extension} is a link or not a regular file"
        elif member.name in sample.names:
            sample.reason = f"has two members .{extension}"
        elif is_label:
            sample.label, sample.reason = self._label(member, stream, sample.reason)
        elif is_image and sample.image is None:
            sample.image, sample.extension = (member.offset, member.size_bytes), extension
            self._see(extension)
            if len(self._folders) < 10:
                self._folders[folder.removeprefix("./")] = None
        elif is_image:
            sample.others = [*(sample.others or []), extension]
        sample.names.add(member.name)

    def _see(self, extension: str) -> None:
        if len(self.extensions) < 10:
            self.extensions[extension] = None

    def _is_image(self, member: Member, extension: str, stream: IO[bytes]) -> bool:
        """Whether a member is the image of its sample, by the recipe, its extension or its content."""
        last = extension.rpartition(".")[2]
        is_named = last in EXTENSIONS
        if self._choice.images:
            is_chosen = extension in self._choice.images
            if is_named and not is_chosen and member.regular:
                self._see(extension)
                kind = f"images that data.image does not choose (.{sanitize(extension)[:40]})"
                self._census.pass_over(kind, member.name)
            if is_named or is_chosen:
                return is_chosen
        if is_named or not member.regular:
            return is_named
        stream.seek(member.offset)
        head = stream.read(min(HEAD_BYTES, member.size_bytes))
        if image_format(head, last) is not None and not self._choice.images:
            self.without_extension += 1
            return True
        self._hint(member, extension, stream)
        pass_over_file(self._census, member.name, unread_format(head, last))
        return False

    def _label(
        self, member: Member, stream: IO[bytes], reason: str | None
    ) -> tuple[int | str, str | None]:
        """Label of a sample, and why the sample is rejected."""
        key = self._choice.key
        if member.size_bytes > (_TEXT_BYTES if key is None else _JSON_BYTES):
            return BAD_LABEL, reason
        stream.seek(member.offset)
        data = stream.read(member.size_bytes)
        try:
            if key is None:
                label = parse_label(data.decode("utf-8-sig"))
                return (BAD_LABEL if label == NO_LABEL else label), reason
            return label_of(_value_of(parse_json(data, f".{self._choice.label}", ""), key)), reason
        except UnicodeDecodeError:
            return BAD_LABEL, reason
        except DataError:
            return NO_LABEL, f"its member .{self._choice.label} is not valid JSON"

    def _hint(self, member: Member, extension: str, stream: IO[bytes]) -> None:
        """Remember the first members that may be meant as labels."""
        if not self._choice.is_default or extension in self._hints:
            return
        if extension.rpartition(".")[2] == "txt":
            self._hints[extension] = f"members .{extension} are not read; data.label={extension}"
        elif extension == "json" and member.size_bytes <= _JSON_BYTES:
            stream.seek(member.offset)
            self._hints[extension] = ""
            try:
                document = parse_json(stream.read(member.size_bytes), ".json", "")
            except DataError:
                return
            keys = [key for key in _LABEL_KEYS if isinstance(document, dict) and key in document]
            if keys:
                self._hints[extension] = (
                    f"the key {keys[0]} of members .json is not read; data.label=json:{keys[0]}"
                )

    def no_images(self, source: str) -> DataError:
        """The error for tars without any image."""
        if not self._choice.images:
            passed_over = self._census.summary() or "nothing else"
            return DataError(f"{source}: the tars contain no images, but {passed_over}")
        chosen = " or ".join(f".{name}" for name in self._choice.images)
        images = ", ".join(f".{name}" for name in self.extensions) or "none"
        return DataError(
            f"{source}: no members {sanitize(chosen)}, as data.image requires; images: {sanitize(images)}"
        )

    def report(self, is_labelled: bool) -> None:
        """Add to the census what was decided for all tars."""
        if self.without_extension:
            self._census.decide(
                f"{self.without_extension} images without an image extension are taken"
            )
        if is_labelled or not self._choice.is_default:
            return
        for hint in filter(None, self._hints.values()):
            self._census.decide(f"{hint} reads labels from there")
        folders = [name for name in self._folders if name and split_of_folder(name) is None]
        if len(folders) > 1:
            shown = sanitize(", ".join(folders[:3]))[:100] + (", ..." if len(folders) > 3 else "")
            self._census.decide(
                f"folders in the tars ({shown}) are not read as classes: no labels; data.label=folder "
                "reads them"
            )

    def _refuse(self, url: str, extensions: list[str]) -> None:
        names = ", ".join(sorted(f"{sanitize(name)[:40]}" or "(none)" for name in extensions)[:6])
        raise DataError(
            f"{url}: several images per sample: {names}; set data.image to one of them "
            "(names are split at the first dot)"
        )


def _value_of(document: object, key: str) -> object:
    """Value of a key of a JSON object; dots lead into nested objects."""
    value = document
    for part in [key] if isinstance(document, dict) and key in document else key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
