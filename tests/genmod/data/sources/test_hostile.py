"""Hostile files, one line each: accepted, or rejected with a reason, by plan, task and quarantine."""

import os
import random
import re
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from genmod.data.format.keys import sample_key
from genmod.data.reading.reader import split_reader
from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig
from genmod.data.sources.registry import open_source
from genmod.errors import DataError
from genmod.manifest import SPLITS
from tests.genmod.data.builders import encode, write_tar

RAMP = (np.add.outer(np.arange(16) * 5, np.arange(16) * 9)[..., None] + [0, 20, 40]).astype(
    np.uint8
)
COLOUR = Image.fromarray(RAMP)
GREY = COLOUR.convert("L")


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def declaring(kind, width, height):
    """A small file that says it is a large image."""
    data = encode(COLOUR.quantize(8) if kind == "GIF" else COLOUR, kind)
    if kind == "PNG":
        body = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    if kind == "GIF":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    if kind == "BMP":
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    if kind == "PPM":
        return data.replace(b"16 16", b"%d %d" % (width, height), 1)
    for tag, size in ((256, width), (257, height)):  # TIFF: tag, type LONG, count 1, value
        at = data.index(struct.pack("<HHI", tag, 4, 1))
        data = data[: at + 8] + struct.pack("<I", size) + data[at + 12 :]
    return data


def animated(kind):
    return encode(GREY, kind, save_all=True, append_images=[GREY.rotate(90)])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(COLOUR, "JPEG", exif=exif, quality=95)


def see_through():
    image = COLOUR.convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 100))
    return encode(image)


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (64 << 20), zip=True)
    return encode(COLOUR, pnginfo=info)


DEEP = encode(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 256))
PNG, JPEG = encode(COLOUR), encode(COLOUR, "JPEG", quality=90)

MARKER = 8 * (JPEG.index(b"\xff\xc0") + 1) + 3

