"""Folders of published models as a registry stores them, for tests of serving and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmod.config import as_json
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import ImageSpec, Manifest
from genmod.serving.settings import SETTINGS_FILE, SampleSettings, ScoreSettings, ServingSettings
from genmod.training.publish import publish_model
from genmod.training.state import TrainState

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
SEED = 11
MICRO_BATCH = 4


def write_model(
    root: Path, name: str, spec: ImageSpec = SPEC, metadata: dict[str, Any] | None = None
) -> Manifest:
    """Publish a small model of a family; raw and moving average differ."""
    net = family(name).Config.tiny().model_dump()
    config = ModelConfig(
        family=name, net=net, spec=spec, stats=DataStats(mean=(0.0,) * spec.channels, std=(0.5,))
    )
    state = TrainState(0, config.build(1), config.build(2), ())
    return publish_model(
        str(root), config, state, fingerprint=name, parents={}, metadata=metadata or {}
    )


def serving_settings(root: Path, name: str, manifest: Manifest, **changes) -> ServingSettings:
    """Settings of small jobs; ``changes`` are of the samples."""
    model_class = family(name)
    sample = {
        "seed": SEED,
        "micro_batch": MICRO_BATCH,
        "weights": "ema",
        "options": as_json(model_class.Sample()),
        "labels": "auto",
    }
    return ServingSettings(
        model_digest=manifest.digest,
        root=str(root),
        sample=SampleSettings.model_validate(sample | changes),
        score=ScoreSettings(
            seed=SEED, micro_batch=2, weights="ema", options=as_json(model_class.Score.tiny())
        ),
    )


def write_served(
    root: Path,
    name: str,
    spec: ImageSpec = SPEC,
    trained: str = "",
    metadata: dict[str, Any] | None = None,
    **changes,
) -> ServingSettings:
    """A folder that a server can load.

    Args:
        root: the folder.
        name: of a family.
        spec: of the images.
        trained: URL of the folder where the model was trained; the folder itself if not given.
        metadata: of the model, e.g. its classes.
        changes: of the settings of samples.
    """
    manifest = write_model(root, name, spec, metadata)
    settings = serving_settings(Path(trained or root), name, manifest, **changes)
    (root / SETTINGS_FILE).write_text(settings.model_dump_json())
    return settings
