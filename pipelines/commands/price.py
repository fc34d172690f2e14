"""The price of a recipe for GPUs, from counted operations: ``--dry-run`` needs neither a GPU nor data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genmod.costs.flops import training_cost
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from pipelines.commands.text_table import text_table

if TYPE_CHECKING:
    from pipelines.recipe.recipe import Recipe


def spec_of(recipe: Recipe) -> ImageSpec | None:
    """The images by the recipe's ``data`` alone; None if ``image_size`` or ``channels`` is not set."""
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
    """Cost of training each model; empty for a recipe without ``about``, size or channels."""
    about, spec = recipe.about, spec_of(recipe)
    if about is None or spec is None:
        return {}
    result: dict[str, dict[str, Any]] = {}
    for name in recipe.model:
        entry, train = recipe.entry(name), recipe.train_config(name)
        stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
        model = ModelConfig(family=entry.family, net=entry.net, spec=spec, stats=stats)
        cost = training_cost(model)
        images_per_s = cost.images_per_s(about.gpu)
        gpu_hours = train.total_nimg / images_per_s / 3600
        result[name] = {
            "parameters": cost.parameters,
            "forward GFLOP/image": round(cost.forward_flops / 1e9, 2),
            "training GFLOP/image": round(cost.step_flops / 1e9, 2),
            "images": train.total_nimg,
            f"images/s on one {about.gpu}": round(images_per_s),
            f"{about.gpu} hours": round(gpu_hours, 1),
            f"hours on {train.most_workers} workers": round(gpu_hours / train.most_workers, 1),
        }
    return result


def price_lines(recipe: Recipe, prices: dict[str, dict[str, Any]]) -> list[str]:
    """A table with a column for each model, then the lines of the recipe's ``about``."""
    about = recipe.about
    if about is None or not prices:
        return []
    quantities = dict.fromkeys(key for price in prices.values() for key in price)
    rows = [
        [quantity, *(_number(price.get(quantity, "")) for price in prices.values())]
        for quantity in quantities
    ]
    columns = range(1, len(prices) + 1)
    notes = about.model_dump(exclude={"gpu"}, exclude_defaults=True)
    return [
        *text_table(["price", *prices], rows, right=columns),
        *(f"{key.replace('_', ' ')}: {_number(value)}" for key, value in notes.items()),
    ]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
