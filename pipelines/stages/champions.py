"""The champion of one model: the ledger says who it is, and MLflow's aliases follow.

Every command that changes a champion reads both first. Aliases that are behind their ledger, after a crash,
are set; those that were moved by hand stop the command, until they are repaired or adopted.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cluster.compat import JOB_VARIABLE
from genmod.errors import ConfigError, DataError, sanitize
from genmod.manifest import Manifest
from genmod.promotion import (
    Action,
    Aliases,
    AliasState,
    Author,
    Evidence,
    Ledger,
    LedgerChange,
    LedgerModel,
    Promotions,
    compare_aliases,
    mark_of,
)
from pipelines.recipe.context import Context
from pipelines.stages.model_entry import model_entry
from pipelines.stages.moved_root import relocate
from pipelines.tracking import registry
from pipelines.tracking.registry import ModelVersion, RegisteredAliases
from pipelines.tracking.run import TrackedRun
from pipelines.tracking.tracker import TrackingError

T = TypeVar("T")

FOUND = "MLflow's alias named it before the ledger had entries"
"""Reason of the entry that adopts the champion of an older run."""

_FOLLOW_ATTEMPTS = 5
"""How often the aliases are set while other commands extend the ledger."""

DRIFT_REMEDY = (
    "genmod promote --repair sets the aliases to what the ledger says, and --adopt --reason TEXT makes "
    "MLflow's champion that of the ledger"
)


class Champions:
    """The ledger of one of the recipe's models, and the aliases that mirror it.

    Args:
        context: the command.
        name: of the model in the recipe.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.context = context
        self.name = name
        self.ledger = Ledger(context.ledger_url, name, context.create)
        self._is_down = False
        self._is_moved = False

    def read(self) -> Promotions:
        """The history, after the aliases were compared with it, and set if they were behind.

        A champion of MLflow without a ledger, of an older run, becomes the first entry.

        Raises:
            ConfigError: the aliases were moved by hand.
            DataError: the ledger is broken.
        """
        promotions = self._history()
        aliases = self.aliases()
        if aliases is None:
            return promotions
        if is_first(promotions, aliases):
            assert aliases.champion is not None
            promotions = self._adopt_first(promotions, aliases.champion)
        state = compare_aliases(promotions, alias_digests(aliases))
        self._refuse_drift(state)
        if state.kind == "behind":
            self.context.progress.log(f"  {self.name}: MLflow: {state.text}; they are set now")
            self.follow()
        return promotions

    def peek(self) -> Promotions:
        """As :meth:`read`, but nothing is written or set."""
        promotions = self._history()
        aliases = self.aliases() if self.context.tracker.place.exists else None
        if aliases is not None and not is_first(promotions, aliases):
            self._refuse_drift(compare_aliases(promotions, alias_digests(aliases)))
        return promotions

    def _history(self) -> Promotions:
        """The ledger's history; models of a root that was moved are where they are now."""
        context = self.context
        roots = context.tracker.config.roots
        promotions, old = relocate(self.ledger.read(), context.command_root, roots)
        if old and not self._is_moved:
            self._is_moved = True
            context.progress.log(
                f"  {self.name}: the root was at {old}; its models are read below {context.command_root}"
            )
        return promotions

    def aliases(self) -> RegisteredAliases | None:
        """The aliases in MLflow; None if tracking is off or MLflow does not respond, which is logged once."""
        return self.ask(lambda: registry.aliases(self.context.tracker, self.name))

    def write(
        self,
        promotions: Promotions,
        action: Action,
        model: LedgerModel,
        reason: str,
        decision: Evidence | None = None,
    ) -> Promotions | None:
        """Add an entry to the ledger; None if another command has added one first. MLflow stays as it is."""
        change = LedgerChange(action, model, reason, author(), decision)
        return self.ledger.append(promotions, change)

    def follow(self) -> None:
        """Set the aliases to what the ledger says now, whatever they say. Logs it if MLflow does not respond.

        Other commands may do the same for newer entries, so the ledger and the aliases are read again.
        """
        for _ in range(_FOLLOW_ATTEMPTS):
            promotions = self._history()
            champion = promotions.champion
            if champion is None or self.ask(lambda p=promotions: self._set(p)) is None:
                return
            aliases = self.aliases()
            if aliases is None:
                return
            newest = self.ledger.read()
            if compare_aliases(newest, alias_digests(aliases)).kind == "equal":
                return
        self.context.progress.log(
            f"  {self.name}: other commands change the aliases of MLflow; the next command compares them"
        )

    def ask(self, request: Callable[[], T]) -> T | None:
        """A request to MLflow; None if tracking is off, or MLflow does not respond, which is logged once."""
        if self._is_down or not self.context.tracker.config.enabled:
            return None
        try:
            return request()
        except TrackingError as error:
            self._is_down = True
            self.context.progress.log(
                f"  {self.name}: {error}; the ledger does without, and the next command sets the aliases"
            )
            return None

    def register(self, run: TrackedRun, digest: str, root: str) -> ModelVersion | None:
        """The registered version of a model, created if it does not exist; None as :meth:`ask`."""
        entry = model_entry(self.context.recipe, self.name, digest, root)
        return self.ask(lambda: registry.register(self.context.tracker, run, entry))

    def allowed(self, url: str, what: str) -> str:
        """A URL that the ledger names, if it is where the recipe allows it. ConfigError if not."""
        source = f"the promotion ledger at {self.ledger.root}"
        return self.context.tracker.followed(url, f"{what} of {self.name}", source)

    def ledger_model(self, version: ModelVersion) -> LedgerModel:
        """A registered version as an entry of the ledger names it, with the evaluation that its tag names.

        Raises:
            ConfigError: genmod did not register it, or its folder is not where the recipe allows it.
            DataError: the evaluation is of another model.
        """
        tracker = self.context.tracker
        if not version.digest or not version.root:
            raise ConfigError(
                f"version {version.version} of {version.name} was not registered by genmod, so it cannot be "
                f"the champion; remove its alias {registry.CHAMPION_ALIAS!r} in MLflow, then promote again"
            )
        evaluation = None
        if version.evaluation:
            root = registry.evaluation_root(tracker, version)
            manifest = self.context.snapshot.load(Manifest, root, "evaluation")
            if manifest is not None:
                found = str(manifest.metadata.get("model_digest"))
                _check_evaluated(version, root, found)
                evaluation = Evidence(root=root, digest=manifest.digest)
        return LedgerModel(
            digest=version.digest,
            root=registry.model_root(tracker, version),
            evaluation=evaluation,
            registered=version.name,
            version=int(version.version),
        )

    def _refuse_drift(self, state: AliasState) -> None:
        """Raise ConfigError if aliases were moved by hand."""
        if state.kind == "drift":
            raise ConfigError(
                f"{self.name}: MLflow and the promotion ledger at {self.ledger.root} differ: {state.text}; "
                f"{DRIFT_REMEDY}"
            )

    def _adopt_first(self, promotions: Promotions, champion: ModelVersion) -> Promotions:
        """The history that starts with the champion of an older run."""
        model = self.ledger_model(champion)
        adopted = self.write(promotions, "adopt", model, FOUND)
        self.context.progress.log(
            f"  {self.name}: {model.label}, the champion in MLflow, is the first entry of the ledger"
        )
        return adopted or self.ledger.read()

    def _set(self, promotions: Promotions) -> bool:
        """Set aliases and mark, and register what is not registered yet."""
        champion, previous = promotions.champion, promotions.previous
        assert champion is not None
        versions = [
            self._version(model) if model is not None else None for model in (champion, previous)
        ]
        assert versions[0] is not None
        mark = mark_of(promotions, self.ledger.root)
        registry.set_aliases(self.context.tracker, versions[0], versions[1], mark)
        return True

    def _version(self, model: LedgerModel) -> ModelVersion:
        """The registered version of a model of the ledger; registers it if a command could not."""
        tracker = self.context.tracker
        version = registry.version_of(tracker, self.name, model.digest)
        if version is not None:
            return version
        root = self.allowed(model.root, f"the model of {model.label}")
        inputs = {"model": (root, model.digest)}
        run = tracker.run("register", self.name, model.digest, {}, inputs)
        entry = model_entry(self.context.recipe, self.name, model.digest, root)
        version = registry.register(tracker, run, entry)
        run.finish()
        if model.evaluation is not None:
            version = registry.tag_evaluation(tracker, version, model.evaluation.root)
        return version


