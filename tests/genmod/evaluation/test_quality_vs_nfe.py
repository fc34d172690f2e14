"""The curve of quality against calls: a new diffusion model is a Gaussian, so more calls draw it better."""

from dataclasses import replace

import pytest
import torch

from genmod import units
from genmod.config import as_json
from genmod.errors import ConfigError
from genmod.evaluation.images import Images
from genmod.evaluation.meter import Reference
from genmod.evaluation.quality_vs_nfe import _labels, quality_curve
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig
from genmod.report.charts import line_chart
from genmod.report.model_page import ModelPage
from genmod.report.page import ReportContent, render
from genmod.rng import rng_for
from genmod.training.publish import publish_model
from genmod.training.state import TrainState

SPEC = ImageSpec(channels=1, height=8, width=8)
STD = 0.25


@pytest.fixture(scope="module")
def reference():
    noise = STD * rng_for(0, "real", range(600)).normal(*SPEC.shape)
    real = Images(units.to_pixels(noise), None)
    extractor = fit_extractor(FeaturesConfig(), SPEC, real.pixels_NCHW, None, seed=0)
    config = EvaluateConfig(curve_images=150)
    return Reference(real, real, "ab" * 32, extractor, config, seed=0)


def published(root, name):
    config = ModelConfig(
        family=name,
        net=as_json(family(name).Config.tiny()),
        spec=SPEC,
        stats=DataStats(mean=(0.0,), std=(STD,)),
    )
    model = config.build()
    state = TrainState(0, model, model, [])
    return publish_model(root, config, state, fingerprint="f", parents={}, metadata={})


def test_more_calls_draw_better(reference, tmp_path):
    made = published(str(tmp_path), "diffusion")
    points = quality_curve(str(tmp_path), made.digest, {"guidance": 1.0}, reference)
    curves = {point["curve"] for point in points}
    assert curves == {"heun", "ddim", "dpm_solver", "unipc"}
    for curve in curves:
        mine = [point for point in points if point["curve"] == curve]
        assert [point["nfe"] for point in mine] == sorted(point["nfe"] for point in mine)
    by_call = {(point["curve"], point["nfe"]): point["fd"] for point in points}
    for curve, times in (("heun", 10), ("ddim", 1.5)):
        assert by_call[curve, 5] > times * by_call[curve, 35]
    assert quality_curve(str(tmp_path), made.digest, {}, reference) == points


def test_the_report_shows_it(reference, tmp_path):
    made = published(str(tmp_path), "diffusion")
    few = replace(reference, config=EvaluateConfig(curve_images=10))
    points = quality_curve(str(tmp_path), made.digest, {}, few)
    metadata = {"quality_vs_nfe": points}
    curve = [(float(p["nfe"]), p["fd"]) for p in points if p["curve"] == "heun"]
    assert "<svg" in line_chart({"heun": curve}, "nfe", "fd")
    for model_facts, shown in ((metadata, True), ({"quality_vs_nfe": []}, False)):
        page = curve_section(model_facts)
        assert ("Quality against network evaluations" in page) is shown


def curve_section(metadata):
    """The page of one model of which nothing else is known."""
    return render(
        ReportContent(
            title="t",
            dims=64,
            levels=256,
            data=[],
            reference_png=b"",
            models=[ModelPage("edm", "diffusion", (), FACTS | metadata, PICTURES)],
            provenance=[],
            tracking="nowhere",
        )
    )


PICTURES = {"samples.png": b"", "nearest.png": b""}
FACTS = {
    "model": "edm",
    "nearest": [],
    "samples": {"rows": 10, "sampler": "heun-18", "draws_from_p": True, "seed": 0, "digest": "d"},
    "features": {"label": "pca", "digest": "e", "rows": 10},
    "reference": {"split": "test", "digest": "r", "rows": 10},
    "scores": None,
    "unscored": "not asked",
}


def test_a_model_without_a_choice_has_no_curve(reference, tmp_path):
    made = published(str(tmp_path), "vae")
    assert quality_curve(str(tmp_path), made.digest, {}, reference) == []
    assert all(
        options.Sample().nfe_sweep() == ()
        for options in map(family, families())
        if options.Sample().sampler == "ancestral"
    )


def test_another_model_is_refused(reference, tmp_path):
    published(str(tmp_path), "vae")
    with pytest.raises(ConfigError, match="the samples are of 000000000000; sample again"):
        quality_curve(str(tmp_path), "0" * 64, {}, reference)


def test_a_tuned_model_has_its_own_ladder():
    options = family("diffusion").Sample(solver="consistency", steps=2)
    assert [(curve, nfe) for curve, nfe, _ in options.nfe_sweep()] == [
        ("consistency", n) for n in (1, 2, 4)
    ]
    assert torch.equal(options.nfe_sweep()[1][2].sigmas(0.002, 80.0), options.sigmas(0.002, 80.0))


def test_labels_are_in_the_shares_of_the_reference():
    index_B, even_N = torch.arange(20), torch.arange(100) % 2
    rare_N = (torch.arange(100) % 10 == 0).long()
    assert _labels(index_B, 2, rare_N).tolist() == rare_N[:20].tolist()
    assert _labels(index_B, 2, even_N).tolist() == even_N[:20].tolist()
    assert _labels(index_B, 2, None).tolist() == even_N[:20].tolist()
    assert _labels(index_B, 0, rare_N) is None
