import http.server
import os
import threading

import numpy as np
import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genmod.data.sources.patterns import expand_braces, expand_files
from genmod.data.sources.registry import open_source
from genmod.errors import DataError, StorageError
from tests.genmod.data.builders import encode, write_tar

PNG = encode(Image.fromarray(np.zeros((4, 4), np.uint8)))
PARTS = ["{", "}", ",", "a", "0..3", "a..c", "5..1", "01..03", "0..9..4", "{x,y}", "\\\\"]


def test_braces():
    assert expand_braces("{a,b}-{08..10}.tar") == [
        "a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar", "b-09.tar", "b-10.tar",
    ]  # fmt: skip


def test_braces_are_those_of_the_webdataset_package():
    assert expand_braces("{x,a{1..2}}") == ["x", "a1", "a2"]
    assert expand_braces("a{0..10..5}") == ["a0", "a5", "a10"]
    assert expand_braces(r"no\braces") == [r"no\braces"]
    assert expand_braces("a{b.tar") == ["a{b.tar"]


def test_braces_with_a_variable(monkeypatch):
    monkeypatch.setenv("WDS_WHERE", "/data")
    assert expand_braces("${WHERE}/{a,b}") == ["/data/a", "/data/b"]
    with pytest.raises(DataError, match="missing environment variable"):
        expand_braces("${NOWHERE}/a.tar")


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_names_are_those_of_the_braceexpand_package(pattern):
    try:
        expected = list(braceexpand(pattern))
    except ValueError:
        expected = [pattern]
    if "{" in pattern:
        assert expand_braces(pattern) in (expected, [pattern])


TOO_MANY = {
    "{0..1000000}": "1,000,001 names",
    "{0..9999}-{0..9999}": "100,000,000 names",
    "{0..99999}{0..99999}": "10,000,000,000 names",
    "{x,a{0..9999999999}}": "10,000,000,001 names",
    "{9999999999..0}": "10,000,000,000 names",
    "{0000000000..9999999999}": "10,000,000,000 names",
    "{a..z}" * 6: "308,915,776 names",
    "{a,b{1}}" * 30: "1,073,741,824 names",
    "{a,{b,{c,d}}}" * 12: "16,777,216 names",
    "{" * 500 + "}" * 500: "levels of nesting",
    "{a,b}" * 3000: "a pattern of 150.. characters",
    "{0..%s}" % ("9" * 4096): "a pattern of 41.. characters",
    "{0..999999}" + "x" * 4000: "bytes",
}  # fmt: skip


@pytest.mark.parametrize("pattern", TOO_MANY, ids=range(len(TOO_MANY)))
def test_names_are_counted_before_they_are_made(pattern):
    with pytest.raises(DataError, match=TOO_MANY[pattern]) as error:
        open_source(f"webdataset:/data/{pattern}.tar").listing()
    assert len(str(error.value)) < 300


def test_a_file_that_is_not_regular_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", PNG)])
    os.mkfifo(tmp_path / "b.tar")
    for name in ("b.tar", "*.tar", "{a,b}.tar"):
        with pytest.raises(DataError, match=r"b\.tar is not a regular file"):
            expand_files("webdataset", f"{tmp_path}/{name}")
    with pytest.raises(DataError, match=r"is not a regular file"):
        expand_files("parquet", "/dev/zero")


def test_names_with_a_meaning_in_urls_are_one_error(tmp_path):
    write_tar(tmp_path / "a::b.tar", [("a.png", PNG)])
    with pytest.raises(StorageError, match="chains file systems"):
        open_source(f"webdataset:{tmp_path}/*.tar").listing()


@pytest.fixture
def pages(tmp_path):
    """A server of the folder, and the paths that it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_http_serves_named_files_and_is_never_listed(tmp_path, pages):
    url, asked = pages
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", PNG)])
    listing = open_source(f"webdataset:{url}/{{a,b}}.tar").listing()
    assert listing.names == ["a/a", "b/b"]
    asked.clear()
    for source in ("webdataset:{}/*.tar", "folder:{}", "parquet:{}/*.parquet", "idx:{}"):
        with pytest.raises(DataError, match="http has no listings"):
            open_source(source.format(url)).listing()
    assert not asked
