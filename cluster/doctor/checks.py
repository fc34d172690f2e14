"""Checks of one node: facts and needs in, findings out. Nothing is measured here."""

from __future__ import annotations

from cluster.doctor.facts import GpuFacts, Machine, Node, StoreFacts, Versions
from cluster.doctor.finding import Report
from cluster.doctor.needs import NodeNeeds

_MIB = 1 << 20

_DISK_FATAL_BYTES, _DISK_WARNING_BYTES = 256 * _MIB, 2048 * _MIB
_SHM_FATAL_BYTES = 16 * _MIB
_NOFILE_FATAL, _NOFILE_WARNING = 1024, 4096
_SLOW_MB_S = 5.0
"""Speed of a store, in MB/s, below which reading shards takes longer than training on them."""

STORE_REMEDY = (
    "use a root that all nodes see, e.g. --set root=s3://BUCKET/PATH; check the node's network, "
    "credentials and mounts"
)
"""Of a root that a node cannot reach."""


def check_versions(report: Report, own: Versions, versions: Versions) -> None:
    """A node's versions against the driver's."""
    remedies = {
        "genmod": "install the driver's genmod there, e.g. by the same image",
        "python": "use the driver's Python there",
        "ray": "install the driver's Ray there",
        "torch": "install the driver's PyTorch there",
    }
    for name, remedy in remedies.items():
        here, there = getattr(own, name), getattr(versions, name)
        if here == there:
            report.ok(name, there)
        else:
            report.fatal(name, f"{there}, the driver has {here}", remedy)


def is_missing(problem: str) -> bool:
    """Whether a call failed because a module is missing on its node."""
    return "ModuleNotFoundError" in problem or "ImportError" in problem


def check_answer(report: Report, problem: str) -> None:
    """Why a node does not answer: genmod is missing there, or the node is lost, or too slow."""
    if is_missing(problem):
        report.fatal(
            "genmod",
            f"cannot be imported there: {problem}",
            "install genmod there, e.g. by an image that contains it",
        )
    else:
        report.fatal(
            "answer",
            f"the node does not answer: {problem}",
            "check the node with ray status and its logs, or end Ray there",
        )


def check_machine(report: Report, node: Node, machine: Machine, needs: NodeNeeds) -> None:
    """Memory, shared memory, disk, files and the name of a node."""
    check_memory(report, node, machine, needs)
    check_shm(report, node, machine)
    check_disk(report, machine, needs)
    report.limit(
        "nofile",
        f"{machine.nofile:,} open files",
        "raise the limit where Ray is started: ulimit -n 65536",
        machine.nofile,
        fatal=_NOFILE_FATAL,
        warning=_NOFILE_WARNING,
    )


def check_memory(report: Report, node: Node, machine: Machine, needs: NodeNeeds) -> None:
    """Memory of a node against that of the workers that can be on it."""
    workers = max(1, needs.workers_on(node.cpus, node.gpus))
    one, all_of_them = needs.worker_bytes, needs.worker_bytes * workers
    text = (
        f"{_mib(machine.memory_bytes)}, {_mib(machine.memory_free_bytes)} free; {workers} workers need "
        f"{_mib(one)} each"
    )
    remedy = (
        "raise the node's or container's memory, use a smaller model or train.decoded_mib, or let fewer "
        "workers run there (cluster.cpus_per_worker)"
    )
    if machine.memory_bytes < one:
        report.fatal("memory", text, remedy)
    elif machine.memory_bytes < all_of_them or machine.memory_free_bytes < one:
        report.warning("memory", text, remedy)
    else:
        report.ok("memory", text)


def check_shm(report: Report, node: Node, machine: Machine) -> None:
    """Shared memory, where Ray has its object store, and NCCL its buffers."""
    text = f"{_mib(machine.shm_bytes)} in /dev/shm, {_mib(machine.shm_free_bytes)} free"
    remedy = "give the container a larger /dev/shm (--shm-size, or an emptyDir of medium Memory)"
    if machine.shm_free_bytes < _SHM_FATAL_BYTES:
        report.fatal("shm", text, remedy)
    elif machine.shm_bytes < node.object_store_bytes:
        report.warning(
            "shm",
            f"{text}; Ray's object store of {_mib(node.object_store_bytes)} is on disk",
            remedy,
        )
    else:
        report.ok("shm", text)


def check_disk(report: Report, machine: Machine, needs: NodeNeeds) -> None:
    """Free space of the folders that are written on the node."""
    if not machine.disk_free_bytes:
        return
    folder, free = min(machine.disk_free_bytes.items(), key=lambda item: item[1])
    remedy = f"free space at {folder}, or set TMPDIR and ray start --temp-dir to another disk"
    cache_free = machine.disk_free_bytes.get(needs.cache_folder, needs.cache_bytes)
    if free >= _DISK_WARNING_BYTES and cache_free < needs.cache_bytes:
        report.warning(
            "disk",
            f"{_mib(cache_free)} free at {needs.cache_folder}, storage.cache may use "
            f"{_mib(needs.cache_bytes)}",
            "set storage.cache.size_bytes lower, or its folder to another disk",
        )
        return
    report.limit(
        "disk",
        f"{_mib(free)} free at {folder}",
        remedy,
        free,
        fatal=_DISK_FATAL_BYTES,
        warning=_DISK_WARNING_BYTES,
    )


