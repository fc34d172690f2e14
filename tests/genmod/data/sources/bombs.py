"""Builders of small files that declare, or unpack to, more than a machine has."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.genmod.data.builders import encode

PNG = encode(Image.new("L", (4, 4)))


def idx(*shape, body=b"", gz=False):
    """An IDX file of unsigned bytes that declares a shape."""
    data = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + body
    return gzip.compress(data, 1) if gz else data


def npy(shape, descr="|u1", fortran=False, body=b"", version=1, padding=0):
    """A NumPy array file that declares a shape."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * padding + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + body


def npz(compression=zipfile.ZIP_DEFLATED, **members):
    """A zip file of array files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def many_members(count):
    """A zip file whose directory has the same entry ``count`` times."""
    data = npz(x=npy((1, 1, 1), body=b"a"))
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = data[start:end] * count
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entries), start, 0)
    return data[:start] + entries + tail


def patched(data, **fields):
    """A zip file with other fields in the entries of its directory, by their offset."""
    at = data.index(b"PK\x01\x02")
    for name, (kind, value) in fields.items():
        offset = at + int(name.removeprefix("at"))
        data = data[:offset] + struct.pack(kind, value) + data[offset + struct.calcsize(kind) :]
    return data


IMAGES, LABELS = "t-images-idx3-ubyte", "t-labels-idx1-ubyte"
ONE = np.zeros((1, 4, 4), np.uint8).tobytes()
DEEP = "(" * 4000 + ")" * 4000

ARRAYS = {
    # source, files, words of the error
    "idx of 2^32 images": ("idx:{}", {IMAGES: idx(2**32 - 1, 28, 28)}, "4,294,967,295 rows"),
    "idx of images without pixels": ("idx:{}", {IMAGES: idx(2**32 - 1, 0, 28)}, "no pixels"),
    "idx of images without width": ("idx:{}", {IMAGES: idx(2**26, 28, 0)}, "no pixels"),
    "idx of one huge image": ("idx:{}", {IMAGES: idx(1, 2**31, 2**31)}, "pixels, more than"),
    "idx that is too short": ("idx:{}", {IMAGES: idx(2**20, 64, 64)}, "in 16 bytes"),
    "idx of 2^32 labels": (
        "idx:{}", {IMAGES: idx(1, 4, 4, body=ONE), LABELS: idx(2**32 - 1)}, "labels for 1 images",
    ),
    "gz of 2^32 images": (
        "idx:{}", {f"{IMAGES}.gz": idx(2**32 - 1, 28, 28, gz=True)}, "4,294,967,295 rows",
    ),
    "gz of images without pixels": (
        "idx:{}", {f"{IMAGES}.gz": idx(2**27, 0, 0, gz=True)}, "no pixels",
    ),
    "gz that unpacks to more than it declares": (
        "idx:{}", {f"{IMAGES}.gz": idx(1, 4, 4, body=bytes(1 << 29), gz=True)}, "does not contain",
    ),
    "gz of too few bytes": ("idx:{}", {f"{IMAGES}.gz": idx(2**20, 64, 64, gz=True)}, "declares"),
    "npz of 10^12 empty images": ("npz:{}/a.npz", {"a.npz": npz(x=npy((10**12, 0, 8)))}, "no pixels"),
    "npz of 10^12 images": ("npz:{}/a.npz", {"a.npz": npz(x=npy((10**12, 8, 8)))}, "declares"),
    "npz of 10^100 images": ("npz:{}/a.npz", {"a.npz": npz(x=npy((10**100, 8, 8)))}, "declares"),
    "npz with a negative side": ("npz:{}/a.npz", {"a.npz": npz(x=npy((-1, 8, 8)))}, "expected numbers"),
    "npz with negative sides": ("npz:{}/a.npz", {"a.npz": npz(x=npy((4, -8, -8)))}, "expected numbers"),
    "npz in Fortran order": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((10**12, 0, 8), fortran=True))}, "no pixels",
    ),
    "npz of 10^12 empty labels": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((1, 4, 4), body=ONE), y=npy((10**12,)))}, "declares",
    ),
    "npz of labels of no size": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((1, 4, 4), body=ONE), y=npy((10**12,), "|V0"))}, "labels are",
    ),
    "npz of objects": ("npz:{}/a.npz", {"a.npz": npz(x=npy((1, 1, 1), "|O", body=b"x"))}, "not a readable"),
    "npz whose array unpacks to more than it declares": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((1, 4, 4), body=ONE + bytes(1 << 29)))}, None,
    ),
    "npz with a header of 300 MiB": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((1, 4, 4), version=2, padding=300 << 20))}, "a header of",
    ),
    "npz with a deep header": ("npz:{}/a.npz", {"a.npz": npz(x=npy(DEEP))}, "not a readable npz"),
    "npz of 300,000 members": ("npz:{}/a.npz", {"a.npz": many_members(300_000)}, "more than 1000 members"),
    "npz with another compression": (
        "npz:{}/a.npz", {"a.npz": npz(zipfile.ZIP_LZMA, x=npy((1, 4, 4), body=ONE))}, "compression",
    ),
    "npz that is encrypted": (
        "npz:{}/a.npz", {"a.npz": patched(npz(x=npy((1, 4, 4), body=ONE)), at8=("<H", 1))}, "encrypted",
    ),
    "npz that says it is larger": (
        "npz:{}/a.npz",
        {"a.npz": patched(npz(x=npy((2**20, 64, 64))), at24=("<I", 0xFFFFFFF0))}, "declares",
    ),
    "npz with texts of 10^12 bytes": (
        "npz:{}/a.npz",
        {"a.npz": npz(x=npy((1, 4, 4), body=ONE), y=npy((1000,), "<U250000000"))}, "declares",
    ),
    "npz with names of 10^9 classes": (
        "npz:{}/a.npz",
        {"a.npz": npz(x=npy((1, 4, 4), body=ONE), y=npy((1,), body=b"0"), classes=npy((10**9,), "|S0"))},
        "classes, more than",
    ),
    "npz of images with channels first": (
        "npz:{}/a.npz", {"a.npz": npz(x=npy((10**12, 3, 0, 8)))}, "no pixels",
    ),
    "npz of a split that declares too much": (
        "npz:{}/a.npz",
        {"a.npz": npz(x_train=npy((1, 4, 4), body=ONE), x_test=npy((10**12, 4, 4)))}, "declares",
    ),
    "idx of wide labels": (
        "idx:{}",
        {IMAGES: idx(1, 4, 4, body=ONE), f"{LABELS}.gz": gzip.compress(b"\0\0\x0e\1" + b"\0\0\0\1", 1)},
        "does not contain",
    ),
    "npz that is no zip": ("npz:{}/a.npz", {"a.npz": zlib.compress(bytes(9000))}, "not a readable npz"),
}  # fmt: skip


def parquet(*columns, names=("image", "label"), metadata=None, **options):
    """A Parquet file without the types of Arrow, unless it has metadata."""
    stream = io.BytesIO()
    table = pa.table(dict(zip(names, columns, strict=False))).replace_schema_metadata(metadata)
    pq.write_table(table, stream, store_schema=metadata is not None, **options)
    return stream.getvalue()


def repeated(value, count):
    """A column that is a dictionary of one value."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value]))


