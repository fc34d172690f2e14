"""Mutations of bytes, JSON values and YAML texts. Each is a pure function of its random generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

DEEP = "@deep@"
"""Stands for 100,000 nested lists, which no library can write."""

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    -(10**18),
    2**31,
    2**32,
    2**63,
    10**9,
    10**18,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    ".",
    "..",
    "0",
    "1e9",
    "x" * 70_000,
    "\x00",
    "a\nb\x1b[2J\x1b]52;c;aGk=\x07",
    "\ud800",
    "../../etc/passwd",
    "../../../../../../etc/passwd",
    "../../outside.txt",
    "../models/m/model.json",
    "..\\..\\outside.txt",
    "/etc/passwd",
    "/etc",
    "/dev/zero",
    "/dev/stdin",
    "fifo",
    "link",
    "folder-link/passwd",
    "~/x",
    "$HOME/x",
    "file:///etc/passwd",
    "a::b",
    "simplecache::file:///etc/passwd",
    "zip://a::file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://user:word@127.0.0.1/",
    "s3://bucket/key",
    "gs://bucket/key",
    "ssh://127.0.0.1/etc/passwd",
    "sftp://127.0.0.1/x",
    "reference://x",
    "memory://x",
    "__class__",
    "BaseException",
    "SystemExit",
    [],
    [[]],
    [None],
    {},
    {"": 0},
    {"a": {"b": {"c": {}}}},
    DEEP,
)
"""Values that take the place of others."""

_URLS = (*(v for v in HOSTILE if isinstance(v, str) and v != DEEP), None, 0, [], {})
"""Values that take the place of paths and URLs."""

Paths = list[tuple[Any, ...]]


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Flip, cut, insert, double or overwrite some bytes."""
    out = bytearray(data)
    kinds = ("flip", "flip", "cut", "insert", "double", "zero", "drop", "empty", "number")
    kind = rng.choice(kinds)
    at = _position(len(out), rng)
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 1, 4, 16))):
            if out:
                out[_position(len(out), rng)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del out[at:]
    elif kind == "insert":
        out[at:at] = rng.randbytes(rng.choice((1, 4, 64, 4096)))
    elif kind == "double":
        end = min(len(out), at + rng.choice((1, 16, 512, 4096)))
        out[at:at] = out[at:end] * rng.choice((1, 1, 100))
    elif kind == "zero":
        end = min(len(out), at + rng.choice((1, 8, 64, 512)))
        out[at:end] = bytes(end - at)
    elif kind == "drop":
        del out[at : at + rng.choice((1, 8, 64, 512))]
    elif kind == "empty":
        out = bytearray(rng.choice((b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b"PAR1PAR1")))
    else:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (4 * width)))
        order = rng.choice(("little", "big"))
        out[at : at + width] = value.to_bytes(width, order)
    return bytes(out), f"bytes: {kind} at {at}"


def _position(size: int, rng: random.Random) -> int:
    """A position that is often near an end, where headers are."""
    if not size:
        return 0
    near = rng.random()
    if near < 0.3:
        return rng.randrange(min(size, 128))
    if near < 0.6:
        return size - 1 - rng.randrange(min(size, 768))
    return rng.randrange(size)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> Paths:
    """The place of every value below this one."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [prefix] if prefix else []
    for key, item in inner:
        found += paths_of(item, (*prefix, key))
    return found


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The value at a place."""
    for key in path:
        tree = tree[key]
    return tree


def mutate_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """Change one to three places of a tree of JSON values."""
    tree = copy.deepcopy(tree)
    notes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree, note = _mutate_once(tree, rng)
        notes.append(note)
    return tree, "; ".join(notes)


