"""Pages of models that are only folders, for the browser: a report, and a decision against a champion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from genmod import storage
from genmod.interface.snapshot import ManifestSnapshot
from genmod.report.page import ReportContent, render
from pipelines.jobs.model_pages import read_model_page
from pipelines.stages.promote import promote
from tests.pipelines.stages.champion_world import World


def write_pages(folder: Path, models: int) -> None:
    """Write ``decision.html``, and ``report.html`` about so many models."""
    world = World(folder, str(folder / "root"), "{enabled: false}")
    for number, fd in ((1, 20), (2, 10)):
        world.add(number, fd, shown={})
        with world.command(number) as context:
            url = promote(context, "vae").page
    (folder / "decision.html").write_bytes(storage.read_bytes(url))
    (folder / "report.html").write_text(_report(world, models))


def _report(world: World, models: int) -> str:
    root = world.at(1)
    roots = f"{root}/models/vae", f"{root}/evaluation/vae"
    page = read_model_page(ManifestSnapshot(), "vae", *roots)
    return render(
        ReportContent(
            title="genmod report: digits",
            dims=64,
            levels=256,
            data=[("Source", "builtin:digits"), ("Rows", "train 1,000, val 200")],
            reference_png=page.pictures["samples.png"],
            models=[replace(page, name=f"vae-{number}") for number in range(models)],
            provenance=[("data", f"{root}/data", "5e6f" * 16)],
            tracking=f"mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db",
        )
    )