def _check_evaluated(version: ModelVersion, root: str, digest: str) -> None:
    """Raise DataError if an evaluation that MLflow names is of another model."""
    if digest != version.digest:
        raise DataError(
            f"{root} is of the model {sanitize(digest[:12])}, but {version.name} version {version.version} "
            f"in MLflow is {version.digest[:12]}; correct the version's tags, or remove its alias "
            f"{registry.CHAMPION_ALIAS!r} and promote again"
        )


def is_first(promotions: Promotions, aliases: RegisteredAliases) -> bool:
    """Whether MLflow's champion is of an older run, which had no ledger."""
    return not promotions.entries and aliases.champion is not None and not aliases.mark


def author() -> Author:
    """Who runs this process: user, host, and the Ray job if it is one."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = f"uid {os.getuid()}"
    host = sanitize(f"{user}@{socket.gethostname()}")[:256]
    return Author(user=host, job=_job()[:256])


def _job() -> str:
    """The id of the Ray job that this process is the command of; empty if it is none."""
    try:
        config: Any = json.loads(os.environ.get(JOB_VARIABLE, "") or "{}")
    except ValueError:
        return ""
    metadata: Any = (
        cast("dict[str, Any]", config).get("metadata") if isinstance(config, dict) else None
    )
    found = (
        cast("dict[str, Any]", metadata).get("job_submission_id")
        if isinstance(metadata, dict)
        else None
    )
    return sanitize(found) if isinstance(found, str) else ""


def alias_digests(aliases: RegisteredAliases) -> Aliases:
    """What the ledger is compared with: the digests of the versions that the aliases name."""
    champion, previous = (
        None if version is None else version.digest
        for version in (aliases.champion, aliases.previous)
    )
    return Aliases(champion, previous, aliases.mark)
