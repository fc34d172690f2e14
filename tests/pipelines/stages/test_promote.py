"""The promote stage with the real MLflow on SQLite, without Ray: ledger first, aliases after it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from genmod import storage
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.evaluation.differences import MetricDifference
from genmod.lease import acquire
from genmod.lease.lease import LeaseLost
from genmod.manifest import Manifest, load_manifest
from genmod.promotion import Evidence, Ledger, LedgerChange, LedgerModel
from pipelines.commands.champion_actions import ChampionAction, change_champions
from pipelines.commands.verify import verify
from pipelines.stages import promote as stage
from pipelines.stages.champion_evidence import likelihoods_of_champion
from pipelines.stages.champions import FOUND, Champions, author
from pipelines.stages.decisions import MeasuredChampion, find_decision
from pipelines.stages.promote import is_pending, promote
from pipelines.tracking import registry
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.pipelines.stages.champion_world import World, add_model, metric
from tests.processes import TIMEOUT_S


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database, whose making takes seconds; each test has registered models of its own."""
    root = tmp_path_factory.mktemp("tracked")
    tracker = Tracker(TrackingConfig(), str(root))
    tracker.warm_up()
    assert tracker.close(TIMEOUT_S)
    return f"sqlite:///{root}/mlflow.db"


@pytest.fixture
def world(database, tmp_path):
    prefix = f"p{abs(hash(tmp_path.name))}"
    return World(tmp_path, str(tmp_path / "root"), f"{{uri: '{database}', prefix: {prefix}}}")


@pytest.fixture
def untracked(tmp_path):
    return World(tmp_path, str(tmp_path / "root"), "{enabled: false}")


def promoted(world, number, measure=None):
    """Promote a version; the history afterwards."""
    with world.command(number) as context:
        promote(context, "vae", measure)
        return Champions(context, "vae").ledger.read()


def aliases(world):
    """Digests that MLflow's aliases name, and the number in their mark."""
    with world.command() as context:
        found = registry.aliases(context.tracker, "vae")
    versions = (found.champion, found.previous)
    return *(v.digest if v else None for v in versions), found.mark.partition(" ")[0]


def act(world, kind, version="", reason="", dry_run=False):
    with world.command() as context:
        return change_champions(context, ChampionAction(kind, version, reason), dry_run=dry_run)


def model_at(world, number, *, evaluated=True):
    """A model as a ledger names it."""
    root, evaluation = f"{world.at(number)}/models/vae", f"{world.at(number)}/evaluation/vae"
    evidence = None
    if evaluated:
        digest = load_manifest(Manifest, evaluation, "evaluation").digest
        evidence = Evidence(root=evaluation, digest=digest)
    digest = load_manifest(Manifest, root, "model").digest
    return LedgerModel(digest=digest, root=root, evaluation=evidence)


def write(world, action, number, *, evaluated=True):
    """Extend the ledger without MLflow, as a command that is killed after its entry does."""
    with world.command() as context:
        ledger = Champions(context, "vae").ledger
        change = LedgerChange(action, model_at(world, number, evaluated=evaluated), "x", author())
        assert ledger.append(ledger.read(), change) is not None


def move(world, digest):
    """Move MLflow's alias by hand."""
    with world.command() as context:
        version = registry.version_of(context.tracker, "vae", digest)
        context.tracker.query(
            lambda client: client.set_registered_model_alias(
                version.name, "champion", version.version
            )
        )


