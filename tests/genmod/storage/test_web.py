"""Web servers: read only, no redirect to another address, and no more bytes than allowed."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from genmod import storage
from genmod.data.sources.patterns import expand_files
from genmod.errors import DataError, StorageError

DATA = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        """Log nothing."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        name, _, rest = self.path.lstrip("/").partition("/")
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", server.targets[int(rest)])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in ("403", "404", "503"):
            self.send_error(int(name))
        elif name == "page":
            self.send_page()
        elif name in ("endless", "endless.html"):  # no length, and no end
            self.send_response(200)
            if name == "endless.html":
                self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.close_connection = True
            if self.command == "GET":
                self.send_until_closed()
        else:
            self.send_data(is_ranged=name != "unranged")

    do_HEAD = do_GET

    def send_until_closed(self):
        try:
            while not self.server.ended.is_set():
                self.wfile.write(DATA * 10)
                self.server.sent += 10 * len(DATA)
        except OSError:
            pass

    def send_page(self):
        links = "".join(f'<a href="{link}">x</a>\n' for link in self.server.links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(links)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(links)

    def send_data(self, is_ranged):
        data, span = DATA, self.headers.get("Range")
        if is_ranged and span:
            start, stop = map(int, span.removeprefix("bytes=").split("-"))
            data = DATA[start : stop + 1]
            if not data:
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def start(threads):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests, server.targets, server.links, server.sent = [], [], [], 0
    server.ended = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    threads.append((server, thread))
    return server


@pytest.fixture
def servers():
    """A server that a recipe names, and another one that it does not."""
    threads = []
    try:
        yield start(threads), start(threads)
    finally:
        for server, thread in threads:
            server.ended.set()
            server.shutdown()
            server.server_close()
            thread.join()


def test_files_are_read(servers):
    url = f"{servers[0].url}/data.bin"
    assert storage.read_bytes(url) == DATA
    assert storage.read_bytes(url, len(DATA)) == DATA
    assert storage.size_bytes(url) == len(DATA)
    assert storage.sha256_of(url) == storage.sha256(DATA)
    offsets, lengths = [5, 0, len(DATA) - 3, 10 * len(DATA), 7], [10, 1, 8, 5, 0]
    ranges = [DATA[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
    assert storage.read_ranges(url, offsets, lengths) == ranges
    # A server that ignores ranges sends the whole file.
    unranged = f"{servers[0].url}/unranged/data.bin"
    assert storage.read_ranges(unranged, offsets, lengths) == ranges


def reads(url):
    fs, path = storage.filesystem(url)
    return {
        "read_bytes": lambda: storage.read_bytes(url),
        "read_ranges": lambda: storage.read_ranges(url, [0], [4]),
        "size_bytes": lambda: storage.size_bytes(url),
        "open": lambda: fs.open(path, "rb").read(4),
        "cat_file": lambda: fs.cat_file(path),
        "source": lambda: expand_files("source", url),
    }


READS = ["read_bytes", "read_ranges", "size_bytes", "open", "cat_file", "source"]


@pytest.mark.parametrize("read", READS)
def test_redirects_to_other_addresses_are_refused(servers, read):
    server, other = servers
    server.targets = [
        f"{other.url}/latest/meta-data/iam",
        other.url.replace("127.0.0.1", "localhost") + "/x",
        server.url.replace("http:", "https:") + "/x",
        "file:///etc/passwd",
        f"//{other.url.removeprefix('http://')}/x",
    ]
    for number in range(len(server.targets)):
        with pytest.raises(StorageError, match="redirects to another address") as error:
            reads(f"{server.url}/redirect/{number}")[read]()
        assert "\n" not in str(error.value)
    assert other.requests == []


@pytest.mark.parametrize("read", READS[:-1])
def test_redirects_on_the_same_server_are_followed(servers, read):
    server, _ = servers
    server.targets = [f"{server.url}/data.bin", "/data.bin"]
    for number in range(2):
        got = reads(f"{server.url}/redirect/{number}")[read]()
        assert got in (DATA, DATA[:4], [DATA[:4]], len(DATA))


def test_a_server_that_sends_without_end_is_cut_off(servers):
    url = f"{servers[0].url}/endless"
    with pytest.raises(DataError, match="is longer than 1,000,000 bytes"):
        storage.read_bytes(url, 1_000_000)
    with pytest.raises(DataError, match="is longer than 5,000,000 bytes"):
        storage.sha256_of(url, 5_000_000)
    assert storage.read_ranges(url, [100], [20]) == [(DATA * 2)[100:120]]
    with pytest.raises(StorageError, match="does not tell the file's size"):
        storage.size_bytes(url)


def test_no_way_of_reading_is_endless(servers):
    server, _ = servers
    url = f"{server.url}/endless"
    fs, path = storage.filesystem(url)
    assert fs.cat_file(path, 3, 10) == DATA[3:10]
    assert fs.cat_ranges([path], [3], [10]) == [DATA[3:10]]
    with fs.open(path, "rb") as stream:
        assert stream.read(20) == DATA[:20]
    assert not fs.isdir(path)
    assert fs.ls(path, detail=False) == []
    assert fs.ls(f"{server.url}/endless.html", detail=False) == []
    assert server.sent < 100 << 20


def test_pages_are_not_searched_for_links(servers):
    server, other = servers
    server.links = ["a.tar", f"{other.url}/b.tar", "file:///etc/c.tar"]
    fs, path = storage.filesystem(f"{server.url}/page")
    assert not fs.isdir(path)
    assert fs.glob(f"{path}/*.tar") == storage.list_names(path) == []
    assert list(storage.walk_files(path)) == []
    assert other.requests == []


def test_a_declared_length_is_checked_before_the_file_is_read(servers):
    with pytest.raises(DataError, match="is longer than 10 bytes"):
        storage.read_bytes(f"{servers[0].url}/data.bin", 10)


def test_refusals_are_final(servers):
    with pytest.raises(StorageError, match="the server answers 403 Forbidden") as error:
        storage.read_bytes(f"{servers[0].url}/403/x")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{servers[0].url}/404/x")
    assert len(servers[0].requests) == 2
    assert "\n" not in str(error.value)


def test_nothing_is_written_to_a_web_server(servers):
    url = f"{servers[0].url}/data.bin"
    for write in (
        lambda: storage.write_bytes(url, b"1"),
        lambda: storage.create(url, b"1"),
        lambda: storage.remove(url),
        lambda: storage.check_writable(url),
    ):
        with pytest.raises(StorageError, match="is read only; write to") as error:
            write()
        assert "\n" not in str(error.value)
    assert servers[0].requests == []
