import hashlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmod.data.format.tar import Members, build_tar, walk
from genmod.errors import DataError

MEMBERS = st.dictionaries(
    st.text("abcXYZ019-_.", min_size=1, max_size=100), st.binary(max_size=1500), max_size=5
)


def tar_of_files(files):
    return build_tar(list(files), [Members("", list(files.values()))])


@given(MEMBERS)
def test_tarfile_reads_what_we_write(members):
    data, offset_N1 = tar_of_files(members)
    offsets = offset_N1[:, 0].tolist()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        stored = tar.getmembers()
        assert [(m.name, m.offset_data) for m in stored] == list(zip(members, offsets, strict=True))
        assert [tar.extractfile(m).read() for m in stored] == list(members.values())
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in stored)


BODIES = st.none() | st.binary(max_size=1100)
SAMPLES = st.dictionaries(
    st.text("ab019-_", min_size=1, max_size=80), st.tuples(BODIES, st.integers(0, 10**9), BODIES)
)


@given(SAMPLES)
def test_the_files_of_a_sample_are_adjacent_and_optional(samples):
    images, labels, sidecars = zip(*samples.values(), strict=True) if samples else ((), (), ())
    texts = np.array([b"%d" % label for label in labels], dtype=np.bytes_)
    members = [Members(".png", images), Members(".cls", texts), Members(".json", sidecars)]
    data, offset_NM = build_tar(list(samples), members)
    expected = [
        (key + suffix, body)
        for key, (image, label, sidecar) in samples.items()
        for suffix, body in ((".png", image), (".cls", b"%d" % label), (".json", sidecar))
        if body is not None
    ]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()] == expected
    for row_M, label in zip(offset_NM, labels, strict=True):
        assert bytes(data[row_M[1] :][: len(b"%d" % label)]) == b"%d" % label


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_we_read_what_tarfile_writes(kind):
    names = ["a/b.png", "d" * 90 + "/" + "f" * 60 + ".cls", "plain"]
    if kind != tarfile.USTAR_FORMAT:
        names.append("über/" + "x" * 300)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 700
            info.mtime = 1.5  # a float: PAX writes an extended header for it
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    members = list(walk(stream, "t.tar"))
    assert [m.name for m in members] == names
    data = stream.getvalue()
    for number, member in enumerate(members):
        body = data[member.offset : member.offset + member.size_bytes]
        assert body == bytes([number]) * number * 700


def test_corruption_is_located():
    data, _ = tar_of_files({"a.png": bytes(2000), "b.png": bytes(2000)})
    for end, reason in [(700, "member at byte 0"), (2800, "header at byte 2560"), (0, "header")]:
        with pytest.raises(DataError, match=reason):
            list(walk(io.BytesIO(data[:end]), "t.tar"))
    with pytest.raises(DataError, match="compressed"):
        list(walk(io.BytesIO(b"\x1f\x8b" + bytes(range(200)) * 5), "t.tar"))
    flipped = bytearray(data)
    flipped[2560] ^= 1
    with pytest.raises(DataError, match="byte 2560"):
        list(walk(io.BytesIO(bytes(flipped)), "t.tar"))


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_an_extended_header_of_any_size_is_not_read(kind):
    """Names are short; a header of a gigabyte before each member would be read again and again."""
    data, _ = tar_of_files({"a.png": bytes(1 << 17), "b.png": b""})
    header = bytearray(data[:512])
    header[156:157], header[148:156] = kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DataError, match="extended header at byte 0"):
        list(walk(io.BytesIO(header + bytes(data[512:])), "t.tar"))


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"0_000000001\0", b"        +10\0", b"0000000009\0 "]
)
def test_an_invalid_size_is_an_error(size):
    """With the first one a reader would come back to the same header for ever."""
    data, _ = tar_of_files({"a.png": bytes(100), "b.png": bytes(512)})
    header = bytearray(data[1024:1536])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DataError, match="no tar header at byte 1024"):
        list(walk(io.BytesIO(bytes(data[:1024]) + header + bytes(data[1536:])), "t.tar"))


def test_the_bytes_of_a_tar_never_change():
    """Datasets that exist are named by their digests."""
    files = {"a.png": bytes(range(256)) * 3, "a.cls": b"7", "b.json": b""}
    images, sidecars = [files["a.png"], None], [None, b""]
    members = [Members(".png", images), Members(".cls", [b"7", None]), Members(".json", sidecars)]
    whole, _ = build_tar(["a", "b"], members)
    assert whole == tar_of_files(files)[0]
    expected = "de71649d8b12596b19569d315288663502b15b9b0a5b074a8ac2fd171a4c6d4a"
    assert hashlib.sha256(whole).hexdigest() == expected
