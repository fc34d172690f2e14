"""Which addresses are opened, and which are refused."""

import contextlib

import pytest
from pydantic import ValidationError

from genmod import storage
from genmod.config import Config, parse
from genmod.errors import ConfigError, StorageError
from genmod.storage.local import LocalFiles


class Section(Config):
    where: storage.Url
    path: storage.RelativePath = "a"


GOOD = [
    "/data/x",
    "data/x y",
    "~/x@y",
    "C/é",
    "file:///data",
    "file:///user@domain/x",
    "s3://bucket/a=b/c@d",
    "gs://b/x",
    "az://container/x",
    "http://host:80/x?version=2",
    "https://host/x",
    "https://host/x?tokenizer=bpe",
    "http://[::1]/x",
    "http://[2001:db8::7]:8080/a/b?version=2",
    "memory://x",
]
SECRET = [
    "s3://key:secret@bucket/x",
    "https://token@host/x",
    "https://user%40@host/x",
    "https://host%40evil/x@y:z",
    "https://host/x?X-Amz-Signature=1",
    "https://host/x?a=1&sig=abc",
    "https://host/x?SAS=abc",
    "https://host/x?access_token=abc",
    "https://host/x#password=abc",
    "https://host/x?pass=abc",
    "file://user:pw@host/x",
    "https://host/x?%73ig=abc",
    "https://host/x?X-Amz-Security-Token=1",
    "s3://b/x?AWSAccessKeyId=1&api_key=2",
]
OTHER = [
    "",
    "a\nb",
    "s3://b/\x1b[2J",
    "simplecache::s3://b/x",
    "/data/x::file://y",
    "ftp://host/x",
    "gcs://b/x",
    "reference://x",
    "github://org:repo@main/x",
    "S3://b/x",
    "s3:/b/x",
    "http:host/x",
    "shell://x",
    "arrow_hdfs://host/x",
    "async_wrapper://x",
    "file://localhost/a",
    "file://host/a",
    "file://a",
    "http://[::1]/x::s3://b/x",
    "http://host/[::1]",
]


@pytest.mark.parametrize("url", GOOD)
def test_good_urls_are_accepted_unchanged(url):
    assert storage.check_url(url) == url
    assert Section(where=url).where == url


@pytest.mark.parametrize("url", [*SECRET, *OTHER])
def test_other_urls_are_refused_wherever_they_are_opened(url):
    for use in (storage.check_url, storage.resolve, storage.filesystem, storage.read_bytes):
        with pytest.raises(StorageError) as caught:
            use(url)
        assert str(caught.value).isprintable()


def test_a_host_by_its_ipv6_address():
    file_system, path = storage.filesystem("http://[::1]:9/x")
    assert type(file_system).__name__ == "WebFiles"
    assert path == "http://[::1]:9/x"


@pytest.mark.parametrize("url", SECRET)
def test_secrets_are_not_printed(url):
    with pytest.raises(StorageError) as caught:
        storage.check_url(url)
    assert url not in str(caught.value)
    with pytest.raises(ConfigError, match=r"recipe: part.where: .*credentials") as error:
        parse(Section, {"where": url}, "part")
    assert url not in str(error.value)


@pytest.mark.parametrize("path", ["a", "a/b.tar", "images/fd[cls] é.png", "a..b", "a:b/c"[0:1]])
def test_paths_below_a_folder(path):
    assert storage.join_below("s3://bucket/x/", path) == f"s3://bucket/x/{path}"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "..",
        "../a",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "s3://b/x",
        "file:x",
        "a::b",
        "a\\b",
        "a?x=1",
        "a#b",
        "%2e%2e/a",
        "a\x00",
        "a\nb",
        "x" * 2000,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(StorageError, match="path"):
        storage.join_below("s3://bucket/x", path)
    with pytest.raises(ValidationError):
        Section(where="a", path=path)


@pytest.mark.parametrize("path", ["data:,a", "a:arrow_hdfs://b"])
def test_paths_that_other_packages_take_for_urls_are_paths(tmp_path, path):
    with contextlib.chdir(tmp_path):
        file_system, where = storage.filesystem(path)
    assert isinstance(file_system, LocalFiles)
    assert where.startswith(str(tmp_path))
