"""``genmod promote`` with its actions, ``models``, ``compare`` and ``why``, as people call them. No Ray."""

from __future__ import annotations

import json
import re

import pytest

from genmod import storage
from genmod.config import fingerprint
from genmod.evaluation.differences import MetricDifference
from genmod.manifest import Manifest, load_manifest, publish
from genmod.metrics.protocol import Protocol
from pipelines.cli import main
from pipelines.stages.decision_words import Retrained
from pipelines.stages.decisions import MeasuredChampion
from pipelines.stages.promote import promote
from tests.pipelines.stages.champion_world import World, add_model, metric


@pytest.fixture
def world(tmp_path):
    """Three versions, of which the second is the champion and the third was refused."""
    world = World(tmp_path, str(tmp_path / "root"), "{enabled: false}")
    world.digests = [world.add(1, 20), world.add(2, 10), world.add(3, 9.8)]
    for number in (1, 2, 3):
        storage.write_bytes(f"{world.at(number)}/x", b"")
    for number in (1, 2, 3):
        with world.command(number) as context:
            promote(context, "vae")
    return world


def run(world, capsys, *words, code=0):
    """Run a command on the world's recipe: its last line as JSON, and its other output."""
    capsys.readouterr()
    recipe = [] if words[0] == "verify" else ["--recipe", str(world.recipe)]
    assert main([*words, *recipe, "--json"]) == code
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    if code:
        (line,) = [line for line in err.splitlines() if line.startswith("genmod: error: ")]
        return line
    return json.loads(last), "\n".join([*lines, err])


def test_models(world, capsys):
    first, second, third = world.digests
    values, text = run(world, capsys, "models")
    assert f"vae: the champion is model {second[:12]}, since 20" in text
    assert f"genmod promote --rollback returns to model {first[:12]}" in text
    rows = {row.split()[0]: row for row in text.splitlines() if row.startswith("  ")}
    assert "champion" in rows[second[:12]]
    assert "promote: fd[pca@1a2b3c4d] 10 (champion 20)" in rows[second[:12]]
    assert "previous" in rows[first[:12]]
    assert "never champion" in rows[third[:12]]
    vae = values["models"]["vae"]
    assert (vae["champion"]["digest"], vae["previous"]["digest"]) == (second, first)
    assert [each["state"] for each in vae["versions"]] == ["previous", "champion", "never champion"]
    assert values["output"] == f"{world.root}/promotions"


def test_models_before_the_first_promotion(tmp_path, capsys):
    world = World(tmp_path, str(tmp_path / "root"), "{}")
    values, text = run(world, capsys, "models")
    assert "vae: no champion yet" in text
    assert "no version" in text
    assert values["models"]["vae"]["versions"] == []
    assert not (tmp_path / "root").exists()