def test_a_promotion_is_an_entry_with_its_evidence_and_the_aliases_follow(world):
    first, second = world.add(1, 20), world.add(2, 10)
    world.add(3, 9.5)
    history = promoted(world, 1)
    assert aliases(world) == (first, None, "1")
    history = promoted(world, 2)
    assert aliases(world) == (second, first, "2")
    entry = history.entries[1]
    assert (entry.action, entry.model.digest, entry.replaces) == ("promote", second, first)
    assert entry.model.root == f"{world.at(2)}/models/vae"
    assert entry.model.version == 2
    assert entry.model.registered.endswith("-vae")
    assert "better by more than 1" in entry.reason
    decision = load_manifest(Manifest, entry.decision.root, "decision")
    assert decision.digest == entry.decision.digest
    assert decision.parents == {
        "model": second, "champion": first, "evaluation": entry.model.evaluation.digest,
    }  # fmt: skip
    assert "@" in entry.author.user
    promoted(world, 3)  # not better by 1: a decision, no entry
    assert promoted(world, 2) == history
    assert len(world.entries()) == 2
    assert verify(f"{world.root}/promotions") == []
    assert verify(world.root) == []


@pytest.mark.parametrize(("images", "expected"), [(None, False), (100, False), (5000, True)])
def test_an_undecided_pair_is_compared_again_with_more_images(untracked, images, expected):
    untracked.add(1, 20)
    untracked.add(2, 17)
    promoted(untracked, 1)
    drawn = []

    def gain(stderr):
        return MetricDifference(metric="fd[pca@1a2b3c4d]", better="lower", gain=3, stderr=stderr)

    def more(count):
        drawn.append(count)
        return [gain(0.1)]

    def measure(champion):
        return MeasuredChampion([metric("fd", 20)], [gain(2.0)], more=more)

    with untracked.command(2, f"promote.max_images={images or 'null'}") as context:
        decision = promote(context, "vae", measure).decision.metadata
        (rows,) = storage.list_names(f"{untracked.root}/promotions/vae.decisions")
        counted = storage.list_names(f"{untracked.root}/promotions/vae.decisions/{rows}")
    assert decision["promote"] is expected
    assert (drawn, decision.get("images")) == (([5000], 5000) if expected else ([], None))
    assert decision["number"] == len(counted) == len(drawn) + 1


def test_an_altered_decision_is_found(world):
    world.add(1, 20)
    promoted(world, 1)
    decision = f"{world.root}/decision/vae/decision.json"
    text = storage.read_bytes(decision).decode()
    storage.write_bytes(decision, text.replace("first champion", "worst champion").encode())
    assert any(
        "does not match its own digest" in line for line in verify(f"{world.root}/promotions")
    )
    storage.remove(decision)
    assert [line for line in verify(f"{world.root}/promotions") if "missing" in line]


def test_a_command_that_was_killed_after_its_entry_is_finished_by_the_next(world):
    first, second, third = world.add(1, 20), world.add(2, 10), world.add(3, 5)
    promoted(world, 1)
    write(world, "pin", 2)
    write(world, "unpin", 2)
    assert aliases(world) == (first, None, "1")
    history = promoted(world, 3)
    assert [entry.action for entry in history.entries] == ["promote", "pin", "unpin", "promote"]
    assert aliases(world) == (third, second, "4")


HANGS = """
import sys, time
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages.promote import promote
from pipelines.tracking import registry

def hang(*_):
    print("the entry is written", flush=True)
    time.sleep(600)

registry.set_aliases = hang
promote(Context(load_recipe(sys.argv[1]), ("vae",)).with_root(sys.argv[2]), "vae")
"""


