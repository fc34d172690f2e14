"""Makes the documents: number N of a seed is always the same mutation of the same file."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from genmod.config import fingerprint
from genmod.storage import sha256
from tests.fuzz.corpus import Corpus
from tests.fuzz.kinds import KINDS, YAML_VALUES, Kind, files_of
from tests.fuzz.mutate import (
    DEEP,
    at,
    mutate_bytes,
    mutate_json_text,
    mutate_tree,
    paths_of,
    to_json,
)
from tests.fuzz.tables import mutate_parquet, mutate_safetensors, parquet_bomb

_FILE = {"path", "size_bytes", "sha256"}


@dataclass
class Document:
    """Files that are written over the corpus, and what was done to them."""

    number: int
    kind: Kind
    files: dict[str, bytes] = field(default_factory=dict)
    note: str = ""


class Documents:
    """Makes documents of a corpus.

    Args:
        corpus: the files to mutate.
        seed: of all documents.
        kinds: names of kinds; all if empty.
    """

    def __init__(self, corpus: Corpus, seed: int, kinds: tuple[str, ...] = ()) -> None:
        chosen = [kind for kind in KINDS if not kinds or kind.name in kinds]
        self.round = [kind for kind in chosen for _ in range(kind.weight)]
        random.Random(0).shuffle(self.round)
        self._corpus, self._seed = corpus, seed
        self._files = {kind.name: files_of(kind, corpus) for kind in chosen}
        self._bombs: dict[str, bytes] = {}
        self._sealed: set[str] = set()
        self._listed_by: dict[str, list[str]] = {}
        for name in corpus.files:
            tree = _parsed(corpus.files[name]) if name.endswith(".json") else None
            if tree is not None and "digest" in tree:
                self._sealed.add(name)
                for entry in _entries(tree):
                    self._listed_by.setdefault(_join(name, entry["path"]), []).append(name)
        for kind in chosen:
            assert self._files[kind.name] or not kind.targets, kind.name

    def rng(self, number: int) -> random.Random:
        """The random numbers of one document."""
        return random.Random(f"{self._seed}/{number}")

    def bomb(self, path: str) -> bytes:
        """The file, with its first row 24 million times. Made once for each kind of table."""
        suffix = "".join(PurePosixPath(path).suffixes)
        if suffix not in self._bombs:
            self._bombs[suffix] = parquet_bomb(self._corpus.files[path])
        return self._bombs[suffix]

    def make(self, number: int) -> Document:
        """Make document ``number``."""
        kind = self.round[number % len(self.round)]
        document = Document(number, kind)
        rng = self.rng(number)
        if not kind.targets:
            return document
        path = rng.choice(self._files[kind.name])
        if not path.endswith("json"):  # a large folder of equal files is one choice among others
            path = rng.choice(self._files[kind.name])
        data, note = self._mutate(path, self._corpus.files[path], rng)
        document.files[path] = data
        document.note = f"{path}: {note}"
        if rng.random() < 0.7:
            sealed = self._resealed(document.files, path)
            document.note += f"; sealed {', '.join(sealed)}" if sealed else ""
        return document

    def _mutate(self, path: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
        if rng.random() < 0.15:
            return mutate_bytes(data, rng)
        if path.endswith(".parquet"):
            if rng.random() < 0.004:
                return self.bomb(path), "24 million rows"
            return mutate_parquet(data, rng)
        if path.endswith(".safetensors"):
            return mutate_safetensors(data, rng)
        if path.endswith(".jsonl"):
            return _mutate_lines(data, rng)
        if path.endswith(".json"):
            if rng.random() < 0.06:
                return mutate_json_text(data, rng)
            return _mutate_json(data, rng)
        if path.endswith(".yaml"):
            return _mutate_yaml(data, rng)
        return mutate_bytes(data, rng)

    def _resealed(self, files: dict[str, bytes], path: str) -> list[str]:
        """Make the digests fit again: of the file in its manifests, and of the manifests themselves."""
        changed, sealed = [path], []
        while changed:
            path = changed.pop()
            for name in (*self._listed_by.get(path, ()), *([path] if path in self._sealed else [])):
                tree = _parsed(files.get(name, self._corpus.files[name]))
                if tree is None:
                    continue
                data = files.get(path, self._corpus.files[path])
                for entry in _entries(tree):
                    if _join(name, entry["path"]) == path:
                        entry.update(size_bytes=len(data), sha256=sha256(data))
                if _seal(tree):
                    files[name] = to_json(tree)
                    sealed.append(name)
        return sealed


def _entries(tree: Any) -> list[dict[str, Any]]:
    """Every file that a manifest lists."""
    values = (at(tree, path) for path in paths_of(tree))
    return [v for v in values if isinstance(v, dict) and set(v) == _FILE]


def _join(manifest: str, path: Any) -> str:
    """Path in the corpus of a file that a manifest lists."""
    folder = manifest.rpartition("/")[0]
    return f"{folder}/{path}"


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _seal(tree: dict[str, Any]) -> bool:
    """Write the digest of all other fields; False if these are no valid JSON."""
    try:
        tree["digest"] = fingerprint({key: value for key, value in tree.items() if key != "digest"})
    except (ValueError, TypeError, RecursionError):
        return False
    return DEEP not in json.dumps(tree)


def _mutate_json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    tree, note = mutate_tree(json.loads(data), rng)
    return to_json(tree), note


def _mutate_lines(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number], note = _mutate_json(lines[number], rng)
    if rng.random() < 0.1:
        lines = lines * rng.choice((2, 600))
    return b"\n".join(lines) + b"\n", f"line {number}: {note}"


_YAML_TEXTS = (
    "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 31)),
    "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 31)),
    "a: &a {b: *a}\n",
    "<<: *x\n",
    "? [a]\n: b\n",
    "? {a: b}\n: c\n",
    "1: 2\nnull: 3\n",
    "[" * 5000,
    "a: " * 3000,
    "- " * 5000,
    "\x00",
    "a: !!python/object/apply:os.system ['true']\n",
    "a: |\n" + "  x\n" * 500_000,
)


def _mutate_yaml(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.15:
        number = rng.randrange(len(_YAML_TEXTS))
        text = _YAML_TEXTS[number].encode()
        return rng.choice((text, data + text)), f"yaml: {number}"
    if rng.random() < 0.2:
        tree = yaml.safe_load(data)
        path = rng.choice(paths_of(tree))
        at(tree, path[:-1])[path[-1]] = "@here@"
        value = rng.choice(YAML_VALUES)
        return yaml.safe_dump(tree).replace("'@here@'", value).encode(), f"{path}: {value[:40]}"
    tree, note = mutate_tree(yaml.safe_load(data), rng)
    text = yaml.safe_dump(tree).replace(f"'{DEEP}'", "[" * 2000 + "]" * 2000)
    return text.encode(errors="surrogatepass"), note
