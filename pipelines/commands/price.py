"""What a recipe for GPUs costs, by counting: ``--dry-run`` prints it where neither GPU nor data are, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genmod.costs.flops import training_cost
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec

if TYPE_CHECKING:
    from pipelines.recipe.recipe import Recipe


def spec_of(recipe: Recipe) -> ImageSpec | None:
    """What the images are by the recipe alone; None if it does not say."""
    data = recipe.data
    if data.image_size is None or data.channels is None:
        return None
    side = data.image_size
    height, width = (side, side) if isinstance(side, int) else side
    classes = 0 if data.labels is False else data.classes or 0
    return ImageSpec(
        channels=data.channels, height=height, width=width, levels=data.levels, classes=classes
    )


def prices(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """For each model what its training costs; nothing for a recipe without ``about``, size or channels."""
    about, spec = recipe.about, spec_of(recipe)
    if about is None or spec is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name in recipe.model:
        entry, train = recipe.entry(name), recipe.train_config(name)
        stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
        model = ModelConfig(family=entry.family, net=entry.net, spec=spec, stats=stats)
        work = training_cost(model)
        images_per_s = work.images_per_s(about.gpu)
        gpu_hours = train.total_nimg / images_per_s / 3600
        found[name] = {
            "parameters": work.parameters,
            "forward GFLOP/image": round(work.forward_flops / 1e9, 2),
            "training GFLOP/image": round(work.step_flops / 1e9, 2),
            "images": train.total_nimg,
            f"images/s on one {about.gpu}": round(images_per_s),
            f"{about.gpu} hours": round(gpu_hours, 1),
            f"hours on {train.workers} workers": round(gpu_hours / train.workers, 1),
        }
    return found


def text(recipe: Recipe, found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines for people."""
    about = recipe.about
    if about is None:
        return []
    lines = [f"price {name}: " + _facts(metadata) for name, metadata in found.items()]
    told = about.model_dump(exclude={"gpu"}, exclude_defaults=True)
    return lines + [f"{key.replace('_', ' ')}: {_number(value)}" for key, value in told.items()]


def _facts(metadata: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_number(value)}" for key, value in metadata.items())


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
