"""The command ``submit``: its options, for a Ray cluster and for Kubernetes."""

from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from genmod.errors import ConfigError
from pipelines.cli import options
from pipelines.cli.invocation import Invocation
from pipelines.cli.run_stage import StageRequest, plan_options, run_request

_KUBERNETES = "Kubernetes"
"""Heading in the help of the command."""

_NAMESPACE = _CLUSTER = "genmod"


def _option(flag: str, metavar: str | None, purpose: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=purpose, rich_help_panel=_KUBERNETES)


def submit_command(stages: Collection[str]) -> Callable[..., Invocation]:
    """The command for these stages."""

    def submit(
        *,
        stage: Annotated[
            str | None,
            typer.Argument(
                metavar="STAGE",
                help=f"One of: {', '.join(stages)}.",
                callback=options.one_of(*stages),
                autocompletion=options.complete(*stages),
            ),
        ] = None,
        recipe: options.OptionalRecipe = None,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        address: options.JobServer = None,
        no_wait: Annotated[
            bool, typer.Option("--no-wait", help="Submit and return; do not follow the job.")
        ] = False,
        status: Annotated[str | None, options.job_option("status", "Print a job's status.")] = None,
        logs: Annotated[str | None, options.job_option("logs", "Print a job's log.")] = None,
        stop: Annotated[str | None, options.job_option("stop", "Stop a job.")] = None,
        kubernetes: Annotated[
            bool, _option("--kubernetes", None, "Submit a RayJob of KubeRay with kubectl.")
        ] = False,
        print_: Annotated[
            bool, _option("--print", None, "Print the RayJob as YAML and submit nothing.")
        ] = False,
        namespace: Annotated[
            str | None, _option("--namespace", "NAME", f"Default: {_NAMESPACE}.")
        ] = None,
        cluster: Annotated[
            str | None, _option("--cluster", "NAME", f"The RayCluster. Default: {_CLUSTER}.")
        ] = None,
        image: Annotated[
            str | None, _option("--image", "IMAGE", "Default: that of the RayCluster's head.")
        ] = None,
        attempt: Annotated[
            int | None, _option("--attempt", "N", "Default: the one that runs, else the next.")
        ] = None,
        dry_run: options.DryRun = False,
        show_recipe: options.ShowRecipe = False,
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """Run a stage as a job on a Ray cluster and follow its log."""
        only: dict[str, Any] = {
            "--print": print_,
            "--namespace": namespace,
            "--cluster": cluster,
            "--image": image,
            "--attempt": attempt,
        }
        others = {"--address": address, "--status": status, "--logs": logs, "--stop": stop}

        def run() -> dict[str, Any]:
            from pipelines.commands.submit import manage
            from pipelines.commands.submit import submit as submit_to_ray

            _check_together(kubernetes, only, others)
            for action, job in (("status", status), ("logs", logs), ("stop", stop)):
                if job:
                    return manage(action, job, address)
            if not stage or not recipe:
                raise ConfigError(
                    "submit: no stage or no recipe given, e.g. genmod submit run --recipe quickstart"
                )
            if plan := plan_options(dry_run, show_recipe):
                return run_request(StageRequest(stage, recipe, assignments, model), plan)
            models = tuple(dict.fromkeys(model))
            if kubernetes:
                from pipelines.commands import kubernetes_submit

                request = kubernetes_submit.KubernetesRequest(
                    stage, recipe, assignments, models,
                    _NAMESPACE if namespace is None else namespace,
                    _CLUSTER if cluster is None else cluster, image, attempt,
                )  # fmt: skip
                if print_:
                    return kubernetes_submit.print_objects(request)
                return kubernetes_submit.submit_job(request, wait=not no_wait)
            return submit_to_ray(
                stage,
                recipe=recipe,
                assignments=assignments,
                models=models,
                address=address,
                wait=not no_wait,
                as_json=as_json,
            )

        return Invocation("submit", run, as_json, debug)

    return submit


def _check_together(kubernetes: bool, only: dict[str, Any], others: dict[str, Any]) -> None:
    """Refuse options of the one kind of cluster for the other."""
    for name, value in (others if kubernetes else only).items():
        if value not in (None, False):
            raise ConfigError(
                f"{name} is for a Ray cluster; with --kubernetes, kubectl shows and stops jobs"
                if kubernetes
                else f"{name} needs --kubernetes"
            )