def _mutate_once(tree: Any, rng: random.Random) -> tuple[Any, str]:
    paths = paths_of(tree)
    if not paths or rng.random() < 0.02:
        value = copy.deepcopy(rng.choice(HOSTILE))
        return value, f"all = {_short(value)}"
    path = _place(tree, paths, rng)
    parent, key = at(tree, path[:-1]), path[-1]
    kind = rng.choice(
        ("value", "value", "value", "near", "delete", "add", "swap", "repeat", "copy")
    )
    old = parent[key]
    if kind == "value":
        parent[key] = copy.deepcopy(rng.choice(_URLS if _is_url(old) else HOSTILE))
    elif kind == "near":
        parent[key] = _near(old, rng)
    elif kind == "delete":
        del parent[key]
        return tree, f"delete {path}"
    elif kind == "add" and isinstance(parent, dict):
        parent[rng.choice(("x", "", "__init__", "path", str(key) + "s"))] = copy.deepcopy(
            rng.choice(HOSTILE)
        )
        return tree, f"add a key beside {path}"
    elif kind == "repeat" and isinstance(parent, list):
        parent[key:key] = [copy.deepcopy(old) for _ in range(rng.choice((1, 2, 100)))]
        return tree, f"repeat {path}"
    else:
        other = rng.choice(paths)
        try:
            value = copy.deepcopy(at(tree, other))
        except (KeyError, IndexError, TypeError):
            return tree, "nothing"
        if kind == "swap" and other[: len(path)] != path and path[: len(other)] != other:
            at(tree, other[:-1])[other[-1]] = copy.deepcopy(old)
        parent[key] = value
        return tree, f"{path} = the value of {other}"
    return tree, f"{path} = {_short(parent[key])}"


def _place(tree: Any, paths: Paths, rng: random.Random) -> tuple[Any, ...]:
    """A place: any; one of a name, so that a name that is rare is chosen too; or one with a path or URL."""
    if (how := rng.random()) < 0.4:
        return rng.choice(paths)
    if how < 0.8:
        name = rng.choice(sorted({_name(path) for path in paths}))
        return rng.choice([path for path in paths if _name(path) == name])
    return rng.choice([path for path in paths if _is_url(at(tree, path))] or paths)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "." in value)


def _name(path: tuple[Any, ...]) -> str:
    return next((key for key in reversed(path) if isinstance(key, str)), "")


def _near(old: Any, rng: random.Random) -> Any:
    """A value of the same type that is not quite right."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 10**6, 0.5, f"{old:x}"))
    if isinstance(old, float):
        return rng.choice((-old, old * 1e300, old / 1e300, old + 1, str(old)))
    if isinstance(old, str):
        return rng.choice(
            (old + "x", old[1:], old.upper(), old * 300, old[::-1], "../" + old, [old])
        )
    if isinstance(old, list):
        return rng.choice(
            (old[:-1], old[::-1], old * 2, old * 50, [old], {str(i): v for i, v in enumerate(old)})
        )
    if isinstance(old, dict):
        return rng.choice((list(old.values()), dict(list(old.items())[1:]), {"x": old}, [old]))
    return 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def to_json(tree: Any) -> bytes:
    """A JSON text, of NaN and of :data:`DEEP` too."""
    text = json.dumps(tree)
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def mutate_json_text(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change what only the text has: two equal keys, huge numbers, other encodings."""
    text = data.decode()
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: text.replace("{", '{"kind":"x",', 1).encode(),
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: b"[" * 200_000,
        lambda: b'{"a":' * 100_000,
        lambda: text.replace("1", "1" * 6_000, 1).encode(),
        lambda: text.replace("0", "1e999", 1).encode(),
        lambda: data + b"x",
        lambda: data * 2,
        lambda: b"[" + b"0," * 3_000_000 + b"0]",
        lambda: b" " * 30_000_000 + data,
        lambda: b'"' + b"\\u0000" * 2_000_000 + b'"',
        lambda: text.replace("true", "True").replace("null", "None").encode(),
    )
    number = rng.randrange(len(kinds))
    return kinds[number](), f"text: {number}"
