"""The sampling job: synthetic datasets from trained models, in bulk, with Ray Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from genmod.config import parse
from genmod.data.format.encodings import ImageEncoder
from genmod.data.format.shards import Row
from genmod.errors import ConfigError
from genmod.generation.config import SampleConfig
from genmod.generation.filters import Filters
from genmod.generation.lanes import LaneRange, SampleUnit
from genmod.generation.synthetic import SampledBy, SampleGenerator
from genmod.generation.trim import trim_unit
from genmod.generation.unit import SampleReceipt, write_sample_unit
from genmod.interface.model_store import load_model
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest
from genmod.receipts import together
from genmod.stopwatch import START, measured
from pipelines.jobs.bulk import DEFAULT, BulkJob, BulkOptions, WorkUnitActor
from pipelines.jobs.execution import run_jobs
from pipelines.jobs.sample_assembly import SampleAssembly
from pipelines.jobs.sample_filters import load_filters
from pipelines.jobs.sample_plan import SampleJob, SamplePlan, plan_sample


class SampleActor(WorkUnitActor):
    """Writes tars of synthetic images."""

    receipt = SampleReceipt
    section = "sample"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._filters: dict[str, Filters | None] = {}
        self._resources = ExitStack()

    def work_fingerprint(self, plan: SamplePlan) -> str:
        """Fingerprint of the stream, whose datasets share receipts."""
        return plan.stream

    def write_unit(self, plan: SamplePlan, name: str, parameters: dict[str, Any]) -> SampleReceipt:
        """Write one tar with its index: new images, or the accepted ones of another tar."""
        unit = SampleUnit(
            plan.request.lanes, tuple(LaneRange(*part) for part in parameters["parts"])
        )
        numerics = self.numerics(plan, plan.shared_numerics)
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        generator = plan.generator(model)
        if "kept" in parameters:
            source = SampleReceipt.model_validate(parameters["receipt"])
            return trim_unit(
                plan.out_root,
                unit,
                source,
                parameters["kept"],
                generator=generator,
                model_digest=plan.model_digest,
                stored_as=plan.stored_as,
            )
        if plan.stream not in self._filters:
            with measured(START):
                self._filters[plan.stream] = load_filters(plan, model, self._resources)
        return write_sample_unit(
            plan.out_root,
            unit,
            generator,
            self._filters[plan.stream],
            model_digest=plan.model_digest,
            stream=plan.stream,
            numerics=numerics,
            stored_as=plan.stored_as,
        )


def bulk_sample_job(
    plan: SamplePlan, snapshot: ManifestSnapshot
) -> BulkJob[DatasetManifest, SampleReceipt]:
    """The job of a plan, with one tar for each work unit."""
    assembly = None if plan.done else SampleAssembly(plan, snapshot)

    @together(plan.out_root)
    def finish(
        receipts: Mapping[str, SampleReceipt], first: DatasetManifest | None
    ) -> DatasetManifest:
        assert assembly is not None
        return assembly.finish(receipts)

    return BulkJob(
        name=plan.name,
        title=f"sample {plan.name}",
        out_root=plan.out_root,
        kind="dataset",
        fingerprint=plan.fingerprint,
        manifest=DatasetManifest,
        receipt=SampleReceipt,
        units=[] if assembly is None else assembly.first_units(),
        plan=plan,
        inputs={"model": (plan.model_root, plan.model_digest)},
        finish=finish,
        division=assembly,
        work=plan.stream,
        section="sample",
        max_quarantined=plan.config.max_quarantined,
        missing=lambda manifest: manifest.quarantined,
        missing_text="images could not be generated",
    )


def sample_models(
    jobs: Sequence[SampleJob], config: SampleConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> list[DatasetManifest]:
    """Sample several models in one Ray Data execution, whose start-up is then paid once.

    Finished jobs are skipped; interrupted jobs resume.

    Raises:
        ConfigError: a model does not support its options, or a folder contains other work.
        GenmodError: work units failed; all others are done and stay done.
    """
    plans = [plan_sample(job, config, seed=seed, snapshot=options.snapshot) for job in jobs]
    bulk_jobs = [bulk_sample_job(plan, options.snapshot) for plan in plans]
    return run_jobs(bulk_jobs, SampleActor, config, options)


def sample(
    job: SampleJob, config: SampleConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> DatasetManifest:
    """Sample one model: :func:`sample_models` of a list of one."""
    return sample_models([job], config, seed=seed, options=options)[0]


def regenerate(dataset_root: str, model_root: str, index: int) -> Row:
    """Generate one image of a synthetic dataset again: the same bytes, pixels, label and sidecar.

    Args:
        dataset_root: URL of the synthetic dataset.
        model_root: URL of the model that generated it.
        index: of the image, at least 0. Beyond the dataset's size: the image that a larger one would have.

    Raises:
        ConfigError: the dataset is not synthetic, or another model generated it.
        GenmodError: the image is not finite.
    """
    snapshot = ManifestSnapshot()
    dataset = snapshot.dataset(dataset_root, "sample")
    made_by = SampledBy.of(dataset, dataset_root)
    if not 0 <= index < 1 << 60:
        raise ConfigError(f"got index {index}, expected 0 or more")
    digest = snapshot.model(model_root).manifest.digest
    parent = dataset.parents.get("model", "none")
    if digest != parent:
        raise ConfigError(
            f"{model_root} contains model {digest[:12]}, but {dataset_root} was made by model "
            f"{parent[:12]}; give that model"
        )
    model = load_model(model_root, made_by.weights).eval()
    options = parse(type(model).Sample, made_by.options, "options")
    generator = SampleGenerator(
        model,
        options,
        made_by.labels(model.spec.classes),
        made_by.seed,
        made_by.micro_batch,
        is_filtered=made_by.filters is not None,
    )
    row = generator.row(index, generator.image(index), digest)
    encoder = ImageEncoder(model.spec, made_by.encoding)
    encoded, pixels_HWC = encoder.stored(row.image_HWC)
    return replace(row, image_HWC=pixels_HWC, encoded=encoded)