def varint(number, length=None):
    """A number of Thrift's compact protocol, of any length."""
    number, parts = number << 1, []
    while number or not parts or (length and len(parts) < length):
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes(parts[:-1]) + bytes([parts[-1] & 127])


def lying(data, size_bytes):
    """A Parquet file whose footer declares another size for the column and the row group."""
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    true = varint(pq.read_metadata(io.BytesIO(data)).row_group(0).column(0).total_uncompressed_size)
    return data[:end] + data[end:].replace(true, varint(size_bytes, len(true)))


def deep_schema(levels):
    """A Parquet file of no rows, whose only column is in so many groups."""

    def field(children):  # repetition, name, number of children
        head = b"\x35" + varint(0) + b"\x18\x01a"
        return head + (b"\x15" + varint(children) if children else b"") + b"\0"

    fields = [field(1)] * (levels | 1) + [
        b"\x15" + varint(6) + b"\x25" + varint(0) + b"\x18\x01x\0"
    ]
    count = varint(len(fields) // 2)  # without zigzag
    footer = b"\x15" + varint(2) + b"\x19\xfc" + count + b"".join(fields)
    footer += b"\x16" + varint(0) + b"\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def delta(value, count):
    """A column in which each value is the one before."""
    return parquet(
        pa.array([value] * count),
        use_dictionary=False,
        column_encoding={"image": "DELTA_BYTE_ARRAY"},
    )


ZEROS = bytes(300 << 20)
LARGE = np.random.default_rng(0).bytes(10_000_000)

TABLES = {
    "parquet that repeats a large image": (
        "parquet:{}/a.parquet", {"a.parquet": parquet(repeated(LARGE, 50_000))}, "repeats values of",
    ),
    "parquet that repeats a large image in a struct": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet(pa.StructArray.from_arrays([repeated(LARGE, 50_000)], ["bytes"]))},
        "repeats values of",
    ),
    "parquet of many rows": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet(repeated(PNG, 17_000_000), row_group_size=1 << 25)}, "17,000,000 rows",
    ),
    "parquet that repeats a small image": (
        "parquet:{}/a.parquet", {"a.parquet": parquet(repeated(PNG, 5_000_000))}, "rows in",
    ),
    "parquet that repeats a large label": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet([LARGE[n : n + 99] for n in range(50_000)], repeated("a" * 1_000_000, 50_000))},
        "repeats values of",
    ),
    "parquet that repeats a large label in lists": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet(
            [LARGE[n : n + 99] for n in range(50_000)],
            pa.ListArray.from_arrays(np.arange(50_001), repeated("a" * 1_000_000, 50_000)),
        )},
        "repeats values of",
    ),
    "parquet of lists of many labels": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet(
            [PNG] * 2, pa.ListArray.from_arrays([0, 1, 16_000_000], np.zeros(16_000_000, np.int8))
        )},
        "16000000 values in 2 rows",
    ),
    "parquet that repeats a large split": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet(
            [LARGE[n : n + 99] for n in range(50_000)], repeated("a" * 1_000_000, 50_000),
            names=("image", "split"),
        )},
        "repeats values of",
    ),
    "parquet with names of many classes": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet([PNG], [0], metadata={"huggingface": json.dumps(
            {"info": {"features": {"label": {"_type": "ClassLabel", "names": [""] * 1_100_000}}}}
        )})},
        "1,100,000 classes",
    ),
    "parquet whose values repeat the one before": (
        "parquet:{}/a.parquet", {"a.parquet": delta(LARGE[:100_000], 20_000)}, "DELTA_BYTE_ARRAY",
    ),
    "parquet whose page is larger than declared": (
        "parquet:{}/a.parquet",
        {"a.parquet": lying(parquet([ZEROS], use_dictionary=False, compression="zstd"), 1000)},
        "bytes and 1 values",
    ),
    "parquet with deep groups": (
        "parquet:{}/a.parquet", {"a.parquet": deep_schema(60_000)}, "a schema of",
    ),
    "parquet with groups in groups": (
        "parquet:{}/a.parquet", {"a.parquet": deep_schema(9_000)}, "more than 64 levels",
    ),
    "parquet with a footer of 4 GiB": (
        "parquet:{}/a.parquet", {"a.parquet": b"PAR1" + bytes(99) + b"\xff\xff\xff\xffPAR1"}, "a footer of",
    ),
    "parquet whose statistics contradict the schema": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet([PNG], [1]).replace(b"\x25\2\x18\5label", b"\x25\0\x18\5label")},
        "counts of 2 levels",
    ),
    "parquet of lists": ("parquet:{}/a.parquet", {"a.parquet": parquet([[PNG] * 9])}, "expected bytes"),
    "parquet of texts": ("parquet:{}/a.parquet", {"a.parquet": parquet(["a"])}, "expected bytes"),
    "parquet of two columns of a name": (
        "parquet:{}/a.parquet",
        {"a.parquet": parquet([PNG], [PNG], names=("imagf", "image")).replace(b"imagf", b"image")},
        "several columns image",
    ),
}  # fmt: skip


