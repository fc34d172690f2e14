"""The command line: exit codes, one-line errors, JSON, dry runs. Nothing here starts Ray."""

import json

import numpy as np
import pytest

from genmod import storage
from genmod.manifest import DatasetManifest, ImageSpec, publish
from pipelines.cli import STAGES, main


@pytest.fixture
def world(tmp_path):
    """A recipe over a small unlabelled source, and the root it names."""
    images = np.zeros((200, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    (tmp_path / "my.yaml").write_text(
        f"""
root: {tmp_path}/out
data: {{source: "npz:{tmp_path}/images.npz"}}
model:
  small: {{family: vae, net: {{widths: [4]}}}}
  game: {{family: gan}}
tracking: {{enabled: false}}
"""
    )
    return tmp_path


def command(world, *words):
    return main([words[0], "--recipe", str(world / "my.yaml"), *words[1:]])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("shard", "--set", "data.sorce=x"), "did you mean 'source'?"),
        (("shard", "--set", "data.source=idx:/no/such"), "/no/such"),
        (("shard", "--set", "data.source=nosuch:thing"), "nosuch"),
        (("shard", "--set", "data.classes=3"), "3"),
        (("train",), "genmod shard"),
        (("sample",), "genmod train"),
        (("train", "--model", "smal"), "did you mean 'small'?"),
        (("score", "--model", "game"), "density"),
        (("shard", "--set", "root=/proc/none"), "/proc/none"),
    ],
)
def test_what_is_yours_to_mend_is_one_line_and_exit_2(world, capsys, words, says):
    assert command(world, *words, "--json") == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("genmod: error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in err
    answer = json.loads(out.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == (words[0], "refused")
    assert {"output", "fingerprint", "seconds", "error"} <= set(answer)
    assert not (world / "out").exists() or not any((world / "out").iterdir())


def test_an_output_of_another_recipe_is_refused_and_kept(world, capsys):
    spec = ImageSpec(channels=1, height=8, width=8, classes=0)
    other = DatasetManifest(fingerprint="0" * 64, spec=spec, shards=())
    publish(str(world / "out" / "data"), other)
    before = storage.read_bytes(str(world / "out" / "data" / "dataset.json"))
    assert command(world, "shard") == 2
    assert "made from something else" in capsys.readouterr().err
    assert storage.read_bytes(str(world / "out" / "data" / "dataset.json")) == before
    assert sorted(p.name for p in (world / "out" / "data").iterdir()) == ["dataset.json"]


def test_dry_run_prints_recipe_and_plan_and_writes_nothing(world, capsys):
    assert command(world, "run", "--dry-run", "--json") == 0
    out = capsys.readouterr().out.splitlines()
    answer = json.loads(out[-1])
    assert answer["status"] == "planned"
    planned = [(step["stage"], step["name"]) for step in answer["plan"]]
    assert planned[0] == ("shard", "data")
    assert {("train", "small"), ("sample", "game"), ("score", "small")} <= set(planned)
    assert answer["plan"][0]["work"]["images"] == 200
    assert any(line.startswith("# train small: to do; images ") for line in out)
    unscorable = next(s for s in answer["plan"] if (s["stage"], s["name"]) == ("score", "game"))
    assert "Unscorable" in unscorable["work"]
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sample.labels=7", "sample.labels"),
        ("data.splits={val: 0.2, test: 0}", "split test"),
        ("data.splits={val: 0, test: 0.2}", "the val split has no rows"),
        ("sample.count=3", "sample.count"),
        ("model.game.net={generator: {widths: [8, 8, 8, 8, 8]}}", "gan"),
        ("root=memory://here", "only one process can see"),
        ("train.optim.lr=.inf", "finite"),
        ("model.a/b={family: vae}", "model.a/b"),
        ("model.../out={family: vae}", "model"),
    ],
)
@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run")])
def test_a_run_refuses_what_a_later_stage_would(world, capsys, words, change, says):
    assert command(world, *words, "--set", change) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("genmod: error: ")]
    assert says in line
    assert not (world / "out").exists()


def test_a_key_that_is_there_twice(world, capsys):
    with (world / "my.yaml").open("a") as recipe:
        recipe.write("root: elsewhere\n")
    assert command(world, "shard", "--dry-run") == 2
    assert "'root' is there twice" in capsys.readouterr().err


def test_a_recipe_that_is_not_there(capsys):
    assert main(["run", "--recipe", "quickstrat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_verify_names_what_is_wrong(world, capsys):
    spec = ImageSpec(channels=1, height=8, width=8, classes=0)
    root = world / "data"
    publish(str(root), DatasetManifest(fingerprint="0" * 64, spec=spec, shards=()))
    assert main(["verify", str(root), "--json"]) == 0
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace('"classes": 0', '"classes": 9'))
    assert main(["verify", str(root), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "broken"
    assert "dataset.json" in err


def test_options_of_stages_are_few_and_the_same(capsys):
    """The list of options is part of the contract: adding one is a decision, not an accident."""
    for stage in STAGES:
        with pytest.raises(SystemExit):
            main([stage, "--help"])
        text = capsys.readouterr().out
        found = {word.strip("[],") for word in text.split() if word.startswith(("--", "[--"))}
        assert {f.lstrip("[") for f in found} - {"--help"} == {
            "--recipe", "--set", "--address", "--model", "--dry-run", "--json", "--debug",
        }  # fmt: skip


def test_nothing_to_say_to_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
