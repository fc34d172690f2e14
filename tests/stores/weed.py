"""SeaweedFS from its wheel: started on free ports in a new folder, and killed by its process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.processes import free_ports

START_S = 300.0
BUCKET = "genmod"
PORTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class Store:
    """Address, credentials and folder of a running store."""

    endpoint: str
    key: str
    secret: str
    folder: Path

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Standard environment variables of a process that uses the store, directly or through a proxy."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
        }


@contextmanager
def running() -> Generator[Store]:
    """A store with one bucket; both are removed at the end."""
    program = shutil.which("weed", path=sysconfig.get_path("scripts"))
    assert program, "the tests' store is not installed: run make setup"
    folder = Path(tempfile.mkdtemp(prefix="gmweed-"))
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    credentials = {"accessKey": key, "secretKey": secret}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identity = {"name": "admin", "credentials": [credentials], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(2 * len(PORTS))
    http = dict(zip(PORTS, ports[: len(PORTS)], strict=True))
    grpc = dict(zip(PORTS, ports[len(PORTS) :], strict=True))
    (folder / "data").mkdir()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                *(program, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-{name}.port={port}" for name, port in http.items()),
                *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
                *("-filer", f"-filer.localSocket={folder}/filer.sock", "-master.telemetry=false"),
                *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-metricsPort=0"),
                *("-s3", f"-s3.config={folder}/s3.json", f"-s3.localSocket={folder}/s3.sock"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GOMAXPROCS": "2"},
        )
    try:
        store = Store(f"http://127.0.0.1:{http['s3']}", key, secret, folder)
        _wait(process, store)
        yield store
    finally:
        process.kill()  # SIGTERM takes half a minute
        process.wait(60)
        for name, port in grpc.items():
            with suppress(FileNotFoundError):
                os.unlink(f"/tmp/seaweedfs-{name}-grpc-{port}.sock")
        shutil.rmtree(folder, ignore_errors=True)


def client(store: Store, endpoint: str | None = None):
    """A botocore client, for checks without genmod."""
    import botocore.config
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint or store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=store.key,
        aws_secret_access_key=store.secret,
        config=botocore.config.Config(
            retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20
        ),
    )


def _wait(process: subprocess.Popen[bytes], store: Store) -> None:
    """Wait until an object can be written; the port is open long before that."""
    import botocore.exceptions

    s3, end_s = client(store), time.monotonic() + START_S
    failures = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    while process.poll() is None and time.monotonic() < end_s:
        with suppress(*failures):
            if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
                s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="up", Body=b"up")
            s3.delete_object(Bucket=BUCKET, Key="up")
            return
        time.sleep(0.2)
    raise AssertionError((store.folder / "log").read_text()[-2000:])
