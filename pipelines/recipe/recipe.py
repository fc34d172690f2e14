"""The recipe: one YAML file with every setting of a run, validated completely before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from pydantic import Field

from cluster.session import ClusterConfig
from genmod import storage
from genmod.config import Config, parse
from genmod.data.sources.source import DataConfig
from genmod.errors import ConfigError, did_you_mean
from genmod.evaluation.gate import PromoteConfig
from genmod.generation.synthetic import SampleConfig
from genmod.interface.options import SampleOptions, ScoreOptions
from genmod.interface.registry import family
from genmod.metrics.protocol import EvaluateConfig
from genmod.scoring.table import ScoreConfig
from genmod.storage import StorageConfig
from genmod.training.plan import TrainConfig
from pipelines.recipe.about import AboutConfig
from pipelines.recipe.renamed import refuse_renamed
from pipelines.tracking.tracker import TrackingConfig

RECIPES = Path(__file__).parents[1] / "recipes"


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A model's name, which is also its folder's and a part of its name in the registry."""


class RecipeModel(Config):
    """One model of a recipe."""

    family: str
    """Name of a family: a file or folder of ``genmod/models``."""
    distills: str | None = None
    """Name of another model of the recipe. This one starts from its weights; its ``net`` is the other's with
    the changes given here. ``genmod distill`` trains it, after ``genmod train``."""
    net: dict[str, Any] = {}
    """The family's own configuration."""
    train: dict[str, Any] = {}
    """Changes to the recipe's ``train`` section for this model."""
    sample: dict[str, Any] = {}
    """The family's options of sampling."""
    score: dict[str, Any] = {}
    """The family's options of estimating log p."""


class Recipe(Config):
    """Every setting of a run."""

    about: AboutConfig | None = None
    """Source of the settings, and the published result to compare with. Does not change results."""
    root: str
    """URL of the folder that will contain all results."""
    seed: int = Field(0, ge=0)
    """Addresses every random number of the run."""
    data: DataConfig
    model: dict[ModelName, RecipeModel] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig = StorageConfig()

    def at(self, *parts: str) -> str:
        """URL of a folder or file below the root."""
        return storage.join(self.root, *parts)

    def entry(self, name: str) -> RecipeModel:
        """A model of the recipe by name, with the complete ``net``. ConfigError if it does not exist."""
        if name not in self.model:
            raise ConfigError(f"the recipe has no model {name!r}; {did_you_mean(name, self.model)}")
        entry = self.model[name]
        if entry.distills is None:
            return entry
        net = merge_sections(self.teacher(name).net, entry.net)
        return entry.model_copy(update={"net": net})

    def teacher(self, name: str) -> RecipeModel:
        """The model that a model distills. ConfigError if it does not exist or does not fit."""
        entry = self.model[name]
        assert entry.distills is not None, name
        others = [other for other, model in self.model.items() if model.distills is None]
        if entry.distills not in others:
            hint = did_you_mean(entry.distills, others) if others else "the recipe has none"
            raise ConfigError(
                f"model.{name}.distills is {entry.distills!r}, expected a model that distills no other; "
                f"{hint}"
            )
        teacher = self.model[entry.distills]
        if teacher.family != entry.family:
            raise ConfigError(
                f"model.{name}.family is {entry.family!r}, but it distills {entry.distills} of family "
                f"{teacher.family!r}; set both to the same family"
            )
        return teacher

    def train_config(self, name: str) -> TrainConfig:
        """The ``train`` section with the model's changes."""
        merged = merge_sections(self.train.model_dump(exclude_unset=True), self.entry(name).train)
        return parse(TrainConfig, merged, f"model.{name}.train")

    def sample_options(self, name: str) -> SampleOptions:
        """The model's sampling options, as its family defines them."""
        entry = self.entry(name)
        return parse(family(entry.family).Sample, entry.sample, f"model.{name}.sample")

    def score_options(self, name: str) -> ScoreOptions:
        """The model's scoring options, as its family defines them."""
        entry = self.entry(name)
        return parse(family(entry.family).Score, entry.score, f"model.{name}.score")

    def check(self) -> None:
        """Validate the sections that the families define. Raises ConfigError."""
        for name in self.model:
            entry = self.entry(name)
            parse(family(entry.family).Config, entry.net, f"model.{name}.net")
            self.train_config(name)
            self.sample_options(name)
            self.score_options(name)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML: loading it gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def shipped_recipes() -> list[str]:
    """Sorted names of the recipes that genmod ships."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``--set a.b=c`` in order, and validate it completely.

    Args:
        name_or_file: a shipped recipe's name, or the path of a YAML file.
        assignments: ``path.to.key=value`` each; the value is YAML.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not valid.
    """
    tree = _read(name_or_file)
    for text in assignments:
        _assign(tree, text)
    _refuse_not_finite(tree, "")
    refuse_renamed(tree)
    recipe = parse(Recipe, tree, "")
    recipe = recipe.model_copy(update={"root": storage.resolve(recipe.root)})
    if recipe.root.startswith("memory:"):
        raise ConfigError(
            f"recipe: root is {recipe.root}, which only one process can read; use a folder or object store"
        )
    recipe.check()
    return recipe


def _refuse_twice(node: yaml.Node | None) -> None:
    """Refuse two equal keys in a section: YAML would silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} occurs twice, line {key.start_mark.line + 1}")
            seen.add(str(key.value))
            _refuse_twice(value)


def _read(name_or_file: str) -> dict[str, Any]:
    shipped = RECIPES / f"{name_or_file}.yaml"
    path = shipped if shipped.is_file() and "/" not in name_or_file else Path(name_or_file)
    try:
        text = path.read_text()
        _refuse_twice(yaml.compose(text, yaml.SafeLoader))
        tree = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe {name_or_file!r}: it is neither a file nor a shipped recipe; "
            f"{did_you_mean(name_or_file, shipped_recipes())}"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"the recipe {name_or_file!r} is a folder; give a YAML file") from None
    except OSError as error:
        raise ConfigError(
            f"the recipe {name_or_file!r} cannot be read ({error.strerror})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must be a mapping of sections, got {type(tree).__name__}")
    return cast("dict[str, Any]", tree)


def _assign(tree: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text!r}: expected key=value, e.g. --set train.workers=2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not YAML; quote it") from None
    section: Any = tree
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {text!r}: {key!r} is a value, not a section")
    section[keys[-1]] = parsed


def _refuse_not_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in cast("dict[Any, Any]", value).items():
            _refuse_not_finite(inner, f"{where}.{key}" if where else str(key))
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"recipe: {where} is {value}, expected a finite number")


def merge_sections(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` applied, section by section. Neither is modified.

    >>> merge_sections({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        old = merged.get(key)
        are_sections = isinstance(old, dict) and isinstance(value, Mapping)
        merged[key] = (
            merge_sections(cast("dict[str, Any]", old), value) if are_sections else deepcopy(value)
        )
    return merged