IMAGES = {
    # extension, bytes, the reason of its rejection (None: it is accepted)
    "png cut in the middle": (".png", PNG[: len(PNG) // 2], "corrupt image"),
    "png cut before its end chunk": (".png", PNG[:-12], "corrupt image: truncated"),
    "jpeg cut in the middle": (".jpg", JPEG[: len(JPEG) // 2], "corrupt image"),
    "jpeg cut of its last bytes": (".jpg", JPEG[:-40], "corrupt image"),
    "webp cut": (".webp", encode(COLOUR, "WEBP", lossless=True)[:-9], "not a readable image|corrupt image"),
    "gif cut": (".gif", encode(GREY, "GIF")[:-40], "corrupt image"),
    "bmp cut": (".bmp", encode(COLOUR, "BMP")[:-5], "corrupt image"),
    "png with a flipped bit of pixels": (".png", flipped(PNG, 8 * 50), "checksum of its 'IDAT'"),
    "jpeg with a flipped marker": (".jpg", flipped(JPEG, MARKER), "not a readable image|corrupt"),
    "jpeg with bytes put in": (".jpg", JPEG[:-2] + bytes(9) + JPEG[-2:], "corrupt.*extraneous"),
    "png bomb": (".png", declaring("PNG", 60_000, 60_000), "declares"),
    "png bomb below Pillow's limit": (".png", declaring("PNG", 8_200, 8_200), "declares 8200x8200"),
    "jpeg bomb": (".jpg", declaring("JPEG", 65_000, 65_000), "declares"),
    "gif bomb": (".gif", declaring("GIF", 65_000, 65_000), "declares"),
    "bmp bomb": (".bmp", declaring("BMP", 40_000, 40_000), "declares"),
    "tiff bomb": (".tif", declaring("TIFF", 40_000, 40_000), "declares"),
    "ppm bomb": (".ppm", declaring("PPM", 40_000, 40_000), "declares"),
    "png with a text that unpacks to 64 MiB": (".png", text_bomb(), "corrupt image"),
    "cmyk": (".jpg", encode(COLOUR.convert("CMYK"), "JPEG"), "mode CMYK"),
    "16-bit png": (".png", DEEP, "16 bits per channel"),
    "16-bit tiff": (".tif", encode(Image.fromarray(np.ones((16, 16), np.uint16)), "TIFF"), "16 bits"),
    "16-bit ppm": (".ppm", b"P6 # deep\n16 16 65535\n" + bytes(16 * 16 * 6), "16 bits"),
    "float tiff": (".tif", encode(Image.new("F", (16, 16)), "TIFF"), "32 bits"),
    "transparent": (".png", see_through(), "transparent"),
    "animated gif": (".gif", animated("GIF"), "more than one frame"),
    "animated png": (".png", animated("PNG"), "more than one frame"),
    "animated webp": (".webp", animated("WEBP"), "more than one frame"),
    "tiff of two pages": (".tif", animated("TIFF"), "more than one frame"),
    "1x1": (".png", encode(Image.new("RGB", (1, 1))), "is 1x1, expected 16x16"),
    "empty": (".png", b"", "an empty file"),
    "text": (".jpeg", b"hello", "not a readable image"),
    "html": (".jpg", b"<html>404</html>", "not a readable image"),
    "zip": (".png", b"PK\x03\x04" + bytes(100), "not a readable image"),
    "svg": (".png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
    "palette": (".png", encode(COLOUR.quantize(256)), None),
    "palette gif": (".gif", encode(GREY, "GIF"), None),
    "turned by exif": (".jpg", rotated(), None),
    "opaque alpha": (".png", encode(COLOUR.convert("RGBA")), None),
    "1-bit": (".png", encode(GREY.convert("1")), None),
    "jpeg called png": (".png", JPEG, None),
    "png called JPG": (".JPG", PNG, None),
}  # fmt: skip


def sharded(build, root, source, twice=frozenset(), **data):
    """(manifest, reasons by name, names by key) of a source with any number of rejected inputs."""
    manifest = build(root, source=source, **{"max_quarantined": 1.0} | data)
    table = pq.read_table(f"{root}/quarantine.parquet").to_pydict()
    rows = [r for s in manifest.shards for r in pq.read_table(f"{root}/{s.index.path}").to_pylist()]
    assert len(table["name"]) == manifest.quarantined
    assert not {row["name"] for row in rows} & set(table["name"]) - twice
    reasons = dict(zip(table["name"], table["reason"], strict=True))
    return manifest, reasons, {row["key"]: row["name"] or row["key"] for row in rows}


@pytest.fixture(scope="module")
def images_below(tmp_path_factory):
    """A folder of every image of the table, and enough good ones for every split."""
    folder = tmp_path_factory.mktemp("hostile") / "images"
    folder.mkdir()
    for name, (extension, data, _) in IMAGES.items():
        (folder / f"{name}{extension}").write_bytes(data)
    for number in range(40):
        (folder / f"good{number}.png").write_bytes(PNG)
    return folder


@pytest.fixture(scope="module")
def outcome(images_below, build, tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "data"
    options = {"image_size": 16, "channels": 3, "shard_rows": 16}
    return root, sharded(build, root, f"folder:{images_below}", **options)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_accepted_or_rejected_with_a_reason(outcome, name):
    _, (_, reasons, names) = outcome
    extension, _, reason = IMAGES[name]
    if reason is None:
        assert sample_key(name + extension) in names
    else:
        assert re.search(reason, reasons[name + extension])


def test_accepted_images_have_the_right_pixels(outcome):
    root, (manifest, _, names) = outcome
    images = {}
    for split in SPLITS:
        reader = split_reader(str(root), manifest, split)
        pixels = reader.pixels(np.arange(len(reader)))
        images |= dict(zip((names[key] for key in tuple(reader.keys())), pixels, strict=True))
    assert np.array_equal(images["opaque alpha.png"].transpose(1, 2, 0), RAMP)
    assert np.array_equal(images["png called JPG.JPG"].transpose(1, 2, 0), RAMP)
    turned = np.rot90(RAMP, -1).astype(int)
    assert np.abs(images["turned by exif.jpg"].transpose(1, 2, 0) - turned).max() < 24
    assert np.array_equal(images["palette gif.gif"][0], np.asarray(GREY))


def test_every_bit_that_flips_in_a_png_is_found(tmp_path, build):
    bits = random.Random(0).sample(range(len(PNG) * 8), 200)
    for bit in bits:
        (tmp_path / f"{bit}.png").write_bytes(flipped(PNG, bit))
    for number in range(20):
        (tmp_path / f"good{number}.png").write_bytes(PNG)
    _, reasons, names = sharded(
        build, tmp_path / "d", f"folder:{tmp_path}", image_size=16, channels=3
    )
    assert len(reasons) == 200
    assert len(names) == 20


def test_bombs_are_rejected_in_little_memory(images_below):
    """The limit on the address space is 64 MiB above what the imports take; a bomb needs 200 MiB and more."""
    code = """
        import pathlib, resource, sys
        from genmod.data.format.foreign import Rejected, decode_foreign
        decode_foreign(pathlib.Path(sys.argv[1], "good0.png").read_bytes())
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for path in sorted(pathlib.Path(sys.argv[1]).glob("*bomb*")):
            try:
                decode_foreign(path.read_bytes())
            except Rejected as reason:
                assert "declares" in str(reason), (path, reason)
            else:
                raise AssertionError(path)
            print(path.name)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(images_below)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


def good(name, label=0):
    return [(f"{name}.png", PNG), (f"{name}.cls", b"%d" % label)]


TAR = {
    # members, and {key: reason of rejection, or None}
    "links": (
        [("a.png", "/etc/passwd", tarfile.SYMTYPE), ("a.cls", b"0"), *good("b"),
         ("c.png", "b.png", tarfile.LNKTYPE), ("d.png", PNG), ("d.cls", "b.cls", tarfile.SYMTYPE)],
        {"a": "link", "b": None, "c": "link", "d": "link"},
    ),
    "folders, fifos and devices": (
        [("x", None), ("x.png", "", tarfile.FIFOTYPE), ("y.png", "", tarfile.CHRTYPE), *good("z")],
        {"x": "not a regular file", "y": "not a regular file", "z": None},
    ),
    "absolute and .. names": (
        [*good("/tmp/evil"), *good("../../evil"), *good("a/../../b"), *good("C:\\evil")],
        {"/tmp/evil": None, "../../evil": None, "a/../../b": None, "C:\\evil": None},
    ),
    "dots, slashes and control characters": (
        [("a.b.png", PNG), ("a.b.cls", b"0"), *good("d/e/f"), *good("new\nline\x1b[31m"), *good("é☃")],
        {"a": "has no label", "d/e/f": None, "new\nline\x1b[31m": None, "é☃": None},
    ),
    "members out of order": (
        [("a.cls", b"1"), ("b.png", PNG), ("a.png", PNG), ("b.cls", b"0"), ("a.txt", b"why")],
        {"a": None, "b": None},
    ),
    "duplicates": (
        [*good("a", 0), *good("b"), *good("a", 1)],
        {"a": "two members", "b": None},
    ),
    "no image": ([("a.cls", b"1"), ("b.txt", b"x"), *good("c")],
                 {"a": "no image", "b": "no image", "c": None}),
    "labels": (
        [*good("a", 2), ("b.png", PNG), ("c.png", PNG), ("c.cls", b"-1"), ("d.png", PNG),
         ("d.cls", b"\xff\xfe"), ("e.png", PNG), ("e.cls", b"7"), ("f.png", PNG), ("f.cls", b""),
         ("g.png", PNG), ("g.cls", b"9" * 400)],
        {"a": None, "b": "has no label", "c": "not a class number", "d": "not a class number",
         "e": "label 7, the dataset has 3 classes", "f": "not a class number", "g": "not a class number"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAR)
def test_tars(tmp_path, build, name):
    members, expected = TAR[name]
    write_tar(tmp_path / "t.tar", members + [m for n in range(20) for m in good(f"good{n}", n % 3)])
    _, reasons, names = sharded(build, tmp_path / "d", f"webdataset:{tmp_path}/t.tar", classes=3)
    for key, reason in expected.items():
        if reason is None:
            assert sample_key(f"t/{key}") in names, (key, reasons)
        else:
            assert reason in reasons[f"t/{key}"]
    assert len(names) == 20 + sum(reason is None for reason in expected.values())


def test_members_out_of_order_keep_their_labels(tmp_path):
    write_tar(tmp_path / "t.tar", TAR["members out of order"][0])
    listing = open_source(f"webdataset:{tmp_path}/t.tar").listing()
    assert dict(zip(listing.names, listing.labels_N.tolist(), strict=True)) == {"t/a": 1, "t/b": 0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"not a tar" * 200, "no tar header"),
        (zlib.compress(b"x" * 9000), "truncated|no tar header"),
    ],
)
def test_a_file_that_is_not_a_tar_is_named(tmp_path, data, words):
    (tmp_path / "t.tar").write_bytes(data)
    with pytest.raises(DataError, match=words):
        open_source(f"webdataset:{tmp_path}/t.tar").listing()


def test_a_truncated_tar_is_named(tmp_path):
    write_tar(tmp_path / "t.tar", good("a"))
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:520])
    with pytest.raises(DataError, match=r"t\.tar: truncated in the member at byte 0"):
        open_source(f"webdataset:{tmp_path}/t.tar").listing()


def test_two_tars_of_one_name_do_not_mix(tmp_path, build):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "t.tar", [m for n in range(20) for m in good(f"{n}")])
    source = f"webdataset:{tmp_path}/{{x,y}}/t.tar"
    _, reasons, names = sharded(build, tmp_path / "d", source)
    assert reasons == {}
    assert set(names.values()) == {f"{folder}/t/{n}" for folder in "xy" for n in range(20)}


def test_a_folder_of_strange_files(tmp_path, build):
    folder = tmp_path / "in"
    for label in ("c0", "c1"):
        (folder / label).mkdir(parents=True)
        for number in range(15):
            (folder / label / f"{number}.png").write_bytes(PNG)
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    os.mkfifo(folder / "c0" / "pipe.png")
    (folder / "c0" / "round.png").symlink_to(folder)
    (folder / "c0" / "up").symlink_to(tmp_path)
    (folder / "c0" / "gone").symlink_to(tmp_path / "gone")
    os.mkfifo(folder / "c0" / "pipe")
    (folder / "c0" / "dead.png").symlink_to(tmp_path / "nothing.png")
    (folder / "c0" / "link.png").symlink_to(secret)
    os.symlink(b"self.png", os.fsencode(folder / "c1" / "self.png"))
    (folder / "c1" / "tab\tand\nline.png").write_bytes(PNG)
    with open(os.fsencode(folder / "c1") + b"/not-utf8-\xff.png", "wb") as file:
        file.write(PNG)
    (folder / "c1" / "a.png.exe").write_bytes(b"MZ")
    (folder / "c1" / "folder.png").mkdir()
    (folder / "top.png").write_bytes(PNG)
    _, reasons, names = sharded(build, tmp_path / "d", f"folder:{folder}")
    assert reasons == {
        "c0/pipe.png": "is not a regular file",
        "c0/round.png": "is a link to a folder that contains it",
        "c0/up": "is a link to a folder that contains it",
        "c0/gone": "is a link to nothing",
        "c0/dead.png": "is a link to nothing",
        "c1/self.png": "is a link that leads back to itself",
        "top.png": "has no label",
    }
    special = {"c0/link.png", "c1/tab\tand\nline.png", "c1/not-utf8-\\udcff.png"}
    assert special < set(names.values())
    assert len(names) == 33


def test_labels_of_arrays_and_tables(tmp_path, build):
    images = np.stack([RAMP] * 30)
    labels = np.arange(30) % 3
    labels[:3] = (-1, -7, 2**40)
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    _, reasons, _ = sharded(build, tmp_path / "n", f"npz:{tmp_path}/a.npz", classes=3)
    assert list(reasons.values()) == ["has no label", *["its label is not a class number"] * 2]
    texts = [None, "", *["x", "y"] * 14]
    table = pa.table({"image": [b"no image", *[PNG] * 28, None], "label": texts})
    pq.write_table(table, tmp_path / "t.parquet")
    manifest, reasons, _ = sharded(build, tmp_path / "p", f"parquet:{tmp_path}/t.parquet")
    assert manifest.class_names == ("x", "y")
    assert reasons == dict.fromkeys(("t-00000000", "t-00000001"), "has no label") | {
        "t-00000029": "has no image bytes"
    }
    huge = pa.array([2**63 + 1, *[0] * 29], pa.uint64())
    pq.write_table(table.set_column(1, "label", huge), tmp_path / "t.parquet")
    _, reasons, _ = sharded(build, tmp_path / "q", f"parquet:{tmp_path}/t.parquet")
    assert reasons["t-00000000"] == "its label is not a class number"


def test_too_many_rejected_inputs_are_counted_by_reason(tmp_path):
    write_tar(tmp_path / "t.tar", TAR["labels"][0] + [m for n in range(20) for m in good(f"g{n}")])
    with pytest.raises(DataError) as error:
        make_plan(
            DataConfig(source=f"webdataset:{tmp_path}/t.tar", classes=3, max_quarantined=0.1), 0
        )
    text = str(error.value)
    assert "6 of 27 inputs are rejected, more than data.max_quarantined=0.1 allows" in text
    assert "4 its label is not a class number, 1 has no label, 1 label N" in text
    lenient = DataConfig(source=f"webdataset:{tmp_path}/t.tar", classes=3, max_quarantined=0.25)
    assert make_plan(lenient, 0).summary().rejected == 6


def test_a_name_cannot_act_on_the_terminal(tmp_path):
    members = [("a\x1b[2J.png", b""), *[m for n in range(9) for m in good(f"g{n}")]]
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError) as error:
        make_plan(DataConfig(source=f"webdataset:{tmp_path}/t.tar", max_quarantined=0), 0)
    assert str(error.value).isprintable()
    assert "\\x1b[2J" in str(error.value)


WATCHED = """
    import os, sys
    from genmod.data.sharding.ingest import make_shard
    from genmod.data.sharding.finish import make_manifest
    from genmod.data.sharding.plan import make_plan
    from genmod.data.format.shards import quarantine_file
    from genmod.data.sources.config import DataConfig
    from genmod.manifest import publish
    root, sources = sys.argv[1], sys.argv[2:]
    touched = []
    def hook(event, args):
        if event == "open" and isinstance(args[0], str):
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not args[2] & getattr(os, "O_TMPFILE", 0) == os.O_TMPFILE:
                touched.append(args[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            touched.append(args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            touched.extend(args[:2])
    sys.addaudithook(hook)
    for number, source in enumerate(sources):
        data = DataConfig(source=source, max_quarantined=1.0, image_size=16, channels=3)
        plan, into = make_plan(data, 0), f"{root}/{number}"
        receipts = [make_shard(plan.job(shard, into)) for shard in plan.shards]
        rejected = [*plan.rejected, *(row for receipt in receipts for row in receipt.rejected)]
        publish(into, make_manifest(plan, into, receipts, quarantine_file(into, rejected)))
    print(len(touched))
    for path in touched:
        assert (os.path.realpath(path) + os.sep).startswith(root + os.sep) or path == "/dev/null", path
"""


@pytest.mark.slow
def test_nothing_outside_the_output_root_is_written(tmp_path, images_below):
    everything = [member for members, _ in TAR.values() for member in members]
    write_tar(tmp_path / "t.tar", everything + [m for n in range(30) for m in good(f"good{n}")])
    folder = tmp_path / "in" / "..class"
    folder.mkdir(parents=True)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    root = tmp_path / "root"
    sources = [f"webdataset:{tmp_path}/t.tar", f"folder:{images_below}"]
    run = [sys.executable, "-c", textwrap.dedent(WATCHED), str(root), *sources]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    after = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if root not in [p, *p.parents]}
    assert after == before
