# What podman and buildah need on this machine; source it after common.sh.

PODMAN_PACKAGES="podman buildah runc netavark aardvark-dns catatonit iptables"

need_programs() {  # NAME ...: of Debian's packages for containers
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || fail "$program is missing; install Debian's packages: $PODMAN_PACKAGES"
  done
}

container_settings() {  # FOLDER: settings for machines without systemd, in a file that CONTAINERS_CONF then names
  [ ! -d /run/systemd/system ] && [ -z "${CONTAINERS_CONF:-}" ] || return 0
  local files processes
  files=$(ulimit -Hn) processes=$(ulimit -Hu)  # a container's limits must not exceed those of its caller
  [ "$files" != unlimited ] && [ "$files" -lt 65536 ] || files=65536
  [ "$processes" != unlimited ] && [ "$processes" -lt 32768 ] || processes=32768
  mkdir -p "$1"
  # runc, because crun refuses machines with both versions of cgroups.
  cat >"$1/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=$processes:$processes"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
EOF
  export CONTAINERS_CONF=$1/containers.conf
}
