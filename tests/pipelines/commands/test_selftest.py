"""``genmod selftest density``: all checks pass, and a wrong estimator exits with 1."""

import json

import pytest
import torch

from genmod.errors import Unscorable
from genmod.interface.batch import Batch
from genmod.interface.external import FAMILIES_VARIABLE
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.likelihood import iwae
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.selftest import latents
from genmod.selftest.density import run_checks
from pipelines.cli import main
from pipelines.commands.selftest import SUBJECTS


@pytest.mark.slow
@pytest.mark.long
def test_every_estimator_passes(capsys, monkeypatch):
    assert main(["selftest", "density", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["stage"], result["status"]) == ("selftest", "done")
    assert len(result["checks"]) == err.count("ok  ") > 10
    assert "FAIL" not in err
    verified = {
        (check["estimator"].split(",")[0].split(" ")[0], check["label"])
        for check in result["checks"]
    }
    monkeypatch.delenv(FAMILIES_VARIABLE)  # families of tests have no density checks
    assert labels_of_all_families() <= verified


def labels_of_all_families():
    """Estimator and label of every way that a family scores."""
    spec = ImageSpec(channels=1, height=4, width=4, levels=2)
    stats = DataStats(mean=(0.0,), std=(1.0,))
    rows = Batch(torch.zeros(1, *spec.shape, dtype=torch.uint8), None, torch.arange(1))
    labels = set()
    for name in families():
        config = family(name).Config.tiny()
        net = config.model_dump(mode="json")
        model = ModelConfig(family=name, net=net, spec=spec, stats=stats).build()
        for options in (model.Score(), *model.Score.variants()):
            try:
                model.check_scorable(config, options)
            except Unscorable:
                continue
            score = model.log_prob(rows, rng_for(0, "s", range(1)), options)
            labels.add((score.estimator.split("-hmc")[0], score.label))
    assert len(labels) > 4
    return labels


def test_a_wrong_estimator_is_exit_1(capsys, monkeypatch):
    correct = iwae.iwae_bound
    monkeypatch.setitem(SUBJECTS, "density", lambda: run_checks([latents.checks]))
    monkeypatch.setattr(iwae, "iwae_bound", lambda w, k: (correct(w, k)[0] + 0.1, correct(w, k)[1]))
    assert main(["selftest", "density", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "failed"
    assert "wrong side" in err
