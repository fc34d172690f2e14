"""Class and split of an image by the folders that it is in."""

from __future__ import annotations

from genmod.data.sources.census import Census
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.names import split_of_folder
from genmod.data.sources.source import NO_LABEL
from genmod.data.sources.split_names import report_splits
from genmod.errors import DataError, sanitize
from genmod.manifest import Split

FOLDER = "folder"
"""``data.label`` that takes the names of folders as classes."""


class FolderClasses:
    """The parent folder is the class; folders at the top that are called train, val or test are splits.

    An image directly in such a folder has no label. Where a folder's name could be a class or a split, the
    source is refused, unless ``data.label`` is ``folder``: then every parent folder is a class.
    """

    def __init__(
        self, source: str, options: SourceOptions, census: Census, is_used: bool = True
    ) -> None:
        """Begin a listing.

        Args:
            source: name of the source in errors.
            options: of the recipe.
            census: of the source.
            is_used: whether names of folders are the labels; if not, none of them is unclear.
        """
        self._source, self._census = source, census
        self._is_used = is_used
        self._is_chosen = options.label == FOLDER
        self._splits: set[Split | None] = set()
        self._bare = ""
        """Folder of a split with images directly in it."""
        self._class = ""
        """Folder at the top that is a class, or contains classes."""
        self._is_labelled = False
        self._folder_of: dict[str, str] = {}
        """Folder of each class, without that of a split."""
        self._groups: set[str] = set()
        """Folders at the top that contain class folders; two are enough."""
        self._merged: dict[str, str] = {}
        """Classes that are in several folders, with the second one."""

    def place(self, name: str) -> tuple[int | str, Split | None]:
        """Label and split of an image by its path. DataError if a folder may be a class or a split."""
        top, *below = name.split("/")
        parent = ([top, *below])[-2] if below else ""
        split = split_of_folder(top) if below else None
        is_bare = split is not None and len(below) == 1
        if self._is_chosen:
            split = None if is_bare else split
        elif is_bare:
            self._bare = top
        elif parent and split is None:
            self._class = top
            if self._is_used and split_of_folder(parent) is not None:
                raise self._unclear(f"{top}/.../{parent}" if len(below) > 2 else f"{top}/{parent}")
        self._splits.add(split)
        if self._bare and self._class and self._is_used:
            raise self._unclear(self._bare, f", next to {sanitize(self._class)[:80]}")
        if not parent or (is_bare and not self._is_chosen):
            return NO_LABEL, split
        self._is_labelled = True
        folder = "/".join(
            below[:-1] if split is not None and len(below) > 1 else (top, *below[:-1])
        )
        if self._is_used and self._folder_of.setdefault(parent, folder) != folder:
            self._merged.setdefault(parent, folder)
        if "/" in folder and len(self._groups) < 2:
            self._groups.add(folder.partition("/")[0])
        return parent, split

    def report(self) -> None:
        """Add to the census what was decided."""
        if self._is_used and not self._is_labelled:
            self._census.decide("the images are in no class folders: no labels")
        self.report_merged()
        self._report_nested()
        if self._splits != {None}:
            report_splits(self._census, self._splits, "folders")

    def report_merged(self) -> None:
        """Add to the census which classes are in several folders."""
        if self._merged:
            name, second = next(iter(self._merged.items()))
            others = (
                f", as are {len(self._merged) - 1} other classes" if len(self._merged) > 1 else ""
            )
            self._census.decide(
                f"class {sanitize(name)[:80]} is in several folders ({sanitize(self._folder_of[name])[:80]}, "
                f"{sanitize(second)[:80]}), which are one class{others}; other names of folders or a file of "
                "labels separate them"
            )

    def _report_nested(self) -> None:
        """Add to the census that a class folder is below other folders, or in another class's folder."""
        if not self._is_used:
            return
        folders = set(self._folder_of.values())
        for name, folder in self._folder_of.items():
            above = folder.rpartition("/")[0]
            if above in folders:
                self._census.decide(
                    f"{sanitize(folder)[:160]} is a class of its own, {sanitize(name)[:80]}, although "
                    f"{sanitize(above)[:160]} is one too; move the images, or write a file of labels"
                )
                return
        if len(self._groups) > 1:
            name, folder = next(item for item in self._folder_of.items() if "/" in item[1])
            self._census.decide(
                f"the folder right above an image is its class: {sanitize(folder)[:160]} is class "
                f"{sanitize(name)[:80]}; a file of labels gives other classes"
            )

    def _unclear(self, folder: str, where: str = "") -> DataError:
        return DataError(
            f"{self._source}: the folder {sanitize(folder)[:160]}{where} may be a split or a class; set "
            "data.label=folder if it is a class, else put folders called train, val and test at the top"
        )
