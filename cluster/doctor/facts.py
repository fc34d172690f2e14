"""What the doctor measures on a node, as values that travel to the driver."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from genmod.config import Config
from genmod.selftest.known_answers import DeviceAnswers


class Versions(Config):
    """Versions that must be the same on all nodes."""

    genmod: str
    """Version and digest of the code."""
    python: str
    ray: str
    torch: str


class TokenFile(Config):
    """Where a node has Ray's token."""

    source: str
    """A path, ``environment``, or empty if there is none."""
    mode: int = 0
    """Permission bits of the file."""
    is_own: bool = True
    """Whether the file belongs to the user of Ray; a mounted secret may not."""


class Listener(Config):
    """A server of this user that other machines can reach."""

    port: int
    address: str
    program: str
    is_ray: bool


class Machine(Config):
    """Limits and free space of a node."""

    memory_bytes: int
    """The smaller of the machine's memory and the limits of its cgroups."""
    memory_free_bytes: int
    shm_bytes: int
    shm_free_bytes: int
    disk_free_bytes: dict[str, int]
    """Folder that is written during work -> free bytes."""
    nofile: int
    """Files that a process may have open."""
    host: str
    is_loopback_only: bool
    """Whether the host's name has loopback addresses alone."""
    listeners: tuple[Listener, ...] = ()
    token: TokenFile
    auth: str
    """RAY_AUTH_MODE of the node; empty if it is not set."""


class StoreFacts(Config):
    """What a node found at the root."""

    error: str = ""
    """Why the root cannot be read or written; empty if it can."""
    sees_driver: bool = True
    """Whether it reads what the driver wrote."""
    is_exclusive: bool = True
    """Whether create-if-absent is enforced."""
    write_mb_s: float = 0.0
    read_mb_s: float = 0.0
    offset_s: float | None = None
    """The node's clock minus the store's, at best within a second; None if the store does not tell."""


class GpuFacts(Config):
    """GPUs that PyTorch sees on a node."""

    names: tuple[str, ...] = ()
    driver: str = ""
    cuda: str = ""
    """Version that PyTorch was built with; empty for a build without CUDA."""


class NodeFacts(Config):
    """Everything that one node reports."""

    machine: Machine
    store: StoreFacts
    gpus: GpuFacts = GpuFacts()
    answers: tuple[DeviceAnswers, ...] = ()


class NodeClock(Config):
    """A node's clock as the driver sees it."""

    offset_s: float
    """The node's clock minus the driver's."""
    error_s: float = Field(ge=0)
    """Half of the round trip, in seconds."""


class Node(Config):
    """A node of the cluster, and what is known of it."""

    id: str
    name: str
    """Host name and address."""
    address: str
    cpus: float
    gpus: float
    object_store_bytes: int = 0
    labels: dict[str, str] = {}
    problem: str = ""
    """Why the node did not answer; empty if it did."""
    versions: Versions | None = None
    facts: NodeFacts | None = None
    clock: NodeClock | None = None

    def having(self, **values: Any) -> Node:
        """The node with more that is known of it."""
        return self.model_copy(update=values)
