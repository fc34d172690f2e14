"""The registry of families: each file or folder of ``genmod/models`` is one family.

More families are found in the folders of ``GENMOD_FAMILIES``, see :mod:`genmod.interface.external`.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from genmod.budget import BUDGET
from genmod.config import Config, parse
from genmod.errors import ConfigError, DataError, did_you_mean
from genmod.interface.external import FAMILIES_VARIABLE, family_folders
from genmod.interface.model import DataStats, GenerativeModel
from genmod.manifest import ImageSpec
from genmod.net_budget import net_budget
from genmod.rng import philox_key

PACKAGE = "genmod.models"
"""The package whose modules are the families. Code outside it names no family."""

META = torch.device("meta")
"""Device of tensors that have shapes but no memory."""

_REMEDY = "use smaller net sizes or smaller images"


def families() -> tuple[str, ...]:
    """Sorted names of all families: those of ``genmod/models``, and those of ``GENMOD_FAMILIES``.

    Raises:
        ConfigError: a folder of ``GENMOD_FAMILIES`` does not exist, or two families have one name.
    """
    folders = _package().__path__
    names = sorted(info.name for f in folders for info in pkgutil.iter_modules([f]))
    for name, following in itertools.pairwise(names):
        if name == following:
            raise ConfigError(
                f"{FAMILIES_VARIABLE}: there are two families {name!r}; rename the file of one"
            )
    return tuple(names)


def family(name: str) -> type[GenerativeModel]:
    """The model class of a family.

    Raises:
        ConfigError: there is no such family, its module cannot be imported, or it defines no ``Model``.
    """
    if name not in families():
        raise ConfigError(f"no family is called {name!r}; {did_you_mean(name, families())}")
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f"family {name!r} cannot be imported: {error}; correct its file"
        ) from error
    model_class = getattr(module, "Model", None)
    if not (isinstance(model_class, type) and issubclass(model_class, GenerativeModel)):
        raise ConfigError(
            f"family {name!r} ({module.__file__}) has no class Model derived from GenerativeModel"
        )
    return model_class


def _package() -> ModuleType:
    """``genmod.models``, its search path extended by the folders of the environment."""
    package = importlib.import_module(PACKAGE)
    assert package.__spec__ is not None
    own = package.__spec__.submodule_search_locations
    assert own is not None
    package.__path__ = [*own[:1], *family_folders()]
    return package


class ModelConfig(Config):
    """Everything needed to build a model again; the ``config.json`` of a checkpoint or model folder."""

    family: str
    """Name of a registered family."""
    net: dict[str, Any]
    """The family's ``Config``, as JSON values."""
    spec: ImageSpec
    """Shape, levels and classes of the images."""
    stats: DataStats
    """Moments of the training data."""

    def build(self, seed: int = 0) -> GenerativeModel:
        """Build a new model. Its weights are a pure function of this configuration and the seed.

        The net is counted on the meta device first, so one beyond the budget is never allocated.

        Raises:
            ConfigError: the configuration is not this family's, does not fit the images, or is too large.
        """
        construct = self._constructor()
        if self._shapes(construct) is None:
            return self._counted(lambda: construct(seed))
        return construct(seed)

    def shapes(self) -> GenerativeModel:
        """The model on the meta device, without values; on the CPU if its constructor reads values.

        Raises:
            ConfigError: as :meth:`build`.
        """
        construct = self._constructor()
        model = self._shapes(construct)
        return self._counted(lambda: construct(0)) if model is None else model

    def _constructor(self) -> Callable[[int], GenerativeModel]:
        """Check the configuration. Returns a function from a seed to a new model."""
        model_class = family(self.family)
        config = parse(model_class.Config, self.net, f"model ({self.family}) net")
        height, width = self.spec.height, self.spec.width
        where = f"model ({self.family}) spec"
        try:
            BUDGET.check(where, image_side=max(height, width), pixels=height * width)
            BUDGET.check(where, classes=self.spec.classes)
        except DataError as error:
            raise ConfigError(str(error)) from None
        model_class.check(config, self.spec)

        def construct(seed: int) -> GenerativeModel:
            with torch.random.fork_rng(devices=[]):
                low, high = philox_key(seed, f"init/{self.family}")
                torch.manual_seed(high << 31 | low >> 1)
                return model_class(config, self.spec, self.stats)

        return construct

    def _shapes(self, construct: Callable[[int], GenerativeModel]) -> GenerativeModel | None:
        """The model on the meta device; None if its constructor reads values."""
        try:
            with META:
                return self._counted(lambda: construct(0))
        except (NotImplementedError, TypeError):  # of torch where a meta tensor's value is read
            return None

    def _counted(self, construct: Callable[[], GenerativeModel]) -> GenerativeModel:
        """Construct a model within the budget. ConfigError if it is too large or cannot be built."""
        where = f"model ({self.family}) net"
        try:
            with net_budget(where, _REMEDY):
                return construct()
        except NotImplementedError:
            raise
        except DataError as error:
            raise ConfigError(str(error)) from None
        except (RuntimeError, OverflowError, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"{where} cannot be built ({reason}); {_REMEDY}") from error
