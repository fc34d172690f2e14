"""The recipe: one YAML file with every setting of a run, validated completely before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

from pydantic import Field

from cluster.session import ClusterConfig
from genmod import storage
from genmod.config import Config, parse
from genmod.data.sources.config import DataConfig
from genmod.errors import ConfigError, did_you_mean
from genmod.evaluation.policy import PromoteConfig
from genmod.generation.config import SampleConfig
from genmod.interface.options import SampleOptions, ScoreOptions
from genmod.interface.registry import families, family
from genmod.metrics.protocol import EvaluateConfig
from genmod.scoring.config import ScoreConfig
from genmod.storage import Name, RootUrl, StorageConfig
from genmod.training.plan import TrainConfig
from pipelines.recipe.about import AboutConfig
from pipelines.recipe.renamed import refuse_renamed
from pipelines.recipe.retraining import RetrainConfig, ScheduleConfig
from pipelines.recipe.scalars import dump_yaml, typed
from pipelines.recipe.tree import read_tree
from pipelines.tracking.place import TrackingConfig


class RecipeModel(Config):
    """One model of a recipe."""

    family: Name
    """Name of a family: a file or folder of ``genmod/models``."""
    distills: Name | None = None
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
    root: RootUrl
    """URL of the folder that will contain all results. A relative path in a recipe's file starts at the
    file's folder, one in ``--set`` or in a shipped recipe at the current folder; so do all other paths."""
    seed: int = Field(0, ge=0)
    """Addresses every random number of the run."""
    data: DataConfig
    model: dict[Name, RecipeModel] = Field(min_length=1)
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    retrain: RetrainConfig = RetrainConfig()
    schedule: ScheduleConfig = ScheduleConfig()
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
        return dump_yaml(self.model_dump(mode="json"))


def load_recipe(name_or_file: str, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``--set a.b=c`` in order, and validate it completely.

    Args:
        name_or_file: a shipped recipe's name, or the path of a YAML file. Paths in the file are relative to
            its folder; those of a shipped recipe to the current folder.
        assignments: ``path.to.key=value`` each; the value is YAML, read by the type of its key. Paths are
            relative to the current folder.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not valid.
    """
    tree = read_tree(name_or_file, assignments)
    refuse_renamed(tree)
    recipe = parse(Recipe, _typed(tree), "")
    recipe = recipe.model_copy(update={"root": storage.resolve(recipe.root)})
    if recipe.root.startswith("memory:"):
        raise ConfigError(
            f"recipe: root is {recipe.root}, which only one process can read; use a folder or object store"
        )
    recipe.check()
    return recipe


def _typed(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values with the types that its sections want; those of a model's depend on its family."""
    models = tree.get("model")
    for name, entry in models.items() if isinstance(models, dict) else ():
        if isinstance(entry, dict) and entry.get("family") in families():
            schema = family(str(entry["family"]))
            sections = {"net": schema.Config, "train": TrainConfig}
            sections |= {"sample": schema.Sample, "score": schema.Score}
            for key in sections.keys() & entry.keys():
                entry[key] = typed(sections[key], entry[key], f"model.{name}.{key}")
    return typed(Recipe, tree)


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