def test_actions(world, capsys):
    first, second, third = world.digests
    _, text = run(world, capsys, "promote", "--rollback", "--dry-run")
    assert f"would vae: rollback from model {second[:12]} to model {first[:12]}" in text
    values, text = run(world, capsys, "promote", "--pin", third[:8], "--reason", "for the demo")
    assert values["status"] == "done"
    assert values["champions"]["vae"]["pinned"] == "for the demo"
    assert values["champions"]["vae"]["champion"]["digest"] == third
    values, text = run(world, capsys, "models")
    assert "pinned by" in text
    assert "for the demo" in text
    run(world, capsys, "promote", "--unpin")
    values, _ = run(world, capsys, "promote", "--rollback", "--reason", "worse digits")
    assert values["champions"]["vae"]["champion"]["digest"] == second
    _, text = run(world, capsys, "models")
    assert "rolled back by entry 5" in text
    assert main(["verify", f"{world.root}/promotions"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--pin", "1a2b3c4d"), "--reason is missing or empty"),
        (("--pin", "1a2b3c4d", "--reason", " "), "--reason is missing or empty"),
        (("--pin", "1a2b3c4d", "--reason", "x" * 2001), "at most 2,000 are kept"),
        (("--pin", "1a2b3c4d", "--reason", "x"), "no version '1a2b3c4d'"),
        (("--pin", "7", "--reason", "x"), "no version '7'"),
        (("--adopt",), "--reason is missing or empty"),
        (("--adopt", "--reason", "x"), "tracking.enabled=true"),
        (("--rollback", "--unpin"), "got --rollback and --unpin, expected one of"),
        (("--reason", "x"), "got --reason alone"),
        (("--rollback", "--show-recipe"), "--show-recipe is for the stage"),
        (("--unpin",), "is not pinned"),
        (("--rollback", "--model", "ae"), "did you mean 'vae'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(world, capsys, words, expected):
    before = storage.list_names(f"{world.root}/promotions/vae")
    assert expected in run(world, capsys, "promote", *words, code=2)
    assert storage.list_names(f"{world.root}/promotions/vae") == before


def test_a_version_that_is_not_whole_is_neither_pinned_nor_rolled_back_to(world, capsys):
    before = storage.list_names(f"{world.root}/promotions/vae")
    first, _, third = world.digests
    storage.write_bytes(f"{world.at(3)}/models/vae/ema.safetensors", b"changed")
    line = run(world, capsys, "promote", "--pin", third[:8], "--reason", "x", code=2)
    assert re.search(
        f"model {third[:12]} of vae is not whole: .*/ema.safetensors: 7 bytes, exp", line
    )
    storage.remove(f"{world.at(1)}/models/vae/config.json")
    line = run(world, capsys, "promote", "--rollback", code=2)
    assert re.search(f"model {first[:12]} of vae is not whole: .*/config.json", line)
    storage.remove(f"{world.at(1)}/models/vae/model.json")
    assert "is not whole: no model at" in run(world, capsys, "promote", "--rollback", code=2)
    assert storage.list_names(f"{world.root}/promotions/vae") == before


def test_nothing_to_roll_back_to(world, capsys):
    run(world, capsys, "promote", "--rollback")
    assert "nothing to roll back to" in run(world, capsys, "promote", "--rollback", code=2)


def test_an_action_of_a_recipe_with_several_models_names_one(world, capsys):
    several = ("--set", "model.gan={family: gan}")
    line = run(world, capsys, "promote", "--rollback", *several, code=2)
    assert "name it with --model: vae, gan" in line
    run(world, capsys, "promote", "--rollback", "--model", "vae", *several)
    assert "--model: vae, gan" in run(world, capsys, "why", "12345678", *several, code=2)


def test_a_store_without_create_if_absent(world, capsys, monkeypatch):
    from genmod.storage import folders

    def replace(url, data):
        storage.write_bytes(url, data)
        return True

    monkeypatch.setattr(folders, "create", replace)
    line = run(world, capsys, "promote", "--rollback", code=2)
    assert "does not enforce create-if-absent" in line


def test_likelihoods_of_two_kinds_are_one_line_and_exit_2(tmp_path, capsys):
    world = World(tmp_path, str(tmp_path / "root"), "{enabled: false}")
    for number, kind in ((1, "lower_bound by iwae"), (2, "exact by flow")):
        add_model(world.at(number), f"version {number}", 10, likelihood=kind)
    with world.command(2) as context:
        promote(context, "vae")
    rules = "promote.rules={bits_per_dim: {improve_by: 0.1}}"
    line = run(world, capsys, "promote", "--set", rules, code=2)
    assert "likelihoods of two kinds: " in line
    assert "lower_bound by iwae" in line
    assert "exact by flow" in line
    assert "remove promote.rules.bits_per_dim" in line
    assert world.entries() == ["promotion-000001.json"]


def test_why(world, capsys):
    first, second, third = world.digests
    values, text = run(world, capsys, "why", second[:8])
    assert f"vae model {second[:12]}: champion" in text
    assert f"decision against model {first[:12]}: promote, applied by entry 2" in text
    assert "  better: fd[pca@1a2b3c4d] 10 (champion 20): better by more than 1" in text
    assert f"promote, champion {second[:12]}, replaces {first[:12]}" in text
    assert "made from: evaluation" in text
    assert values["decisions"][0]["checks"][0]["outcome"] == "better"
    assert [entry["number"] for entry in values["ledger"]] == [2]
    values, text = run(world, capsys, "why", third)
    assert "do not promote" in text
    assert "no entry of the promotion ledger concerns it" in text
    assert "no version 'abcdef01'" in run(world, capsys, "why", "abcdef01", code=2)
    assert "no version '3'" in run(world, capsys, "why", "3", code=2)


def test_why_names_the_reason_of_a_retrain_and_the_newest_test_rows(world, capsys):
    fourth = world.add(4, 9)
    gain = MetricDifference(
        metric="fd[pca@1a2b3c4d]",
        better="lower",
        gain=1,
        stderr=2,
        freedom=9,
        paired=True,
        rows=100,
    )
    measured = MeasuredChampion((metric("fd", 10),), (gain,), (gain,))
    with world.command(4) as context:
        promote(context, "vae", lambda _: measured, Retrained(version=4, reason="new rows"))
    values, text = run(world, capsys, "why", fourth)
    assert "  retrained as version 4 of the dataset: new rows" in text
    assert (
        "  on the test rows of version 4, which decide nothing: fd[pca@1a2b3c4d]: no difference beyond "
        "the noise; gain 1 with standard error 2" in text
    )
    (decision,) = values["decisions"]
    assert decision["retrain"] == {"version": 4, "reason": "new rows"}
    assert decision["fresh"][0]["outcome"] == "no difference"


def test_compare(world, capsys):
    _, second, third = world.digests
    folders = [f"{world.at(number)}/models/vae" for number in (2, 3)]
    values, text = run(world, capsys, "compare", second[:8], third[:8])
    row = next(line for line in text.splitlines() if line.startswith("fd "))
    assert "10 [9.9, 10.1]" in row
    assert "9.8 [9.7, 9.9]" in row
    assert row.split()[-2:] == ["intervals", "overlap"] or "second is better" in row
    assert [each["metric"] for each in values["metrics"]] == ["fd", "kid", "bits_per_dim"]
    assert values["metrics"][0]["difference"] == pytest.approx(-0.2)
    assert main(["compare", *folders]) == 0
    assert main(["compare", f"{world.at(2)}/evaluation/vae", folders[1]]) == 0
    values, _ = run(world, capsys, "compare", f"{world.root}/models/vae", second[:8])
    assert values["metrics"][0]["outcome"] == "second is better"


def test_compare_shows_the_interval_of_samples_with_the_same_noise(world, capsys):
    _, second, third = world.digests
    evaluations = [
        load_manifest(Manifest, f"{world.at(number)}/evaluation/vae", "evaluation")
        for number in (2, 3)
    ]
    gain = MetricDifference(
        metric="fd[pca@1a2b3c4d]",
        **{
            "better": "lower",
            "gain": 0.25,
            "stderr": 0.01,
            "freedom": 49,
            "paired": True,
            "rows": 90,
        },
    )
    folder = f"{world.at(3)}/champion/vae/{second[:16]}"
    parents = {
        "candidate": evaluations[1].parents["samples"],
        "champion": evaluations[0].parents["samples"],
    }

    def publish_comparison(at, gain, parents):
        metadata = {"model": "vae", "differences": [gain.model_dump(mode="json")]}
        work = fingerprint(at, parents)
        manifest = Manifest(kind="comparison", fingerprint=work, parents=parents, metadata=metadata)
        publish(f"{at}/comparison", manifest)

    publish_comparison(folder, gain, parents)
    values, text = run(world, capsys, "compare", second[:8], third[:8])
    pair = values["metrics"][0]["paired"]
    assert (pair["difference"], pair["rows"]) == (-0.25, 90)
    assert pair["high"] - pair["low"] == pytest.approx(2 * 2.0096 * 0.01, rel=1e-3)
    assert values["metrics"][0]["outcome"] == "second is better"
    assert "-0.25 [-0.2701, -0.2299]" in text
    assert "samples with the same noise" in text
    assert values["metrics"][1]["paired"] is None
    turned, _ = run(world, capsys, "compare", third[:8], second[:8])
    assert turned["metrics"][0]["paired"]["difference"] == 0.25
    assert turned["metrics"][0]["outcome"] == "first is better"
    # More images, and a difference that is not shown.
    more = gain.model_copy(update={"gain": 0.01, "stderr": 0.02, "rows": 900})
    publish_comparison(f"{folder}/images-900", more, parents)
    values, text = run(world, capsys, "compare", second[:8], third[:8])
    assert values["metrics"][0]["paired"]["rows"] == 900
    assert values["metrics"][0]["outcome"] == "no difference shown"
    other = parents | {"candidate": "ab" * 32}
    publish_comparison(f"{folder}/images-5000", more, other)  # of another candidate
    values, _ = run(world, capsys, "compare", second[:8], third[:8])
    assert values["metrics"][0]["paired"]["rows"] == 900


def test_models_of_removed_rows_are_marked(world, capsys):
    first, second, third = world.digests
    items = [
        {"kind": "model", "path": "models/vae", "digest": first, "version": 1},
        {"kind": "model", "path": "retrain/v0002/models/vae", "digest": second, "version": 2},
        {"kind": "synthetic dataset", "path": "retrain/v0002/samples/vae", "digest": "cd" * 32,
         "version": 2, "model": second},
    ]  # fmt: skip
    listed = {"version": 3, "reason": "1 rows of version 2 were removed", "items": items}
    storage.write_bytes(f"{world.at(3)}/replaced.json", json.dumps(listed).encode())
    values, text = run(world, capsys, "models")
    assert "  it was made with rows that version 3 does not have (1 rows of version 2" in text
    rows = {row.split()[0]: row for row in text.splitlines() if row.startswith("  ")}
    assert "champion, of rows that version 3 does not have" in rows[second[:12]]
    assert "of rows" not in rows[third[:12]]
    found = {each["digest"]: each["replaced"] for each in values["models"]["vae"]["versions"]}
    assert found[first] == {"version": 3, "reason": "1 rows of version 2 were removed"}
    assert found[third] is None
    values, text = run(world, capsys, "why", second[:8])
    assert "marked: model retrain/v0002/models/vae: made with rows that version 3" in text
    assert "marked: synthetic dataset retrain/v0002/samples/vae: made with rows" in text
    assert len(values["marked"]) == 2
    values, _ = run(world, capsys, "why", third[:8])
    assert values["marked"] == []


def test_unlike_protocols_are_refused_by_saying_what_differs(world, capsys):
    add_model(world.at(4), "version 4", 3, samples=50)
    paths = [f"{world.at(number)}/models/vae" for number in (2, 4)]
    line = run(world, capsys, "compare", *paths, code=2)
    assert "were not measured alike: fd: n_fake 100 against 50" in line


def test_a_metric_that_was_measured_otherwise_is_left_out(world, capsys):
    """Copies are looked for among the training rows, which grow from version to version."""
    for number in (2, 3):
        folder = f"{world.at(number)}/evaluation/vae"
        found = load_manifest(Manifest, folder, "evaluation")
        copies = metric("memorisation", 0.0).model_dump(mode="json")
        protocol = Protocol(**copies["value"]["protocol"] | {"settings": {"n_train": 100 * number}})
        copies["value"] |= {"protocol": protocol.model_dump(), "protocol_digest": protocol.digest}
        metadata = found.metadata | {"metrics": [*found.metadata["metrics"], copies]}
        storage.remove(f"{folder}/evaluation.json")
        publish(folder, found.model_copy(update={"metadata": metadata, "digest": ""}))
    paths = [f"{world.at(number)}/models/vae" for number in (2, 3)]
    values, text = run(world, capsys, "compare", *paths)
    assert (
        "memorisation: not compared, measured otherwise: settings.n_train 200 against 300" in text
    )
    assert values["unlike"] == {"memorisation": "settings.n_train 200 against 300"}
    assert [each["metric"] for each in values["metrics"]] == ["fd", "kid", "bits_per_dim"]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        (("{}/nothing", "{}/models/vae"), "has neither a model nor an evaluation"),
        (("3", "{}/models/vae"), "no version '3'"),
        (("{}/retrain/v0002/models/vae", "{}/models/other"), "has no evaluation next to it"),
    ],
)
def test_what_cannot_be_compared(world, capsys, sides, expected):
    add_model(f"{world.root}/else", "other", 3)
    storage.write_bytes(
        f"{world.root}/models/other/model.json",
        storage.read_bytes(f"{world.root}/else/models/vae/model.json"),
    )
    line = run(world, capsys, "compare", *(side.format(world.root) for side in sides), code=2)
    assert expected in line


def test_a_version_needs_a_recipe(capsys):
    assert main(["compare", "1", "2"]) == 2
    assert "a version needs --recipe" in capsys.readouterr().err
