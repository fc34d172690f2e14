# The settings that up and down share; source it in the root of the repository.
. infra/common.sh
. infra/secrets.sh
. infra/containers.sh

export GENMOD_PROJECT=${GENMOD_PROJECT:-genmod}
export GENMOD_RAY_PORT=${GENMOD_RAY_PORT:-8265} GENMOD_MLFLOW_PORT=${GENMOD_MLFLOW_PORT:-5000}
export GENMOD_STORE_PORT=${GENMOD_STORE_PORT:-8333} GENMOD_PROMETHEUS_PORT=${GENMOD_PROMETHEUS_PORT:-9090}
export GENMOD_ALERTMANAGER_PORT=${GENMOD_ALERTMANAGER_PORT:-9093} GENMOD_GRAFANA_PORT=${GENMOD_GRAFANA_PORT:-3000}
export GENMOD_IMAGE=${GENMOD_IMAGE:-localhost/genmod-runtime:cpu}
export GENMOD_SERVICES_IMAGE=${GENMOD_SERVICES_IMAGE:-localhost/genmod-services:cpu}
export GENMOD_GRAFANA_IMAGE=${GENMOD_GRAFANA_IMAGE:-docker.io/grafana/grafana:12.2.0}
cpus=$(($(nproc) / 2))
export GENMOD_WORKER_CPUS=${GENMOD_WORKER_CPUS:-$((cpus > 0 ? cpus : 1))} GENMOD_WORKER_MEMORY=${GENMOD_WORKER_MEMORY:-6g}
STACK=$(realpath -m "${GENMOD_STATE:-runs}/cluster-$GENMOD_PROJECT")
export GENMOD_SECRETS=$STACK/secrets
PARTS="store postgres mlflow head worker-1 worker-2 prometheus alertmanager"

[[ $GENMOD_PROJECT =~ ^[a-z0-9][a-z0-9-]*$ ]] || fail "GENMOD_PROJECT is $GENMOD_PROJECT, expected lower-case letters, digits and hyphens"
need_programs podman runc iptables
COMPOSE=.venv/bin/podman-compose
[ -x "$COMPOSE" ] || fail "$COMPOSE is missing; run: make setup"
[ "$(id -u)" = 0 ] || fail "needs root: secrets belong to the containers' user, 10001"
container_settings "$STACK"
# podman starts timers of health checks by systemd; up asks for the checks itself.
[ -d /run/systemd/system ] || export DISABLE_HC_SYSTEMD=true

compose() {  # WORDS of podman-compose, for this project
  "$COMPOSE" --project-name "$GENMOD_PROJECT" --file infra/compose.yaml ${GENMOD_PROFILES:+--profile "$GENMOD_PROFILES"} "$@"
}

containers() {  # names of this project's containers
  podman ps --all --filter "label=io.podman.compose.project=$GENMOD_PROJECT" --format '{{.Names}}'
}