def check_network(report: Report, machine: Machine, *, is_alone: bool) -> None:
    """Name, token and servers of a node.

    Args:
        report: of the node.
        machine: its facts.
        is_alone: whether the cluster is a local Ray, which no other machine reaches.
    """
    if machine.is_loopback_only and not is_alone:
        report.fatal(
            "host-name",
            f"the name {machine.host} has loopback addresses alone there, so workers elsewhere cannot "
            "connect to it",
            f"correct /etc/hosts of that node: {machine.host} needs its network address",
        )
    else:
        report.ok("host-name", machine.host)
    _check_token(report, machine)
    _check_ports(report, machine, is_alone=is_alone)


def _check_token(report: Report, machine: Machine) -> None:
    token = machine.token
    if machine.auth == "disabled" or (not machine.auth and not token.source):
        report.fatal(
            "token",
            "Ray accepts everyone who reaches it there",
            "start Ray with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE",
        )
    elif token.mode & 0o077 and token.is_own:
        report.fatal(
            "token",
            f"{token.source} has mode {token.mode:04o}, so others on that machine can run code as its user",
            f"chmod 600 {token.source}",
        )
    elif token.mode & 0o007:
        report.warning(
            "token",
            f"{token.source} has mode {token.mode:04o}: every user of that machine can read it",
            "mount the secret with mode 0400",
        )
    else:
        report.ok("token", token.source or "given to the process alone")


def _check_ports(report: Report, machine: Machine, *, is_alone: bool) -> None:
    ray_ports = [str(each.port) for each in machine.listeners if each.is_ray]
    others = [] if is_alone else [each for each in machine.listeners if not each.is_ray]
    if is_alone and ray_ports:
        report.warning(
            "ports",
            f"other machines reach Ray's ports {', '.join(ray_ports)}",
            "set RAY_ADDRESS only to a cluster that you mean; a local Ray of genmod listens on 127.0.0.1",
        )
    elif others:
        listed = "; ".join(f"{each.address}:{each.port} {each.program}" for each in others[:5])
        report.warning(
            "ports",
            f"other machines reach servers that are not Ray's: {listed}",
            "bind them to 127.0.0.1, or let a network policy or firewall admit only the cluster",
        )
    else:
        text = f"Ray's ports, which need the token: {', '.join(ray_ports)}" if ray_ports else "none"
        report.ok("ports", text)


def check_store(report: Report, root: str, store: StoreFacts) -> None:
    """Whether the root can be used from a node."""
    if not store.sees_driver:
        report.fatal(
            "storage",
            store.error or f"{root} is another folder there: what the driver wrote is missing",
            STORE_REMEDY,
        )
    elif not store.is_exclusive:
        report.fatal(
            "create-if-absent",
            f"{root} lets two writers win",
            "use local files or an S3 store that supports If-None-Match",
        )
    elif store.error:
        report.fatal("storage", store.error, "make the root writable for the user of Ray there")
    else:
        report.ok("storage", f"{root} is written and read")
        report.ok("create-if-absent", "enforced")


def check_store_speed(report: Report, store: StoreFacts, best_mb_s: float) -> None:
    """Speed of the store from a node, against the best of all nodes."""
    if store.error or not store.sees_driver:
        return
    report.limit(
        "storage-speed",
        f"writes {store.write_mb_s:,.0f} MB/s, reads {store.read_mb_s:,.0f} MB/s",
        "check the node's network and disk; storage.cache keeps tars on the node's own disk",
        min(store.write_mb_s, store.read_mb_s),
        fatal=0.0,
        warning=max(_SLOW_MB_S, best_mb_s / 20),
    )


def check_gpus(report: Report, node: Node, gpus: GpuFacts, drivers: set[str]) -> None:
    """GPUs of a node, against what Ray offers there and the drivers of other nodes."""
    if not node.gpus:
        return
    listed = f"{len(gpus.names)} GPUs ({', '.join(sorted(set(gpus.names))) or 'none'})"
    if len(gpus.names) < node.gpus:
        build = f"built for CUDA {gpus.cuda}" if gpus.cuda else "a build without CUDA"
        report.fatal(
            "gpu",
            f"Ray offers {node.gpus:g} GPUs, but PyTorch ({build}) sees {listed}",
            "install the driver and PyTorch's CUDA build there, or start Ray there with --num-gpus=0",
        )
    elif len(drivers) > 1:
        report.warning(
            "gpu",
            f"{listed}, driver {gpus.driver}; the nodes have drivers {', '.join(sorted(drivers))}",
            "install one driver on all nodes",
        )
    else:
        report.ok("gpu", f"{listed}, driver {gpus.driver}")


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:,.0f} MiB"
