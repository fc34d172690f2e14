"""Progress becomes counts, rates and times of metrics."""

from cluster.metrics import Recorder
from pipelines.recipe.progress_metrics import ProgressMetrics


class Clock:
    """A clock in seconds that a test sets."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


def metrics():
    clock = Clock()
    return ProgressMetrics(Recorder(), clock), clock


def test_rate_and_counts_start_at_what_was_done_before():
    progress, clock = metrics()
    progress.update("train vae", 500, 1000, "images")
    clock.now_s += 2
    progress.update("train vae", 700, 1000, "images")
    values = progress.recorder.values()
    assert values["genmod_images_per_second", "train", "vae"] == 100.0
    assert values["genmod_rows", "train", "vae"] == 700.0
    assert values["genmod_rows_planned", "train", "vae"] == 1000.0
    assert values["genmod_progress_time_seconds", "train", "vae"] > 1e9
    assert progress.recorder._added == {("genmod_images", "train", "vae"): 200.0}


def test_a_rate_is_measured_over_a_second_or_to_the_end():
    progress, clock = metrics()
    progress.update("shard", 0, 100, "images")
    clock.now_s += 0.1
    progress.update("shard", 10, 100, "images")
    assert ("genmod_images_per_second", "shard", "") not in progress.recorder.values()
    clock.now_s += 0.1
    progress.update("shard", 100, 100, "images")
    rate = progress.recorder.values()["genmod_images_per_second", "shard", ""]
    assert round(rate) == 500


def test_the_time_of_progress_stays_while_nothing_moves(monkeypatch):
    progress, clock = metrics()
    times = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    key = ("genmod_progress_time_seconds", "sample", "vae")
    for done, expected in ((0, 1.0), (0, 1.0), (5, 2.0), (5, 2.0), (6, 3.0)):
        clock.now_s += 10
        progress.update("sample vae", done, 10, "images")
        assert progress.recorder.values()[key] == expected


def test_work_that_starts_again_counts_from_there():
    progress, clock = metrics()
    progress.update("train vae", 900, 1000, "images")
    clock.now_s += 1
    progress.update("train vae", 100, 1000, "images")
    clock.now_s += 1
    progress.update("train vae", 300, 1000, "images")
    assert progress.recorder.values()["genmod_images_per_second", "train", "vae"] == 200.0
    assert progress.recorder._added == {("genmod_images", "train", "vae"): 200.0}


def test_models_have_no_rate_and_other_tasks_no_metrics():
    progress, clock = metrics()
    progress.update("fit vae", 0, 1, "fits")
    progress.update("evaluate", 0, 2, "models")
    clock.now_s += 5
    progress.update("evaluate", 2, 2, "models")
    values = progress.recorder.values()
    assert {stage for _, stage, _ in values} == {"evaluate"}
    assert values["genmod_rows", "evaluate", ""] == 2.0
    assert not progress.recorder._added
