"""Jobs of the soak test: families, requests, filters, image formats, stores and double starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from genmod.config import as_json
from genmod.generation.config import SampleConfig
from genmod.scoring.config import ScoreConfig

STRONG_FILTERS = {"min_contrast": 1.0, "earlier_copies": True}


@dataclass(frozen=True)
class Work:
    """One configuration."""

    stage: Literal["sample", "score"]
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the recipe's section, where they differ from the common ones."""
    family: str = "vae"
    place: Literal["local", "s3", "faulty s3"] = "local"
    """Where inputs and outputs lie. The faulty store answers some requests late, twice, or not at all."""
    drivers: int = 1
    """Drivers that are started at the same time."""
    share: float = 1.0
    """Rows, relative to other configurations."""


WORKS = {
    "sample": Work("sample"),
    "sample-classes": Work("sample", {"request": {0: 0.4, 2: 0.3}}),
    "sample-filters": Work("sample", {"request": {0: 0.3, 1: 0.2}, "filters": STRONG_FILTERS}),
    "sample-strict": Work(
        "sample", {"request": 0.6, "filters": {"max_saturated": 0.02}, "max_tries": 100}
    ),
    "sample-ranges": Work("sample", {"request": [[0, 0.3], [1.0, 1.5]]}),
    "sample-one": Work("sample", {"labels": 1}),
    "sample-flow": Work("sample", family="flow"),
    "sample-gan": Work("sample", {"request": {1: 0.5}}, family="gan"),
    "sample-diffusion": Work("sample", family="diffusion", share=0.2),
    "sample-portable": Work("sample", {"numerics": "portable"}),
    "sample-jpeg": Work("sample", {"image_format": "jpeg"}),
    "sample-webp": Work("sample", {"image_format": "webp"}, family="gan"),
    "sample-npy": Work("sample", {"image_format": "npy", "filters": {"min_contrast": 1.0}}),
    "sample-parquet": Work("sample", {"parquet": True}),
    "sample-twice": Work("sample", {"workers": 1}, drivers=2),
    "sample-filters-twice": Work(
        "sample", {"request": 0.5, "workers": 1, "filters": STRONG_FILTERS}, drivers=2
    ),
    "sample-s3": Work("sample", place="s3"),
    "sample-s3-filters": Work(
        "sample", {"request": {0: 0.3, 1: 0.2}, "filters": STRONG_FILTERS}, place="s3"
    ),
    "sample-faulty-s3": Work("sample", place="faulty s3"),
    "score": Work("score"),
    "score-flow": Work("score", family="flow"),
    "score-diffusion": Work("score", {"max_rows": 0.2}, family="diffusion"),
    "score-calibrated": Work("score", {"split": "train", "calibration": {"rows": 20}}),
    "score-twice": Work("score", {"workers": 1}, family="flow", drivers=2),
    "score-s3": Work("score", place="s3"),
    "score-faulty-s3": Work("score", family="flow", place="faulty s3"),
}
"""Name -> configuration. Numbers of images are shares of the size of the soak test."""


def sample_config(work: Work, images: int) -> SampleConfig:
    """The section ``sample`` of a configuration that makes about this many images, in a dozen shards."""
    images = round(images * work.share)
    micro_batch = 4 if images < 1000 else 25
    shard_rows = max(micro_batch, images // 12 // micro_batch * micro_batch)
    settings = dict(work.settings)
    if "request" in settings:
        settings["request"] = _scaled(settings["request"], images)
    common = {"count": images, "shard_rows": shard_rows, "micro_batch": micro_batch, "workers": 2}
    return SampleConfig.model_validate(common | settings)


def score_config(work: Work, rows: int) -> ScoreConfig:
    """The section ``score`` of a configuration for a split of this many rows, in a dozen tasks or more."""
    settings = dict(work.settings)
    if "max_rows" in settings:
        settings["max_rows"] = round(settings["max_rows"] * rows)
    common = {"split": "train", "rows_per_task": 7 if rows < 1000 else rows // 20, "workers": 2}
    micro_batch = 4 if rows < 1000 else 25
    base = common | {"micro_batch": micro_batch, "calibration": None}
    return ScoreConfig.model_validate(base | settings)


def as_request(work: Work, rows: int) -> dict[str, Any]:
    """The part of a driver's request that a configuration determines."""
    config = sample_config(work, rows) if work.stage == "sample" else score_config(work, rows)
    return {"stage": work.stage, "config": as_json(config)}


def _scaled(request: Any, images: int) -> Any:
    if isinstance(request, dict):
        return {label: round(share * images) for label, share in request.items()}
    if isinstance(request, list):
        return [[round(share * images) for share in bounds] for bounds in request]
    return round(request * images)
