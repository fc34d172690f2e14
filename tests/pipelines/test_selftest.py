"""``genmod selftest density``: the command that people and CI run."""

import json

import pytest

from genmod.likelihood import iwae
from genmod.selftest import latents
from genmod.selftest.density import run
from pipelines.cli import main
from pipelines.selftest import SUBJECTS


@pytest.mark.slow
def test_every_estimator_holds(capsys):
    assert main(["selftest", "density", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == ("selftest", "done")
    assert len(answer["checks"]) == err.count("ok  ") > 10
    assert "FAIL" not in err
    assert {"iwae", "probability-flow", "change-of-variables"} <= {
        check["estimator"].split(",")[0].split(" ")[0] for check in answer["checks"]
    }


def test_a_wrong_estimator_is_exit_1(capsys, monkeypatch):
    right = iwae.bound
    monkeypatch.setitem(SUBJECTS, "density", lambda: run((latents.checks,)))
    monkeypatch.setattr(iwae, "bound", lambda w, k: (right(w, k)[0] + 0.1, right(w, k)[1]))
    assert main(["selftest", "density", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "failed"
    assert "wrong side" in err
