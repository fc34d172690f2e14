"""Identity of files: their bytes, or size and time where the recipe says so."""

import hashlib
import http.server
import os
import threading

import pytest

from genmod.data.sources.config import DataConfig, SourceOptions
from genmod.data.sources.identity import identify, in_order, store_identity
from genmod.errors import DataError


def replace(path, data):
    """Other bytes under the same name, with the same size and times."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_local_files_are_identified_by_their_bytes(tmp_path):
    files = [tmp_path / name for name in ("a.tar", "b.tar")]
    for file in files:
        file.write_bytes(b"12")
    digest = hashlib.sha256(b"12").hexdigest()
    urls = [str(files[0]), f"file://{files[1]}"]
    assert list(identify(urls, "content")) == [f"sha256 {digest}"] * 2
    replace(files[0], b"21")
    assert next(identify(urls, "content")) == f"sha256 {hashlib.sha256(b'21').hexdigest()}"


def test_with_time_a_file_is_not_read(tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(b"12")
    os.utime(file, ns=(5, 7_000_000_001))
    assert list(identify([str(file)], "time")) == ["time 2 7000000001"]
    replace(file, b"21")
    assert list(identify([str(file)], "time")) == ["time 2 7000000001"]
    os.utime(file, ns=(5, 7_000_000_002))
    assert list(identify([str(file)], "time")) == ["time 2 7000000002"]


def test_a_store_says_what_identifies_a_file():
    assert store_identity({"size": 3, "ETag": '"x"', "md5Hash": "q=="}) == "md5Hash 3 q=="
    azure = {"size": 3, "etag": "0x8", "content_settings": {"content_md5": bytearray(b"\x01\xff")}}
    assert store_identity(azure) == "content_md5 3 01ff"
    assert store_identity({"size": 3, "etag": "0x8", "content_settings": {}}) == "etag 3 0x8"
    assert store_identity({"size": 3, "Last-Modified": "Mon"}) == "Last-Modified 3 Mon"
    assert store_identity({"size": 3, "name": "a"}) is None


def test_a_store_that_says_nothing_is_read():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/identity/a.tar", b"12")
    digest = hashlib.sha256(b"12").hexdigest()
    for identity in ("content", "time"):
        assert list(identify(["memory://identity/a.tar"], identity)) == [f"sha256 {digest}"]


def test_an_http_server_is_asked_for_its_etag():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.send_header("ETag", '"v1"')
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        assert list(identify([url], "content")) == ['ETag 2 "v1"']
        server.shutdown()


def test_a_listing_saves_the_requests():
    infos = [{"size": 1, "ETag": "x"}, {"size": 2, "ETag": "y"}]
    urls = ["s3://none.example/a", "s3://none.example/b"]
    assert list(identify(urls, "content", infos)) == ["ETag 1 x", "ETag 2 y"]


def test_a_file_that_vanished_is_one_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tar cannot be read \(No such file or directory\)"):
        list(identify([f"{tmp_path}/gone.tar"], "content"))


def test_results_come_in_order_and_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(200):
            taken.append(number)
            yield number

    results = in_order(lambda number: 2 * number, items())
    assert next(results) == 0
    assert len(taken) < 30
    assert list(results) == list(range(2, 400, 2))


def test_an_error_reaches_the_caller_and_ends_the_threads():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // (5 - number), range(1000)))


def test_the_recipe_chooses_and_the_key_itself_is_not_part_of_the_result():
    data = DataConfig(source="folder:/x", identity="time")
    assert data.options == SourceOptions(identity="time")
    assert data.result() == DataConfig(source="folder:/x").result()
