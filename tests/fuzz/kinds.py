"""The kinds of document: which files are mutated, and every reader of the product that sees them."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.fuzz.corpus import Corpus
from tests.fuzz.mutate import HOSTILE, at, paths_of
from tests.fuzz.sources import SOURCES

Calls = Iterator[tuple[str, Callable[[], object]]]
"""Name of a reader and the call."""


@dataclass(frozen=True)
class Kind:
    """One kind of document."""

    name: str
    weight: int
    """Documents of this kind in a round of all kinds."""
    targets: tuple[str, ...]
    """Patterns of the files that are mutated."""
    calls: Callable[[Corpus, random.Random], Calls]
    changes: tuple[str, ...] = ()
    """Folders and files that the calls may change."""


def _command(*words: str) -> None:
    """Run a command as a person does: an exit code, printable lines, no unforeseen error."""
    from pipelines.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    lines = (out.getvalue() + err.getvalue()).splitlines()
    unforeseen = [line for line in lines if "--debug prints the traceback" in line]
    if code not in (0, 1, 2) or unforeseen:
        raise RuntimeError(f"exit code {code}: {unforeseen[:1]}")
    if bad := [line for line in lines if not line.isprintable()]:
        raise RuntimeError(f"not printable: {bad[0]!r}")


def _dataset_calls(corpus: Corpus, root: str) -> Calls:
    from genmod.data.format.verify_dataset import dataset_problems
    from genmod.data.reading.reader import iter_split, open_dataset, split_reader
    from genmod.data.sharding.previous_version import load_previous_version
    from genmod.evaluation.images import read_shuffled
    from genmod.manifest import SPLITS, DatasetManifest, load_manifest
    from genmod.scoring.config import ScoreConfig
    from genmod.scoring.work_units import shard_slices
    from pipelines.commands.inspect import inspect
    from pipelines.commands.verify import verify

    def opened() -> DatasetManifest:
        return open_dataset(root)

    def read() -> None:
        manifest = opened()
        for split in SPLITS:
            reader = split_reader(root, manifest, split)
            rows = np.arange(min(len(reader), 24), dtype=np.int64)
            reader.find(rows)
            reader.read(rows)
            reader.keys()
            reader.close()

    def stream() -> None:
        with iter_split(root, opened(), "val", 4) as batches:
            for _ in zip(batches, range(3), strict=False):
                pass

    def shards() -> None:
        for _ in dataset_problems(root, opened()):
            pass

    def previous() -> None:
        version = load_previous_version(root, opened())
        for _ in version.keys():  # noqa: SIM118
            pass
        _ = version.version, version.shared(f"{root}-next"), version.digests
        for split in SPLITS:
            version.row_stats(split)
        version.match_classes(["a", "b"], 2)

    def slices() -> None:
        for part, _ in zip(
            shard_slices(root, opened(), ScoreConfig(max_rows=5), 0), range(50), strict=False
        ):
            part.rows()

    yield "load", lambda: load_manifest(DatasetManifest, root, "dataset")
    yield "read", read
    yield "stream", stream
    yield "shards", shards
    yield "verify", lambda: verify(root)
    sheet = str(corpus.folder / "out" / "sheet.png")
    yield "inspect", lambda: inspect(root, sheet)
    yield "previous", previous
    yield "slices", slices
    yield "shuffled", lambda: read_shuffled(root, opened(), "val", 8)


def _dataset(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.data.order.training_order import MixturePart, OrderConfig
    from genmod.data.reading.reader import open_dataset
    from genmod.training.job import open_stream, plan_job
    from genmod.world import SingleProcess

    root = str(corpus.folder / "data")
    yield from _dataset_calls(corpus, root)
    if rng.random() < 0.2:
        sheet = str(corpus.folder / "out" / "sheet.png")
        yield "genmod verify", lambda: _command("verify", root)
        yield "genmod inspect", lambda: _command("inspect", root, "--out", sheet, "--json")
    job: Any = corpus.plans["train"]

    def training(balance: str) -> None:
        data = open_dataset(root)
        order = OrderConfig(balance=balance)
        train = job.train.model_copy(update={"order": order})
        planned = plan_job(
            job.model_copy(update={"train": train, "data_digest": data.digest}), data
        )
        stream = open_stream(planned, [MixturePart(root, data)], SingleProcess(), 8)
        next(stream)
        stream.close()

    yield "train", lambda: training("none")
    yield "balanced", lambda: training("classes")


def _version(corpus: Corpus, rng: random.Random) -> Calls:
    yield from _dataset_calls(corpus, str(corpus.folder / "data-v2"))


def _samples(corpus: Corpus, rng: random.Random) -> Calls:
    from pipelines.jobs.sampling import regenerate

    root = str(corpus.folder / "samples" / "m")
    yield from list(_dataset_calls(corpus, root))[1:5]
    yield "regenerate", lambda: regenerate(root, str(corpus.folder / "models" / "m"), 3)
    yield "evaluation", corpus.plans["evaluation"].done


def _model(corpus: Corpus, rng: random.Random) -> Calls:
    from dataclasses import replace

    from genmod.interface.model_store import load_model
    from genmod.interface.snapshot import ManifestSnapshot
    from pipelines.commands.verify import verify
    from pipelines.jobs.sample_plan import SampleJob, plan_sample
    from pipelines.jobs.scoring import ScoreJob, plan_score

    root = str(corpus.folder / "models" / "m")
    sample: Any = corpus.plans["sample"]
    score: Any = corpus.plans["score"]
    job = SampleJob(name="m", model_root=root, out_root=sample.out_root, options={})
    scores = ScoreJob(
        name="m", model_root=root, data_root=score.data_root, out_root=score.out_root, options={}
    )
    yield "open", lambda: ManifestSnapshot().model(root)
    yield "ema", lambda: load_model(root)
    yield "raw", lambda: load_model(root, "raw")
    yield "verify", lambda: verify(root)
    if rng.random() < 0.2:
        yield "genmod verify", lambda: _command("verify", str(corpus.folder))
    yield "plan_sample", lambda: plan_sample(job, sample.config, seed=0)
    yield "plan_score", lambda: plan_score(replace(scores), score.config, seed=0)
    if rng.random() < 0.3:
        yield "sample", lambda: sample.generator(load_model(root)).image(0)


def _checkpoint(corpus: Corpus, rng: random.Random) -> Calls:
    import copy

    from genmod.training.checkpoint import Checkpoints

    job: Any = corpus.plans["train"]
    root = str(corpus.folder / "models" / "half")
    checkpoints = Checkpoints(root, job.fingerprint, job.model, keep=3)
    yield "kept", checkpoints.kept
    yield "newest", lambda: checkpoints.newest(copy.deepcopy(corpus.plans["state"]))


def _metrics(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.training.metric_log import MetricFollower, read_metrics

    root = str(corpus.folder / "models" / "half")
    follower = MetricFollower(root)
    yield "follow", follower.read
    yield "again", follower.read
    yield "all", lambda: read_metrics(root)


def _receipts(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.data.format.shards import ShardReceipt
    from genmod.generation.unit import SampleReceipt
    from genmod.interface.snapshot import ManifestSnapshot
    from genmod.manifest import DatasetManifest, Manifest, claim, find_done
    from genmod.receipts import load_receipts
    from genmod.scoring.receipt import ScoreReceipt
    from pipelines.jobs.sampling import bulk_sample_job
    from pipelines.jobs.scoring import bulk_score_job

    sample: Any = corpus.plans["sample"]
    score: Any = corpus.plans["score"]

    def finish(job: Any, schema: Any) -> None:
        names = [unit.name for unit in job.units]
        found = load_receipts(schema, job.out_root, names, job.work_fingerprint)
        if len(found) == len(names):
            first = None
            if job.first is not None:
                first = ManifestSnapshot().load(Manifest, job.first.out_root, "scores")
            job.finish(found, first)

    def shard_receipts() -> None:
        root = str(corpus.folder / "receipt")
        load_receipts(ShardReceipt, root, ["train-000000"], "f")

    def claims(plan: Any) -> None:
        work = getattr(plan, "stream", plan.fingerprint)
        find_done(DatasetManifest, plan.out_root, "features", work)
        claim(plan.out_root, work)

    yield "shards", shard_receipts
    yield "sampled", lambda: finish(bulk_sample_job(sample, ManifestSnapshot()), SampleReceipt)
    yield "scored", lambda: finish(bulk_score_job(score, ManifestSnapshot()), ScoreReceipt)
    yield "claim", lambda: claims(sample)
    yield "own claim", lambda: claims(score)


def _scores(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.evaluation.likelihood import histogram
    from genmod.evaluation.ood import ood_auroc, require_comparable_scores
    from genmod.interface.snapshot import ManifestSnapshot
    from genmod.lineage.rows import RowQuery
    from genmod.manifest import Manifest
    from genmod.scoring.calibrated import add_ood_scores, calibration_metadata, read_scores
    from genmod.selection.expression import parse_condition
    from genmod.selection.job import count_rows
    from genmod.selection.rows import RowSelection
    from genmod.selection.split_scores import SplitScores
    from pipelines.commands.lineage import lineage_of
    from pipelines.commands.verify import verify

    score: Any = corpus.plans["score"]
    root = score.out_root
    inner = score.calibration.out_root

    def manifest(where: str) -> Manifest:
        return ManifestSnapshot().require(Manifest, where, "scores", "score")

    def calibrate() -> None:
        known = read_scores(inner, manifest(inner))
        calibration_metadata(known, score.spec)
        add_ood_scores(read_scores(root, manifest(root)), known, score.spec, own=True)

    def out_of_distribution() -> None:
        found = manifest(root)
        require_comparable_scores(found, found, (root, root))
        ood_auroc((root, root), found, found)

    def selection() -> None:
        condition = parse_condition("p_corrected > 0.2 and nats < 0 or label = 1")
        data = ManifestSnapshot().dataset(score.data_root)
        found = SplitScores(root, manifest(root))
        selected = RowSelection(score.data_root, data, (found,), condition, "keep")
        selected.check()
        count_rows(selected, f"{root}-selected")

    yield "selection", selection
    yield "lineage", lambda: lineage_of(root)
    yield "lineage of a row", lambda: lineage_of(score.data_root, RowQuery(index=0, split="val"))
    yield "histogram", lambda: histogram(read_scores(root, manifest(root)).nats_B)
    yield "calibrate", calibrate
    yield "ood", out_of_distribution
    yield "verify", lambda: verify(root)
    yield "evaluation", corpus.plans["evaluation"].done


def _features(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.metrics.features import load_extractor
    from pipelines.commands.verify import verify

    root = str(corpus.folder / "features")
    yield "load", lambda: load_extractor(root)
    yield "verify", lambda: verify(root)
    yield "done", corpus.plans["features"].done
    yield "evaluation", corpus.plans["evaluation"].done


def _evaluation(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.evaluation.gate import decide
    from genmod.evaluation.measure import metrics_from
    from genmod.evaluation.policy import PromoteConfig
    from genmod.interface.snapshot import ManifestSnapshot
    from genmod.manifest import Manifest
    from pipelines.commands.verify import verify
    from pipelines.jobs.report import ReportJob

    folder = corpus.folder
    root = str(folder / "evaluation" / "m")
    report = ReportJob(
        title="t",
        root=str(folder),
        models=("m",),
        out_root=str(folder / "out" / "report"),
        tracking="x",
    )

    def promote() -> None:
        found = ManifestSnapshot().require(Manifest, root, "evaluation", "evaluate")
        metrics = metrics_from(found.metadata)
        decide(metrics, None, PromoteConfig())
        decide(metrics, metrics, PromoteConfig())

    yield "promote", promote
    yield "report", report.do
    yield "verify", lambda: verify(root)


def _ledger(corpus: Corpus, rng: random.Random) -> Calls:
    from genmod.promotion import (
        Aliases,
        Author,
        Ledger,
        LedgerChange,
        compare_aliases,
        ledger_problems,
        mark_of,
    )
    from pipelines.commands.verify import verify

    ledger = Ledger(str(corpus.folder / "promotions"), "m")

    def extend() -> None:
        history = ledger.read()
        aliases = Aliases("0" * 64, None, mark_of(history, ledger.root))
        compare_aliases(history, aliases)
        other = Ledger(str(corpus.folder / "out" / f"{rng.getrandbits(64)}"), "m")
        champion = history.champion
        if champion is not None:
            first = other.append(other.read(), LedgerChange("pin", champion, "x", Author(user="x")))
            if first is None or first.champion != champion:
                raise RuntimeError("an entry was not written as it is")

    yield "extend", extend
    yield "problems", lambda: ledger_problems(ledger.root)
    yield "verify", lambda: verify(str(corpus.folder / "promotions"))
    if rng.random() < 0.2:
        recipe = str(corpus.folder / "ledger.yaml")
        yield "genmod models", lambda: _command("models", "--recipe", recipe, "--json")
        yield "genmod why", lambda: _command("why", "1", "--recipe", recipe)


def _recipe(corpus: Corpus, rng: random.Random) -> Calls:
    from pipelines.recipe.recipe import load_recipe

    for name in ("quickstart", "familiarity"):
        path = str(corpus.folder / f"{name}.yaml")
        yield name, lambda path=path: load_recipe(path).to_yaml()


def _assignments(corpus: Corpus, rng: random.Random) -> Calls:
    from pipelines.recipe.recipe import load_recipe

    path = corpus.folder / "quickstart.yaml"
    tree = yaml.safe_load(corpus.files["quickstart.yaml"])
    for number in range(3):
        place = rng.choice([p for p in paths_of(tree) if not any(isinstance(k, int) for k in p)])
        key = ".".join(map(str, place))
        value = rng.choice((*HOSTILE, at(tree, rng.choice(paths_of(tree)))))
        text = rng.choice((yaml.safe_dump(value), str(value), repr(value), rng.choice(YAML_VALUES)))
        key = rng.choice(
            (key, key, key, key + ".x", "x." + key, key.replace(".", ".."), "", "storage.cache")
        )
        yield f"set {number}", lambda text=f"{key}={text}": load_recipe(str(path), [text])


YAML_VALUES = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2020-01-01",
    "2020-01-01",
    "190:20:30",
    "0x7fffffffffffffffffff",
    "1_000",
    ".nan",
    "-.inf",
    "&a [*a]",
    "{? [a, b] : c}",
    "{? {a: b} : c}",
    "{null: 1, 2: 3, true: 4}",
    "<<: {a: 1}",
    "[" * 3000,
    "[" * 300 + "]" * 300,
    "a: [b",
    "--- a\n--- b",
    "%YAML 9.9\n---\na",
    "\t",
    "*unknown",
    "'\\x00'",
    "1e400",
    "9" * 5000,
)
"""Values that YAML allows and recipes do not need."""


def _notes(corpus: Corpus, rng: random.Random) -> Calls:
    from cluster.worker_errors import read_error
    from genmod.errors import GenmodError

    def read() -> None:
        error = read_error(str(corpus.folder / "notes"))
        if error is not None and not isinstance(error, GenmodError):
            raise TypeError(f"a note became {type(error).__name__}")

    yield "read", read


def _heartbeats(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.heartbeats import check_heartbeats

    yield "check", lambda: check_heartbeats(corpus.folder / "heartbeats", corpus.folder / "out")


def _lease(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.leases import say_who_works, take_lease

    yield "who", lambda: say_who_works(corpus.folder / "leased")
    yield "take", lambda: take_lease(corpus.folder / "leased")


def _ticks(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.leases import run_ticks

    yield "run", lambda: run_ticks(corpus.folder / "scheduled")


def _replaced(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.gates import read_version

    yield "lists", lambda: read_version(corpus.folder)
    if rng.random() < 0.2:
        recipe = str(corpus.folder / "ledger.yaml")
        yield "genmod models", lambda: _command("models", "--recipe", recipe, "--json")
        yield "genmod why", lambda: _command("why", "1", "--recipe", recipe)


def _start(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.gates import read_start

    yield "read", lambda: read_start(corpus.folder)


def _drift(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.gates import read_drift

    yield "read", lambda: read_drift(corpus.folder)


def _net(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.gates import read_net

    yield "features", lambda: read_net(corpus.folder, corpus.folder / "out")


def _spool(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.gates import replay_spool

    yield "replay", lambda: replay_spool(corpus.folder)


def _formats(corpus: Corpus, rng: random.Random) -> Calls:
    from tests.fuzz.formats import SPECS, read_format

    for name in SPECS:
        yield name, lambda name=name: read_format(corpus.folder / "formats", name)


def _source(kind: str) -> Callable[[Corpus, random.Random], Calls]:
    def calls(corpus: Corpus, rng: random.Random) -> Calls:
        from genmod.data.sharding.ingest import make_shard
        from genmod.data.sharding.plan import make_plan
        from genmod.data.sources.config import DataConfig

        def shard() -> None:
            source = SOURCES[kind].format(corpus.folder / "sources")
            config = DataConfig(source=source, max_quarantined=1.0)
            plan = make_plan(config, 0)
            plan.summary()
            for shard in plan.shards[:2]:
                make_shard(plan.job(shard, str(corpus.folder / "out" / "sharded")))

        yield "shard", shard

    return calls


KINDS = (
    Kind("manifest", 8, ("data/dataset.json",), _dataset, ("out",)),
    Kind("index", 8, ("data/*.idx.parquet",), _dataset, ("out",)),
    Kind("quarantine", 2, ("data/quarantine.parquet",), _dataset, ("out",)),
    Kind("tar", 2, ("data/*.tar",), _dataset, ("out",)),
    Kind("version", 4, ("data-v2/dataset.json", "data/dataset.json"), _version, ("out",)),
    Kind("samples", 3, ("samples/m/dataset.json", "samples/m/*.parquet"), _samples, ("out",)),
    Kind("config", 5, ("models/m/config.json",), _model),
    Kind("model", 4, ("models/m/model.json",), _model),
    Kind("weights", 5, ("models/m/*.safetensors",), _model),
    Kind(
        "checkpoint",
        8,
        (
            "models/half/checkpoints/*.json",
            "models/half/checkpoints/*/state.json",
            "models/half/checkpoints/*/*.safetensors",
        ),
        _checkpoint,
        ("models/half/checkpoints",),
    ),
    Kind("metrics", 8, ("models/half/metrics/*/*.jsonl",), _metrics),
    Kind(
        "receipts",
        8,
        ("*/m/receipts/*.json", "receipt/receipts/*.json", "*/m/claim.json"),
        _receipts,
        (
            "samples/m/claim.json",
            "samples/m/shards-",
            "samples/m/quarantine.parquet",
            "scores/m/claim.json",
        ),
    ),
    Kind("scores", 5, ("scores/m/scores.json", "scores/m/calibration/*/scores.json"), _scores),
    Kind("table", 8, ("scores/m/*.parquet", "scores/m/calibration/*/*.parquet"), _scores),
    Kind("features", 5, ("features/*.json", "features/*.safetensors"), _features),
    Kind(
        "evaluation",
        5,
        ("evaluation/m/evaluation.json", "models/m/history.json", "evaluation/m/*.png"),
        _evaluation,
        ("out",),
    ),
    Kind("ledger", 6, ("promotions/m/*.json",), _ledger, ("out",)),
    Kind("recipe", 6, ("quickstart.yaml", "familiarity.yaml"), _recipe),
    Kind("set", 3, (), _assignments),
    Kind("notes", 6, ("notes/*.json",), _notes),
    Kind("heartbeats", 6, ("heartbeats/*/*.json",), _heartbeats, ("out",)),
    Kind("lease", 3, ("leased/leases/*/*/*.json",), _lease, ("leased",)),
    Kind(
        "ticks",
        4,
        ("scheduled/schedule/*/*.json", "scheduled/schedule/*/*/*.json"),
        _ticks,
        ("scheduled",),
    ),
    Kind("replaced", 3, ("retrain/*/replaced.json",), _replaced),
    Kind("start", 2, ("retrain/*/start/*.json",), _start),
    Kind("drift", 2, ("drift/*/*/drift.json",), _drift),
    Kind("net", 3, ("nets/*.onnx",), _net, ("out",)),
    Kind("spool", 4, ("spool/*.jsonl",), _spool, ("spool",)),
    Kind("formats", 6, ("formats/*",), _formats),
    Kind("npz", 2, ("sources/arrays.npz",), _source("npz"), ("out",)),
    Kind("idx", 2, ("sources/idx/*",), _source("idx"), ("out",)),
    Kind("parquet", 2, ("sources/rows.parquet",), _source("parquet"), ("out",)),
    Kind("webdataset", 2, ("sources/*.tar",), _source("webdataset"), ("out",)),
    Kind("images", 2, ("sources/small/x/*",), _source("folder"), ("out",)),
)
"""All kinds. A round gives each its weight in documents."""


def files_of(kind: Kind, corpus: Corpus) -> list[str]:
    """The files that a kind mutates, sorted."""
    paths = [Path(path) for path in corpus.files]
    return sorted({str(p) for p in paths for pattern in kind.targets if p.match(pattern)})
