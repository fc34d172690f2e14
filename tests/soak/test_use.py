"""One person's whole use of synthetic datasets, on real digits, while workers are killed."""

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from genmod.data.reading.reader import RowReader, split_reader
from genmod.evaluation.images import read_first
from genmod.manifest import DatasetManifest, Manifest, load_manifest
from genmod.metrics.features import FeaturesConfig, fit_extractor
from pipelines.cli.program import main
from pipelines.commands.verify import verify
from tests.soak.soak import WORKERS

RECIPE = """
root: {root}
seed: 4
data: {{source: "builtin:digits", shard_rows: 200, splits: {{val: 0.15, test: 0.25}}}}
model:
  vae:
    family: vae
    net: {{latents: 8, hidden: [128], beta: 2}}
    train: {{nimg: 60000, batch: 64, ema_halflife_nimg: 4000}}
    score: {{k: 16}}
train: {{workers: 1}}
sample:
  shard_rows: 400
  micro_batch: 100
  output: bulk
  filters: {{min_contrast: 20.0, classifier: true, earlier_copies: true}}
score: {{output: bulk-scores, rows_per_task: 4000, calibration: null}}
evaluate: {{features: {{train_images: 20000}}}}
"""
KILLS = 4


class Killer(threading.Thread):
    """Kills workers of this process's Ray, each after some more receipts are there."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.killed = out, 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.05) and self.killed < KILLS:
            if len(list(self.out.glob("receipts/*.json"))) < 3 * (self.killed + 1):
                continue
            for process in psutil.Process().children(recursive=True):
                try:
                    if WORKERS.match(process.cmdline()[0]):
                        os.kill(process.pid, signal.SIGKILL)
                        self.killed += 1
                        break
                except (psutil.Error, ProcessLookupError, IndexError):
                    continue
            time.sleep(0.5)


def command(capsys, *words):
    """Run a command; its JSON result."""
    code = main([*words, "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    return json.loads(out.splitlines()[-1])


def images_of(root):
    """{index: (label, pixels)} of a synthetic dataset."""
    manifest = load_manifest(DatasetManifest, root, "dataset")
    reader = split_reader(root, manifest, "train")
    found = {}
    for first in range(0, len(reader), 2_000):
        row_N = np.arange(first, min(first + 2_000, len(reader)))
        batch = reader.read(row_N)
        for row, index in enumerate(reader.find(row_N).index_N.tolist()):
            found[index] = (int(batch.labels_B[row]), batch.pixels_BCHW[row].numpy().tobytes())
    reader.close()
    return manifest, found


def ask(count):
    """The setting that requests so many images of each digit."""
    return "sample.request={" + ", ".join(f"{label}: {count}" for label in range(10)) + "}"


def accuracy(images, test, spec):
    """Accuracy on real test images of a classifier trained on some images."""
    config = FeaturesConfig(kind="classifier", train_images=20_000)
    extractor = fit_extractor(config, spec, images.pixels_NCHW, images.labels_N, 0)
    return float((extractor.extract(test.pixels_NCHW).classes_N == test.labels_N).double().mean())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_dataset_is_requested_verified_grown_scored_selected_and_used(
    ray_session, tmp_path, capsys
):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(root=tmp_path / "run"))
    recipe = ["--recipe", str(file)]
    command(capsys, "shard", *recipe)
    command(capsys, "train", *recipe)
    # 2,000 of each class with two workers under kills, and undisturbed with one.
    bulk = tmp_path / "run" / "bulk" / "vae"
    killer = Killer(bulk)
    killer.start()
    made = command(capsys, "sample", *recipe, "--set", ask(2_000), "--set", "sample.workers=2")
    killer.is_over.set()
    killer.join()
    assert killer.killed >= 2
    quiet = command(capsys, "sample", *recipe, "--set", ask(2_000), "--set", "sample.output=quiet")
    assert made["models"]["vae"]["digest"] == quiet["models"]["vae"]["digest"]
    _, images = images_of(str(bulk))
    assert Counter(label for label, _ in images.values()) == dict.fromkeys(range(10), 2_000)
    assert len({pixels for _, pixels in images.values()}) == len(images)
    # Verify, read the card, grow by half, make one image again.
    assert verify(str(bulk)) == []
    card = (bulk / "README.md").read_text()
    assert "20,000 synthetic images" in card
    assert "**not** draws from the model's p(x): filters rejected some" in card
    grown = command(capsys, "sample", *recipe, "--set", ask(3_000))["output"]
    larger, more = images_of(grown)
    assert verify(grown) == []
    assert {index: more[index] for index in images} == images
    shared = sum(shard.rows for shard in larger.shards if shard.folder)
    assert shared == 20_000
    index = max(more)
    picture = tmp_path / "image.png"
    command(
        capsys, "sample", *recipe, "--set", ask(3_000), "--index", str(index), "--out", str(picture)
    )
    shard = larger.stored(grown)[-1]
    reader = RowReader(larger.spec, [shard])
    last = len(reader) - 1
    assert int(reader.find(np.array([last])).index_N[0]) == index
    reader.close()
    assert picture.read_bytes() in Path(shard.tar_url).read_bytes()
    # Score each image, select the more likely ones.
    scores = command(
        capsys, "score", *recipe, "--set", f"score.data={grown}", "--set", "score.split=train"
    )["output"]
    bits = load_manifest(Manifest, scores, "scores").metadata["mean_bits_per_dim"]
    chosen = command(
        capsys, "select", grown, "--scores", scores, "--keep", f"bits_per_dim < {bits}",
        "--out", str(tmp_path / "run" / "bulk" / "likely"),
    )["output"]  # fmt: skip
    assert verify(chosen) == []
    kept = load_manifest(DatasetManifest, chosen, "dataset")
    assert 0 < kept.rows("train") < 30_000
    # A classifier trained on the selected images, next to one trained on real ones.
    root = str(tmp_path / "run" / "data")
    real = load_manifest(DatasetManifest, root, "dataset")
    test = read_first(root, real, "test", 10_000)
    by_real = accuracy(read_first(root, real, "train", 10_000), test, real.spec)
    by_samples = accuracy(read_first(chosen, kept, "train", 30_000), test, real.spec)
    print(
        f"accuracy on {len(test)} real test images: real {by_real:.3f}, synthetic {by_samples:.3f}"
    )
    assert by_real > 0.8
    assert by_samples > 0.65
