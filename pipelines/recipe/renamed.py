"""Recipe keys that have a new name. An old key is an error that names the new one; there are no aliases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from genmod.errors import ConfigError

RENAMED_KEYS: Mapping[str, str] = {
    "storage.patience_s": "retry_timeout_s",
    "storage.stall_s": "read_timeout_s",
    "storage.attempt_s": "request_timeout_s",
    "train.hang_s": "hang_timeout_s",
    "train.watch": "collapse_monitor",
    "train.collapse_monitor.grace_nimg": "start_nimg",
    "train.collapse_monitor.gamma_factor": "penalty_factor",
    "train.collapse_monitor.patience": "consecutive_checks",
    "train.collapse_monitor.retries": "max_rollbacks",
    "train.collapse_monitor.least_coverage": "min_coverage",
    "train.collapse_monitor.least_of_best": "min_relative_coverage",
    "train.collapse_monitor.most_duplicates": "max_duplicates",
    "train.latents": "latent_monitor",
    "train.latent_monitor.grace_nimg": "start_nimg",
    "train.latent_monitor.least_active_share": "min_active_share",
    "train.latent_monitor.least_kl_nats": "min_kl_nats",
    "train.order.mix": "mixture",
    "train.order.last": "last_batch",
    "train.order.window": "shuffle_window_shards",
    "model.*.tunes": "distills",
    "model.*.net.noise.mean": "P_mean",
    "model.*.net.noise.std": "P_std",
    "model.*.net.noise.uniform": "uniform_share",
    "model.*.score.calls": "nfe",
    "evaluate.unfamiliar": "ood",
    "evaluate.features.shown_images": "train_images",
    "promote.rules.*.tolerate": "max_regression",
    "promote.rules.*.position": "max_relative_position",
}
"""Old key -> last part of the new key. ``*`` is any name; ``train`` stands for ``model.*.train`` too."""

RENAMED_VALUES: Mapping[str, Mapping[Any, str]] = {"model.*.net.penalty": {"slope": "gp"}}
"""Key -> old value -> new value."""


def refuse_renamed(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first old key or value of a recipe that was read from YAML."""
    for path, value in _walk(tree, ()):
        key = ".".join(path)
        pattern = _pattern(path)
        if (new_name := RENAMED_KEYS.get(pattern)) is not None:
            raise ConfigError(f"recipe: {key} was renamed; use {'.'.join((*path[:-1], new_name))}")
        values = RENAMED_VALUES.get(pattern, {})
        if isinstance(value, str) and value in values:
            raise ConfigError(f"recipe: {key}={value} was renamed; use {key}={values[value]}")


def _walk(
    section: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of every key below a section, outer keys first."""
    for name, value in section.items():
        path = (*above, str(name))
        yield path, value
        if isinstance(value, Mapping):
            yield from _walk(cast("Mapping[str, Any]", value), path)


def _pattern(path: tuple[str, ...]) -> str:
    """A key as the tables write it: any model and any rule is ``*``, a model's ``train`` is ``train``."""
    if path[0] == "model" and len(path) > 2:
        path = path[2:] if path[2] == "train" else ("model", "*", *path[2:])
    if path[:2] == ("promote", "rules") and len(path) > 2:
        path = ("promote", "rules", "*", *path[3:])
    return ".".join(path)
