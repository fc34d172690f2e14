"""What the page says of class shares and of the feature space."""

from __future__ import annotations

import re

from genmod.report.model_page import ModelPage
from genmod.report.page import ReportContent, render

FACTS = {
    "samples": {"rows": 10, "sampler": "heun-18", "draws_from_p": True},
    "features": {"label": "pca-v1@1a2b3c4d", "rows": 10},
    "scores": None,
    "unscored": "not asked",
}
SHARES = {
    "classes": "in the reference's shares, only 3",
    "samples": 1_110,
    "of_samples": 2_000,
    "reference": 180,
    "of_reference": 181,
}


def page(**facts):
    pictures = {"samples.png": b"", "nearest.png": b""}
    model = ModelPage("edm", "diffusion", (), FACTS | facts, pictures)
    html = render(
        ReportContent(
            title="t",
            dims=64,
            levels=256,
            data=[],
            reference_png=b"",
            models=[model],
            provenance=[],
            tracking="nowhere",
        )
    )
    return " ".join(re.sub("<[^>]*>", " ", html).split())


def test_the_page_says_how_class_shares_were_made_equal():
    said = page(class_shares=SHARES)
    assert "1,110 of 2,000 samples with 180 of 181 real images" in said
    assert "They are compared in the reference&#39;s shares, only 3:" in said
    assert "class shares" not in page()
    assert "class shares" not in page(class_shares=None)


def test_the_page_says_why_there_is_no_classifier():
    features = FACTS["features"] | {"refused": "the training images have <one> class only"}
    wanted = "Principal components instead of a classifier: the training images have &lt;one&gt; class only."
    assert wanted in page(features=features)
    assert "instead of a classifier" not in page()


PAIR = {
    "sample": 7,
    "sample_key": "made<7>",
    "train_key": "real3",
    "named": True,
    "kind": "flipped",
    "p_value": 2e-7,
    "q_value": 2e-3,
    "distance": 0.25,
}
COPIES = {
    "samples": 10_000,
    "named": 1,
    "fdr": 0.05,
    "train_rows": 50_000,
    "held_out": 9_000,
    "train_against_others": 48_000,
    "shown": [PAIR, PAIR | {"sample_key": "made8", "named": False, "kind": "similar"}],
}


def test_the_page_names_copies_with_both_keys():
    said = page(memorisation=COPIES)
    assert "1 of 10,000 samples are copies of training images" in said
    assert "all 50,000 training images" in said
    assert "9,000 held-out images and 48,000 training images against the others" in said
    assert "made&lt;7&gt; real3 flipped yes" in said
    assert "made8 real3 similar no" in said
    none = page(memorisation=COPIES | {"named": 0, "shown": []})
    assert "None of 10,000 samples is named as a copy" in none