def tar(*members, kind=tarfile.GNU_FORMAT):
    """A tar of (name, body)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def pax(records):
    """A tar whose first member has an extended header."""
    whole = tar(("a.png", PNG))
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf() + records + bytes(-len(records) % 512) + whole


TARS = {
    "tar with names of megabytes": (
        "webdataset:{}/a.tar",
        {"a.tar": tar(*[(f"{n}" + "x" * 2_000_000 + ".png", PNG) for n in range(60)], ("b.png", PNG))},
        "shorter names",
    ),
    "tar with names of megabytes (PAX)": (
        "webdataset:{}/a.tar",
        {"a.tar": tar(("x" * 900_000 + ".png", PNG), ("b.png", PNG), kind=tarfile.PAX_FORMAT)},
        "shorter names",
    ),
    "tar with an extended header of 100 MB": (
        "webdataset:{}/a.tar", {"a.tar": pax(b"20 comment=aaaaaaaa\n" * 5_000_000)}, "shorter names",
    ),
    "tar with a size of 10^18": (
        "webdataset:{}/a.tar", {"a.tar": pax(b"28 size=1000000000000000000\n")}, "truncated",
    ),
    "tar with a record of no length": ("webdataset:{}/a.tar", {"a.tar": pax(b"0 path=x\n" * 9)}, None),
    "tar with a label of 300 MB": (
        "webdataset:{}/a.tar", {"a.tar": tar(("a.png", PNG), ("a.cls", ZEROS))}, None,
    ),
    "tar with a text of 300 MB": (
        "webdataset:{}/a.tar", {"a.tar": tar(("a.png", PNG), ("a.json", ZEROS))}, None,
    ),
    "tar in gzip": ("webdataset:{}/a.tar", {"a.tar": gzip.compress(ZEROS, 1)}, "it is compressed"),
}  # fmt: skip
