# The settings that up and down share; source it in the root of the repository.
. infra/common.sh
. infra/secrets.sh

export GENMOD_PROJECT=${GENMOD_PROJECT:-genmod}
export GENMOD_RAY_PORT=${GENMOD_RAY_PORT:-8265} GENMOD_MLFLOW_PORT=${GENMOD_MLFLOW_PORT:-5000}
export GENMOD_STORE_PORT=${GENMOD_STORE_PORT:-8333} GENMOD_GCS_PORT=${GENMOD_GCS_PORT:-6379}
STACK=$(realpath -m "${GENMOD_STATE:-runs}/local-$GENMOD_PROJECT")
BIN=$PWD/.venv/bin

marked() {  # process ids of what the stack with this mark started, and of their children
  local file
  for file in /proc/[0-9]*/environ; do
    if grep -qzxF "GENMOD_STACK_MARK=$1" "$file" 2>/dev/null; then
      file=${file%/environ}
      echo "${file#/proc/}"
    fi
  done
}

stop_marked() {  # MARK: end its processes, and wait until they are gone
  local round pids
  for round in 1 2 3 4 5 6; do
    pids=$(marked "$1")
    [ -n "$pids" ] || return 0
    # shellcheck disable=SC2086
    if [ "$round" -lt 3 ]; then kill $pids 2>/dev/null; else kill -KILL $pids 2>/dev/null; fi || true
    sleep 1
  done
  echo "${0##*/}: still running: $(marked "$1" | tr '\n' ' ')" >&2
  return 1
}