@pytest.mark.slow
def test_a_kill_between_the_entry_and_the_aliases(world):
    first, second = world.add(1, 20), world.add(2, 10)
    promoted(world, 1)
    words = [sys.executable, "-c", HANGS, str(world.recipe), world.at(2)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert line.strip() == "the entry is written"
    assert aliases(world) == (first, None, "1")
    assert [e.model.digest for e in promoted(world, 1).entries] == [first, second]
    assert aliases(world) == (second, first, "2")


def test_an_alias_that_was_moved_by_hand_stops_a_promotion_until_it_is_repaired(world):
    first, second = world.add(1, 20), world.add(2, 10)
    world.add(3, 5)
    promoted(world, 1)
    promoted(world, 2)
    move(world, first)
    with pytest.raises(ConfigError, match=r"--repair.*--adopt --reason TEXT"):
        promoted(world, 3)
    assert aliases(world) == (first, first, "2")
    text = act(world, "repair", dry_run=True)["champions"]["vae"]["text"]
    assert f"alias 'champion' is {first[:12]}, the ledger says {second[:12]}" in text
    assert aliases(world) == (first, first, "2")
    assert act(world, "repair")["status"] == "done"
    assert aliases(world) == (second, first, "3")
    assert act(world, "repair")["status"] == "already done"
    entries = promoted(world, 3).entries
    assert [entry.action for entry in entries[2:]] == ["repair", "promote"]
    assert first[:12] in entries[2].reason


def test_an_alias_that_was_moved_by_hand_is_adopted_with_a_reason(world):
    first, second = world.add(1, 20), world.add(2, 10)
    promoted(world, 1)
    promoted(world, 2)
    with pytest.raises(ConfigError, match="nothing to adopt"):
        act(world, "adopt", reason="x")
    move(world, first)
    state = act(world, "adopt", reason="second has artefacts")["champions"]["vae"]
    assert (state["champion"]["digest"], state["previous"]["digest"]) == (first, second)
    assert aliases(world) == (first, second, "3")
    with world.command() as context:
        assert Champions(context, "vae").read().last.reason == "second has artefacts"


def test_a_removed_alias_is_drift_that_can_only_be_repaired(world):
    first = world.add(1, 20)
    promoted(world, 1)
    with world.command() as context:
        name = registry.registered_name(context.tracker, "vae")
        context.tracker.query(lambda c: c.delete_registered_model_alias(name, "champion"))
    with pytest.raises(ConfigError, match="is not set, the ledger says"):
        promoted(world, 1)
    with pytest.raises(ConfigError, match="no alias 'champion' to adopt"):
        act(world, "adopt", reason="x")
    act(world, "repair")
    assert aliases(world) == (first, None, "2")


def test_the_champion_of_an_older_run_is_the_first_entry(world):
    first, second = world.add(1, 20), world.add(2, 10)
    with world.command() as context:
        run = context.tracker.run("promote", "vae", "old", {}, {})
        version = Champions(context, "vae").register(run, first, f"{world.root}/models/vae")
        registry.tag_evaluation(context.tracker, version, f"{world.root}/evaluation/vae")
    move(world, first)
    history = promoted(world, 2)
    assert [(e.action, e.model.digest) for e in history.entries] == [
        ("adopt", first), ("promote", second),
    ]  # fmt: skip
    assert history.entries[0].reason == FOUND
    assert aliases(world) == (second, first, "2")


def test_two_ledgers_of_one_registered_model_are_noticed(world, tmp_path):
    world.add(1, 20)
    promoted(world, 1)
    other = f"promote.ledger={tmp_path}/other"
    with (
        world.command(1, other) as context,
        pytest.raises(ConfigError, match=r"another ledger.*root/promotions/vae"),
    ):
        promote(context, "vae")


def champions(world):
    """Digests of the champion and the previous one, and the number of entries, by the ledger."""
    with world.command() as context:
        history = Champions(context, "vae").ledger.read()
    return *history.states[-1], len(history.entries)


def test_rollback_and_what_follows(untracked):
    world = untracked
    first, second, third = world.add(1, 20), world.add(2, 10), world.add(3, 5)
    for number in (1, 2, 3):
        promoted(world, number)
    state = act(world, "rollback", dry_run=True)["champions"]["vae"]
    assert state["text"] == f"vae: rollback from model {third[:12]} to model {second[:12]}"
    assert champions(world) == (third, second, 3)
    act(world, "rollback", reason="artefacts")
    assert champions(world) == (second, first, 4)
    act(world, "rollback")
    assert champions(world) == (first, None, 5)
    with pytest.raises(ConfigError, match=r"nothing to roll back to: model .* is the first"):
        act(world, "rollback")
    # What was rolled back is not promoted by its old decision, nor by a new one.
    for number in (2, 3):
        with world.command(number) as context:
            assert not is_pending(context, "vae")
        promoted(world, number)
    assert champions(world) == (first, None, 5)
    act(world, "pin", third[:8], "looked at it again")
    assert champions(world) == (third, first, 6)


def test_a_pin_holds_until_it_is_removed(untracked):
    world = untracked
    first, second, third = world.add(1, 20), world.add(2, 10), world.add(3, 5)
    promoted(world, 1)
    promoted(world, 2)
    act(world, "pin", first[:8], "for the paper")
    assert champions(world) == (first, second, 3)
    assert promoted(world, 3).pin.reason == "for the paper"
    assert champions(world) == (first, second, 3)
    with world.command(3) as context:
        assert is_pending(context, "vae")
    with pytest.raises(ConfigError, match=r"pinned by entry 3 \(for the paper\)"):
        act(world, "rollback")
    act(world, "unpin")
    with pytest.raises(ConfigError, match="not pinned"):
        act(world, "unpin")
    promoted(world, 3)
    assert champions(world) == (third, first, 5)
    act(world, "rollback")
    assert champions(world) == (first, second, 6)


def test_aliases_follow_a_rollback_and_a_pin(world):
    first, second = world.add(1, 20), world.add(2, 10)
    promoted(world, 1)
    promoted(world, 2)
    act(world, "rollback")
    assert aliases(world) == (first, None, "3")
    act(world, "pin", "2", "after all")
    assert aliases(world) == (second, first, "4")


@pytest.mark.parametrize("version", ["9", "", "zz", "abcdef01", "1" * 80, "\x1b[2J"])
def test_a_pin_to_an_unknown_version(untracked, version):
    world = untracked
    world.add(1, 20)
    promoted(world, 1)
    with pytest.raises(ConfigError, match=r"no version .*known: model ") as caught:
        act(world, "pin", version, "x")
    assert str(caught.value).isprintable()
    assert len(world.entries()) == 1


@pytest.mark.parametrize("damage", ["file", "manifest", "folder", "other"])
def test_a_pin_to_a_version_that_is_not_whole(untracked, damage):
    world = untracked
    world.add(1, 20)
    digest = world.add(2, 30)
    promoted(world, 1)
    promoted(world, 2)  # not promoted
    for number in (2, 1):
        write(world, "pin", number)
    act(world, "unpin")
    folder = f"{world.at(2)}/models/vae"
    if damage == "file":
        storage.write_bytes(f"{folder}/ema.safetensors", b"x")
    elif damage == "manifest":
        storage.remove(f"{folder}/model.json")
    elif damage == "folder":
        storage.remove(folder)
    else:
        storage.remove(world.at(2))
        storage.write_bytes(f"{folder}/x", b"")
        add_model(world.at(2), "another", 1)
    with pytest.raises(DataError, match=r"is not whole: .*restore that folder"):
        act(world, "pin", digest[:12], "x")
    with pytest.raises(DataError, match="is not whole"):
        act(world, "rollback")
    assert len(world.entries()) == 4


def test_without_mlflow_the_ledger_works_alone(untracked):
    world = untracked
    first, second = world.add(1, 20), world.add(2, 10)
    promoted(world, 1)
    history = promoted(world, 2)
    assert [(e.action, e.model.digest, e.model.version) for e in history.entries] == [
        ("promote", first, None), ("promote", second, None),
    ]  # fmt: skip
    act(world, "rollback")
    act(world, "pin", second[:12], "after all")
    assert len(world.entries()) == 4
    with pytest.raises(ConfigError, match=r"tracking\.enabled"):
        act(world, "repair")
    assert not list((world.recipe.parent / "root").glob("*.db"))


def test_models_that_were_promoted_without_mlflow_are_registered_later(world):
    first, second = world.add(1, 20), world.add(2, 10)
    with world.command(1, "tracking.enabled=false") as context:
        promote(context, "vae")
    assert promoted(world, 2).previous.digest == first
    assert aliases(world) == (second, first, "2")


def test_a_server_that_is_down_does_not_stop_a_promotion(tmp_path, database):
    import socket

    with socket.socket() as held:  # bound, not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        world = World(tmp_path, str(tmp_path / "root"), f"{{uri: '{uri}'}}")
        first = world.add(1, 20)
        with world.command(1, "promote.improvements=1") as context:
            promote(context, "vae")
            assert Champions(context, "vae").ledger.read().champion.digest == first
            context.tracker.close(0.1)
            context.tracker.close = lambda *_: True
    prefix = f"p{abs(hash(tmp_path.name))}"
    again = World(tmp_path, str(tmp_path / "root"), f"{{uri: '{database}', prefix: {prefix}}}")
    assert promoted(again, 1).champion.digest == first
    assert aliases(again) == (first, None, "1")


def rival(world, number, monkeypatch, times=1):
    """Another command that promotes a version while the first one measures the champion."""
    left = [times]
    real = stage._apply

    def apply(champions, promotions, candidate, decision):
        if left[0]:
            left[0] -= 1
            write(world, "pin", number)
            write(world, "unpin", number)
        return real(champions, promotions, candidate, decision)

    monkeypatch.setattr(stage, "_apply", apply)


def test_a_decision_against_a_replaced_champion_is_made_again(untracked, monkeypatch):
    world = untracked
    world.add(1, 20)
    second, third = world.add(2, 10), world.add(3, 8)
    promoted(world, 1)
    rival(world, 2, monkeypatch)
    history = promoted(world, 3)
    assert [e.model.digest for e in history.entries][-1] == third
    assert history.last.replaces == second
    root = history.last.decision.root
    assert root == f"{world.at(3)}/decision/vae/against-{second[:16]}"
    assert "(champion 10)" in history.last.reason
    old = json.loads(storage.read_bytes(f"{world.at(3)}/decision/vae/decision.json"))
    assert "(champion 20)" in old["metadata"]["reasons"][0]
    assert verify(f"{world.root}/promotions") == []
    assert promoted(world, 3) == history


def test_a_decision_that_is_made_again_may_keep_the_new_champion(untracked, monkeypatch):
    world = untracked
    world.add(1, 20)
    second = world.add(2, 4)
    world.add(3, 8)
    promoted(world, 1)
    rival(world, 2, monkeypatch)
    history = promoted(world, 3)
    assert history.champion.digest == second


def test_a_decision_is_made_again_a_few_times(untracked, monkeypatch):
    world = untracked
    for number, fd in ((1, 20), (2, 10), (3, 8), (4, 2)):
        world.add(number, fd)
    promoted(world, 1)
    monkeypatch.setattr(stage, "_apply", lambda *_: None)
    with pytest.raises(GenmodError, match="changed the champion 5 times"):
        promoted(world, 4)


def test_a_champion_sampled_again_keeps_its_likelihoods_if_a_rule_names_them(untracked):
    untracked.add(1, 10.0)
    champion = model_at(untracked, 1)
    for changes, expected in (
        ((), []),
        (("promote.rules.bits_per_dim.max_regression=1",), [("bits_per_dim", 2.5)]),
    ):
        with untracked.command(1, *changes) as context:
            found = likelihoods_of_champion(context, champion)
            assert [(each.value.protocol.metric, each.value.value) for each in found] == expected
            without = champion.model_copy(update={"evaluation": None})
            assert likelihoods_of_champion(context, without) == []


def test_a_champion_without_an_evaluation_is_not_compared(untracked):
    world = untracked
    world.add(1, 20)
    world.add(2, 10)
    write(world, "adopt", 1, evaluated=False)
    with pytest.raises(ConfigError, match="has no evaluation to compare with"):
        promoted(world, 2)


@pytest.mark.parametrize(("fd", "expected"), [(90, True), (101, False)])
def test_a_champion_that_lacks_a_class_is_not_compared(untracked, fd, expected):
    world = untracked
    world.recipe.write_text(
        world.recipe.read_text().replace("improve_by: 1", "improve_by: 1, limit: 100")
    )
    world.add(1, 20, shown={"class_names": ["ant", "cow"]})
    world.add(2, fd, shown={"class_names": ["ant", "bee", "cow"]})
    first = promoted(world, 1).champion
    history = promoted(world, 2, lambda _: pytest.fail("the champion is not measured"))
    assert (history.champion.digest != first.digest) is expected
    with world.command(2) as context:
        decision = find_decision(context, "vae")
    assert decision.parents["champion"] == first.digest
    reason = decision.metadata["reasons"][0]
    assert "lacks class 'bee', so limits alone decide: " in reason
    assert ("allowed is at most 100" in reason) is not expected
    world.add(3, 19, shown={"class_names": ["ant", "cow"]})
    promoted(world, 3)
    with world.command(3) as context:
        assert "lacks" not in str(find_decision(context, "vae").metadata["reasons"])


def test_the_champion_of_a_root_that_was_moved(untracked, tmp_path):
    digests = [untracked.add(1, 20), untracked.add(2, 10)]
    promoted(untracked, 1)
    promoted(untracked, 2)
    new = tmp_path / "new ä [1] 100%"
    (tmp_path / "root").rename(new)
    moved = World(tmp_path, str(new), "{enabled: false}")
    with moved.command(2) as context:
        lines = []
        context.progress.log = lines.append
        history = Champions(context, "vae").read()
        assert lines == [f"  vae: the root was at {tmp_path}/root; its models are read below {new}"]
    assert [model.root for model in history.stack] == [
        f"{new}/models/vae",
        f"{new}/retrain/v0002/models/vae",
    ]
    moved.add(3, 5)
    history = promoted(moved, 3)
    assert history.stack[-1].digest not in digests, "its champion was found and compared"
    assert [entry.number for entry in history.entries] == [1, 2, 3]
    assert verify(f"{new}/promotions") == []


def test_the_ledger_leads_only_below_the_root(untracked, tmp_path):
    world = untracked
    digest = world.add(1, 20)
    world.add(2, 10)
    ledger = Ledger(f"{world.root}/promotions", "vae")
    for root in ("/etc", "s3://bucket/models/vae", f"{world.root}/../x"):
        storage.remove(ledger.root)
        model = LedgerModel.model_validate(
            {"digest": digest, "root": root, "evaluation": {"root": root, "digest": digest}}
        )
        ledger.append(ledger.read(), LedgerChange("adopt", model, "x", author()))
        with pytest.raises(ConfigError, match=r"tracking\.roots"):
            promoted(world, 2)
        with pytest.raises(ConfigError, match=r"tracking\.roots"):
            act(world, "pin", digest[:12], "x")


@pytest.mark.parametrize("place", ["below the root", "elsewhere"])
def test_a_command_that_lost_its_lease_promotes_nothing(untracked, tmp_path, place):
    world = untracked
    world.add(1, 20)
    second = world.add(2, 10)
    changes = [] if place == "below the root" else [f"promote.ledger={tmp_path}/shared"]
    with acquire(world.root, "retrain", 3600) as lease:
        for number in (1, 2):
            with world.command(number, *changes, lease=lease) as context:
                promote(context, "vae")
                ledger = Champions(context, "vae").ledger
        assert ledger.read().champion.digest == second
        assert (tmp_path / "shared").exists() == (place == "elsewhere")
        world.add(3, 5)
        lease.is_lost = True
        with world.command(3, *changes, lease=lease) as context, pytest.raises(LeaseLost):
            promote(context, "vae")
        assert len(ledger.read().entries) == 2


def test_the_page_of_a_decision_is_an_artifact_of_its_run(world):
    world.add(1, 20, shown={})
    promoted(world, 1)

    def paths(client):
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.`genmod.name` = 'vae'")
        return {file.path for run in runs for file in client.list_artifacts(run.info.run_id)}

    with world.command() as context:
        assert "decision.html" in context.tracker.query(paths)
