"""Measurements of this machine, each with a real fault: limits, modes, servers, names, stores."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from cluster.code_version import code_digest
from cluster.doctor import machine
from cluster.doctor.store import driver_file, measure_store, short_retries
from cluster.doctor.versions import own_versions
from genmod import storage
from tests.stores.proxy import Fault


def test_a_lower_limit_of_open_files_is_measured():
    code = (
        "import resource, json; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300));"
        "from cluster.doctor.machine import measure_machine; print(measure_machine().nofile)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == 300


def test_the_token_and_its_mode_are_found(tmp_path, monkeypatch):
    path = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert machine.token_file().source == ""
    path.write_text("x")
    path.chmod(0o644)
    found = machine.token_file()
    assert (found.source, found.mode, found.is_own) == (str(path), 0o644, True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "y")
    assert machine.token_file().source == "environment"


def test_servers_beyond_loopback_are_found():
    with socket.socket() as opened, socket.socket() as local:
        opened.bind(("0.0.0.0", 0))
        local.bind(("127.0.0.1", 0))
        opened.listen()
        local.listen()
        found = {each.port: each for each in machine.listeners()}
        assert not found[opened.getsockname()[1]].is_ray
        assert local.getsockname()[1] not in found


def test_free_space_is_that_of_the_nearest_folder(tmp_path):
    free = machine.disk_free([str(tmp_path / "not" / "yet"), str(tmp_path)])
    assert abs(free[str(tmp_path / "not" / "yet")] - free[str(tmp_path)]) < 1 << 30


def test_names_with_loopback_addresses_alone():
    assert machine.is_loopback_only("localhost")
    assert not machine.is_loopback_only("no-such-host.invalid")


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_the_cgroups_counts(version, tmp_path, monkeypatch):
    """The folders are laid out as Linux does; their files are read as they are."""
    own, base = tmp_path / "own", tmp_path / "cgroup"
    memory = base if version == 2 else base / "memory"
    (memory / "pod" / "container").mkdir(parents=True)
    limit, used = ("memory.max", "memory.current") if version == 2 else (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    )  # fmt: skip
    (memory / "pod" / limit).write_text(f"{1 << 30}\n")
    (memory / "pod" / used).write_text(f"{1 << 29}\n")
    (memory / "pod" / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 28}\n")
    (memory / "pod" / "container" / limit).write_text("max\n" if version == 2 else f"{1 << 62}\n")
    (memory / "pod" / "container" / used).write_text(f"{1 << 20}\n")
    own.write_text("0::/pod/container\n" if version == 2 else "5:cpu:/\n4:memory:/pod/container\n")
    monkeypatch.setattr(machine, "_OWN_CGROUP", own)
    monkeypatch.setattr(machine, "_CGROUPS", base)
    assert machine.memory() == (1 << 30, (1 << 29) + (1 << 28))


def test_versions_name_the_code(tmp_path):
    versions = own_versions()
    assert versions.genmod.endswith(f"(code {code_digest()[:12]})")
    assert versions.ray.startswith("2.")
    # Another file of the same program is another digest.
    altered = (
        "import importlib.util as u\n"
        "import cluster.code_version as v\n"
        "import pathlib, sys\n"
        "before = v.code_digest()\n"
        "v.code_digest.cache_clear()\n"
        "v._PACKAGES = v._PACKAGES + ('extra',)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "print(before != v.code_digest())"
    )
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", altered, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_a_folder_is_measured(tmp_path):
    with driver_file(str(tmp_path)) as (url, content):
        facts = measure_store(str(tmp_path), url, content)
    assert facts.sees_driver
    assert facts.error == ""
    assert facts.write_mb_s > 0
    assert facts.read_mb_s > 0
    assert abs(facts.offset_s) < 2
    assert list(tmp_path.iterdir()) == []


def test_another_folder_under_the_same_name_is_found(tmp_path):
    (other := tmp_path / "other").mkdir()
    with driver_file(str(tmp_path)) as (url, content):
        moved = url.replace(str(tmp_path), str(other))
        assert not measure_store(str(other), moved, content).sees_driver


@pytest.mark.slow
def test_a_store_without_create_if_absent_is_found(proxied_root, proxy):
    with driver_file(proxied_root) as (url, content):
        proxy.faults.append(Fault("unconditional", "PUT", times=2))
        facts = measure_store(proxied_root, url, content)
    assert facts.sees_driver
    assert not facts.is_exclusive


@pytest.mark.slow
def test_a_store_that_does_not_respond_is_given_up_within_seconds(proxied_root, proxy):
    before = storage.settings()
    with driver_file(proxied_root) as (url, content):
        proxy.faults.append(Fault("503", "GET", times=1000))
        with short_retries():
            facts = measure_store(proxied_root, url, content)
        proxy.faults.clear()
    assert not facts.sees_driver
    assert facts.error
    assert storage.settings() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    with driver_file(str(tmp_path)) as (url, content):
        tmp_path.chmod(0o500)
        facts = measure_store(str(tmp_path), url, content)
        tmp_path.chmod(0o700)
    assert facts.error
