"""The restricted Pod Security profile, and what genmod asks of its own pods besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Pod = Mapping[str, Any]
Container = Mapping[str, Any]

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_CONFINED = ("RuntimeDefault", "Localhost")
_USER = 10001
"""The user of genmod's images."""


def containers_of(pod: Pod) -> list[Container]:
    """All containers of a pod, of any kind."""
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [container for kind in kinds for container in pod.get(kind) or ()]


def _context(part: Mapping[str, Any]) -> Mapping[str, Any]:
    return part.get("securityContext") or {}


def _effective(pod: Pod, container: Container, key: str) -> Any:
    """A setting of a container, else of its pod."""
    return _context(container).get(key, _context(pod).get(key))


def _add(container: Container, which: str) -> set[str]:
    return set((_context(container).get("capabilities") or {}).get(which) or ())


def _host_fields(container: Container) -> Iterator[str]:
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(key) or {}
        yield from ((probe.get(kind) or {}).get("host", "") for kind in ("httpGet", "tcpSocket"))


POD_RULES: dict[str, Callable[[Pod], bool]] = {
    "host namespaces": lambda pod: (
        not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    ),
    "volume types": lambda pod: all(
        set(volume) - {"name"} <= _VOLUMES for volume in pod.get("volumes") or ()
    ),
    "safe sysctls": lambda pod: {x["name"] for x in _context(pod).get("sysctls") or ()} <= _SYSCTLS,
    "pod seccomp is not Unconfined": lambda pod: (
        (_context(pod).get("seccompProfile") or {}).get("type", "RuntimeDefault") in _CONFINED
    ),
    "pod user is not root": lambda pod: _context(pod).get("runAsUser") != 0,
}
"""Rules of the profile for a pod."""

CONTAINER_RULES: dict[str, Callable[[Pod, Container], bool]] = {
    "no privileged container": lambda _, c: not _context(c).get("privileged"),
    "allowPrivilegeEscalation: false": lambda _, c: (
        _context(c).get("allowPrivilegeEscalation") is False
    ),
    "capabilities: drop ALL": lambda _, c: "ALL" in _add(c, "drop"),
    "capabilities: add NET_BIND_SERVICE alone": lambda _, c: _add(c, "add") <= {"NET_BIND_SERVICE"},
    "runAsNonRoot: true": lambda pod, c: _effective(pod, c, "runAsNonRoot") is True,
    "user is not root": lambda pod, c: _effective(pod, c, "runAsUser") != 0,
    "seccomp RuntimeDefault or Localhost": lambda pod, c: (
        (_effective(pod, c, "seccompProfile") or {}).get("type") in _CONFINED
    ),
    "no host ports": lambda _, c: not any(port.get("hostPort") for port in c.get("ports") or ()),
    "no host in probes": lambda _, c: not any(_host_fields(c)),
    "procMount Default": lambda _, c: _context(c).get("procMount", "Default") == "Default",
    "SELinux types": lambda pod, c: (
        (_effective(pod, c, "seLinuxOptions") or {}).get("type") in _SELINUX
    ),
    "AppArmor is not Unconfined": lambda pod, c: (
        (_effective(pod, c, "appArmorProfile") or {}).get("type", "RuntimeDefault") in _CONFINED
    ),
    "no Windows host process": lambda pod, c: (
        not (_effective(pod, c, "windowsOptions") or {}).get("hostProcess")
    ),
}
"""Rules of the profile for each container."""


def _has_tmp(container: Container) -> bool:
    return "/tmp" in {mount["mountPath"] for mount in container.get("volumeMounts") or ()}


def _has_resources(container: Container) -> bool:
    resources = container.get("resources") or {}
    return all(
        {"cpu", "memory"} <= set(resources.get(kind) or ()) for kind in ("requests", "limits")
    )


HOUSE_RULES: dict[str, Callable[[Pod, Container], bool]] = {
    f"runAsUser: {_USER}": lambda pod, c: _effective(pod, c, "runAsUser") == _USER,
    "readOnlyRootFilesystem: true": lambda _, c: _context(c).get("readOnlyRootFilesystem") is True,
    "a volume for /tmp": lambda _, c: _has_tmp(c),
    "requests and limits of cpu and memory": lambda _, c: _has_resources(c),
    "enableServiceLinks: false": lambda pod, _: pod.get("enableServiceLinks") is False,
    "no tag latest": lambda _, c: not c["image"].endswith(":latest"),
}
"""What genmod asks besides."""


def security_problems(pod: Pod) -> list[str]:
    """The rules that a pod breaks, with the container."""
    found = [f"pod security: {name}" for name, holds in POD_RULES.items() if not holds(pod)]
    for container in containers_of(pod):
        for title, rules in (("pod security", CONTAINER_RULES), ("house", HOUSE_RULES)):
            broken = [name for name, holds in rules.items() if not holds(pod, container)]
            found += [f"{title}: {name} (container {container.get('name')})" for name in broken]
    return found
