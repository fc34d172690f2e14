"""``genmod sample --index``: one image of a synthetic dataset, without Ray."""

from __future__ import annotations

from typing import Any

from genmod import storage
from genmod.data.format.encodings import ImageEncoder
from genmod.errors import ConfigError
from genmod.interface.model_store import load_model
from pipelines.recipe.context import DONE, Context
from pipelines.stages.sample import sample_plan

_MAX_INDEX = 1 << 60


def write_image(context: Context, index: int, out: str) -> dict[str, Any]:
    """Generate an image and write it, byte for byte as it is in the tar of the dataset.

    Args:
        context: with one selected model.
        index: of the image; beyond the requested number, the image that a larger dataset has.
        out: path or URL of the file.

    Raises:
        ConfigError: several models are selected, or the folder of the dataset has images of another model.
        GenmodError: the image is not finite.
    """
    if len(context.models) != 1:
        raise ConfigError(
            f"--index is an image of one model, got {', '.join(context.models)}; select one with --model NAME"
        )
    if not 0 <= index < _MAX_INDEX:
        raise ConfigError(f"--index is {index}, expected 0 or more")
    storage.check_url(out)
    plan = sample_plan(context, context.models[0])
    generator = plan.generator(load_model(plan.model_root, plan.config.weights).eval())
    row = generator.row(index, generator.image(index), plan.model_digest)
    encoder = ImageEncoder(plan.spec, plan.config.encoding)
    storage.write_bytes(storage.resolve(out), encoder.encode(row.image_HWC))
    label = "" if row.label is None else f", class {row.label}"
    lane, ordinal = plan.request.lanes.place(index)
    is_asked = any(
        lane == part.lane and part.start <= ordinal < part.stop for part in plan.intervals
    )
    outside = "" if is_asked else ", which is not in the requested dataset"
    context.progress.log(f"image {index:,} of {plan.name}{label}{outside}: {out}")
    return {
        "stage": "sample",
        "status": DONE,
        "output": out,
        "fingerprint": plan.stream,
        "index": index,
        "label": row.label,
    }
