"""What a recipe needs of the nodes that it uses, for the doctor and before work on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cluster.doctor.needs import NodeNeeds
from cluster.resources import resource_request
from genmod.costs.flops import parameters_of, training_bytes
from genmod.interface.model import GenerativeModel
from genmod.numerics import NumericsMode
from pipelines.recipe.context import Context


def node_needs(context: Context, models: Mapping[str, GenerativeModel]) -> NodeNeeds:
    """The needs of a command.

    Args:
        context: the command.
        models: of its recipe, by name.
    """
    recipe = context.recipe
    devices: set[Literal["auto", "cpu", "cuda"]] = {
        *("auto", recipe.sample.device, recipe.score.device)
    }
    requests = [resource_request(device, recipe.cluster) for device in sorted(devices)]
    trains = {name: recipe.train_config(name) for name in models}
    modes: set[NumericsMode] = {recipe.sample.numerics, recipe.score.numerics}
    cache = recipe.storage.cache
    return NodeNeeds(
        root=recipe.root,
        request=max(requests, key=lambda request: request.gpus),
        workers=max(
            recipe.sample.workers, recipe.score.workers, *(t.most_workers for t in trains.values())
        ),
        model_bytes=max(
            (
                training_bytes(parameters_of(model)) + (trains[name].decoded_mib << 20)
                for name, model in models.items()
            ),
            default=0,
        ),
        numerics="strict" if "strict" in modes else "portable" if "portable" in modes else "any",
        cache_folder="" if cache is None else cache.folder,
        cache_bytes=0 if cache is None else cache.size_bytes,
        labels=dict(recipe.cluster.labels),
    )
