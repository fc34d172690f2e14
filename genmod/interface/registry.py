"""The registry of families: one file or folder of ``genmod/models`` is one family."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import torch

from genmod.config import Config, parse
from genmod.errors import ConfigError, did_you_mean
from genmod.interface.model import DataStats, GenerativeModel
from genmod.manifest import ImageSpec
from genmod.rng import philox_key

PACKAGE = "genmod.models"
"""The package whose modules are the families. Code outside it names no family."""


def families() -> tuple[str, ...]:
    """Names of all families: the files and folders of ``genmod/models``."""
    package = importlib.import_module(PACKAGE)
    return tuple(sorted(info.name for info in pkgutil.iter_modules(package.__path__)))


def family(name: str) -> type[GenerativeModel]:
    """The model class of a family."""
    if name not in families():
        raise ConfigError(f"no family is called {name!r}; {did_you_mean(name, families())}")
    return importlib.import_module(f"{PACKAGE}.{name}").Model


class ModelConfig(Config):
    """Everything needed to build a model again; config.json of a checkpoint or model folder."""

    family: str
    net: dict[str, Any]
    spec: ImageSpec
    stats: DataStats

    def build(self, seed: int = 0) -> GenerativeModel:
        """A new model. Its weights are a pure function of this configuration and the seed."""
        model_class = family(self.family)
        net = parse(model_class.Config, self.net, f"model ({self.family}) net")
        model_class.check(net, self.spec)
        with torch.random.fork_rng(devices=[]):
            low, high = philox_key(seed, f"init/{self.family}")
            torch.manual_seed(high << 31 | low >> 1)
            return model_class(net, self.spec, self.stats)
