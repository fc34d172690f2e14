"""What a worker returns is checked: units that were asked for, with receipts of this work."""

import pytest

from genmod.data.format.shards import ShardReceipt
from genmod.errors import DataError, GenmodError
from genmod.manifest import DatasetManifest
from genmod.storage import StorageConfig
from pipelines.jobs.bulk import BulkJob, WorkUnit
from pipelines.jobs.job_state import BulkJobState


@pytest.fixture
def work(tmp_path):
    job = BulkJob(
        name="vae", title="sample vae", out_root=str(tmp_path), kind="dataset", fingerprint="f",
        manifest=DatasetManifest, receipt=ShardReceipt, plan=StorageConfig(), inputs={},
        units=[WorkUnit("train-000000", 3, {}), WorkUnit("train-000001", 2, {})],
        finish=lambda receipts, first: pytest.fail("not done"),
    )  # fmt: skip
    return BulkJobState(job, None)


def result(**changes):
    receipt = ShardReceipt(fingerprint="f", shard=None, rejected=(), metadata=None).model_dump(
        mode="json"
    )
    return {"job": 0, "unit": "train-000000", "num_rows": 10**9, "receipt": receipt} | changes


def test_a_result_counts_once_with_the_rows_that_were_planned(work):
    for _ in range(2):
        work.add(result())
    assert (work.done_rows, work.total_rows) == (3, 5)
    assert [task["unit"] for task in work.tasks(0)] == ["train-000001"]
    assert work.publish_if_done() is None


@pytest.mark.parametrize("unit", ["train-000009", "../x", "a\x1b[2J", None, 3, ["x"]])
def test_a_unit_that_was_not_asked_for(work, unit):
    with pytest.raises(GenmodError, match=r"a worker returned .*no unit of it") as caught:
        work.add(result(unit=unit))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "receipt", [None, [], "x", {}, {"fingerprint": 3}, {"fingerprint": "f", "shard": 3}]
)
def test_a_receipt_that_is_none(work, receipt):
    with pytest.raises(DataError, match="the result of sample vae train-000000 is not a receipt"):
        work.add(result(receipt=receipt))
    assert work.done_rows == 0


def test_a_receipt_of_other_work(work):
    other = result()["receipt"] | {"fingerprint": "g"}
    with pytest.raises(GenmodError, match="belongs to other work"):
        work.add(result(receipt=other))
