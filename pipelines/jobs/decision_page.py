"""The page of a decision: gathers candidate, champion and comparison, and writes one HTML file.

The page is next to the decision's manifest, which neither lists it nor covers it by its digest: it also says
what became of the decision, and it can be written again.
"""

from __future__ import annotations

from genmod import storage
from genmod.config import Config
from genmod.evaluation.policy import CALLED_WORSE, PromoteConfig
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest
from genmod.promotion import LedgerModel
from genmod.report.decided import shown_decision
from genmod.report.decision_page import DecisionContent, StatedErrors, render_decision
from genmod.report.model_page import ModelPage
from pipelines.jobs.model_pages import read_model_page

DECISION_PAGE = "decision.html"

_SAME_NOISE = "seed", "labels"
"""Settings of sampling by which two models have the same noise and labels, image by image."""


class DecisionPageJob(Config):
    """The page of a decision on one model."""

    title: str
    root: str
    """URL of the decision."""
    headline: str
    applied: str
    """What became of the decision, in words."""
    policy: PromoteConfig
    candidate: LedgerModel
    champion: LedgerModel | None
    """What the candidate was compared with; ``evaluation`` is the one to show, None if it is not there."""
    comparisons: dict[str, str]
    """Name and URL of the paired comparisons that the decision is by."""
    entry: tuple[str, str, str] | None
    """Name, URL and digest of the ledger's entry that applied the decision."""
    tracking: str
    """Command or URL that shows the tracked runs."""

    @property
    def page_url(self) -> str:
        """URL of the page."""
        return storage.join(self.root, DECISION_PAGE)

    def do(self, snapshot: ManifestSnapshot) -> None:
        """Gather, render, write.

        Raises:
            ConfigError: the candidate or its evaluation is absent.
            DataError: a file is missing or was changed, or has values that the page cannot show.
        """
        page = render_decision(self.content(snapshot))
        storage.write_bytes(self.page_url, page.encode())

    def content(self, snapshot: ManifestSnapshot) -> DecisionContent:
        """The content of the page, gathered from the published manifests and files."""
        decision = snapshot.require(Manifest, self.root, "decision", "promote")
        policy, champion = self.policy, self.champion
        return DecisionContent(
            title=self.title,
            headline=self.headline,
            applied=self.applied,
            decision=shown_decision(decision.metadata, self.root),
            errors=StatedErrors(
                false_promotion=policy.false_promotion,
                familywise_error=policy.familywise_error,
                one_decision=policy.error,
                called_worse=CALLED_WORSE,
                planned=policy.planned_decisions,
            ),
            candidate=_page(snapshot, "Candidate", self.candidate),
            champion=_page(snapshot, "Champion", champion)
            if champion is not None and champion.evaluation is not None
            else None,
            same_noise=self._has_same_noise(snapshot),
            provenance=self._provenance(snapshot, decision),
            tracking=self.tracking,
        )

    def _has_same_noise(self, snapshot: ManifestSnapshot) -> bool:
        """Whether both evaluations are of samples with the same noise."""
        if self.champion is None:
            return False
        first, second = (_sampling(snapshot, model) for model in (self.candidate, self.champion))
        return None not in first[:1] and first == second

    def _provenance(
        self, snapshot: ManifestSnapshot, decision: Manifest
    ) -> list[tuple[str, str, str]]:
        rows = [("decision", self.root, decision.digest)]
        for side, model in (("candidate", self.candidate), ("champion", self.champion)):
            if model is None:
                continue
            rows.append((side, model.root, model.digest))
            if model.evaluation is not None:
                evidence = model.evaluation
                rows.append((f"evaluation of the {side}", evidence.root, evidence.digest))
        for name, root in self.comparisons.items():
            comparison = snapshot.load(Manifest, root, "comparison")
            if comparison is not None:
                rows.append((name, root, comparison.digest))
        return [*rows, *([self.entry] if self.entry else [])]


def _page(snapshot: ManifestSnapshot, side: str, model: LedgerModel) -> ModelPage:
    assert model.evaluation is not None
    name = f"{side}, {model.label}"
    return read_model_page(snapshot, name, model.root, model.evaluation.root)


def _sampling(snapshot: ManifestSnapshot, model: LedgerModel) -> tuple[object, ...]:
    """Seed and labels of a model's samples, as its evaluation names them."""
    evidence = model.evaluation
    found = snapshot.load(Manifest, evidence.root, "evaluation") if evidence else None
    samples = found.metadata.get("samples") if found else None
    return tuple(samples.get(key) for key in _SAME_NOISE) if isinstance(samples, dict) else (None,)
