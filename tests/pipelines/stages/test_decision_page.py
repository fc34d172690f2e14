"""The page of a decision, from real decisions and ledgers, without Ray and MLflow."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from genmod import storage
from genmod.evaluation.differences import MetricDifference
from genmod.manifest import Manifest, load_manifest, publish
from pipelines.commands.champion_actions import ChampionAction, change_champions
from pipelines.stages.decision_words import Retrained, occasion
from pipelines.stages.decisions import MeasuredChampion, champion_folder
from pipelines.stages.promote import promote, promote_result
from tests.pipelines.stages.champion_world import World, metric


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.texts = html, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "main":
            self.texts.clear()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, str(tmp_path / "root"), "{enabled: false}")


def decide(world, number, measure=None, retrained=None):
    """Decide on a version; where its page is."""
    with world.command(number) as context:
        return promote(context, "vae", measure, retrained).page


def page(url):
    return Page(storage.read_bytes(url).decode())


def paired(gain, stderr):
    """Measures a champion with a gain of samples with the same noise."""
    difference = MetricDifference(
        metric="fd[pca@1a2b3c4d]", better="lower", gain=gain, stderr=stderr, freedom=9, paired=True
    )
    return lambda champion: MeasuredChampion((metric("fd", 20),), (difference,))


def test_a_page_says_what_was_decided_why_and_what_became_of_it(world):
    first = world.add(1, 20, shown={})
    second = world.add(2, 10, shown={"monitor_events": []})
    text = page(decide(world, 1)).text
    assert f"The candidate, model {first[:12]}, is to become the champion." in text
    assert "It is the first champion." in text
    assert "first champion: every metric is within its limits" in text
    assert "not counted: it compares with no champion" in text
    text = page(decide(world, 2, paired(10, 0.5))).text
    assert (
        f"model {second[:12]}, is to become the champion. It replaces model {first[:12]}." in text
    )
    assert re.search(r"Applied by entry 2 of the promotion ledger, 20\d\d-.* UTC, by .*@", text)
    assert "better by more than 1; gain 10 with standard error 0.5" in text
    assert "One decision at most 0.05 %" in text
    assert "All planned decisions at most 5 %" in text
    assert "Equal candidates called worse at most 5 %" in text
    assert "Retrained" not in text
    assert "number 1 of 100 planned with these reference rows; 99 are left" in text
    assert "the monitors of the training reported nothing" in text
    for number, outcome in ((3, "is not promoted"), (4, "is not promoted")):
        world.add(number, 10 + number, shown={})
        text = page(decide(world, number, paired(-number, 0.1))).text
        assert (
            f"{outcome}: model {second[:12]} stays the champion. There was nothing to apply."
            in text
        )
    assert "97 are left" in text
    assert "During training : at 9,000 images: coverage fell" in text


def test_a_page_has_the_reason_of_the_retrain_and_both_tests(world):
    world.add(1, 20, shown={})
    world.add(2, 10, shown={})
    decide(world, 1)
    fresh = [
        MetricDifference(metric=name, better="lower", gain=gain, stderr=0.5, freedom=9, rows=100)
        for name, gain in (("kid[pca@1a2b3c4d]", 0.25), ("fd[pca@1a2b3c4d]", -4.0))
    ]
    measure = paired(10, 0.5)
    retrained = Retrained(version=2, reason="20 rows of version 1 were <b>removed</b>")
    url = decide(
        world, 2, lambda champion: replace(measure(champion), fresh=fresh), retrained=retrained
    )
    text = page(url).text
    assert (
        "Why Retrained as version 2 of the dataset: 20 rows of version 1 were <b>removed</b>."
        in text
    )
    assert "by the test rows of version 2 of the dataset. They decide nothing" in text
    # Student's t with 9 degrees of freedom: 2.2622
    ruled, other = (
        r"fd\[pca@1a2b3c4d\] 10\.00 ± 0\.500 better -4\.00 ± 0\.500 -5\.13 … -2\.87 worse",
        r"kid\[pca@1a2b3c4d\] no rule 0\.250 ± 0\.500 -0\.881 … 1\.38 no difference",
    )
    assert re.search(f"{ruled}.*{other}", text), "the metric that has a rule comes first"
    assert "newest" not in page(decide(world, 1)).text
    decision = load_manifest(Manifest, f"{world.at(2)}/decision/vae", "decision")
    assert decision.metadata["retrain"] == retrained.model_dump()
    assert occasion(decision).lines() == [
        "retrained as version 2 of the dataset: 20 rows of version 1 were <b>removed</b>",
        "on the test rows of version 2, which decide nothing: fd[pca@1a2b3c4d]: worse; gain -4 with "
        "standard error 0.5",
    ]


def test_a_rule_has_its_gain_its_margins_and_its_interval(world):
    world.add(1, 20, shown={})
    world.add(2, 18.5, shown={})
    decide(world, 1)
    shown = page(decide(world, 2, paired(1.5, 0.25)))
    quantile = (
        4.7809  # of Student's t with 9 degrees of freedom at the error of one decision, 0.0005
    )
    low, high = 1.5 - quantile * 0.25, 1.5 + quantile * 0.25
    row = r"18\.50 20\.00 1\.50 ± 0\.250 (.*?); tolerated loss 1\.00; a gain counts from 1\.00 undecided"
    assert re.search(f"Fréchet distance .* {row}", shown.text)[1] == f"{low:.3f} … {high:.2f}"
    assert "a gain of more than 1 is not shown" in shown.text
    assert "In doubt the champion stays" in shown.text
    power = 0.8834  # quantile of 0.8
    assert f"undecided {1 + (quantile + power) * 0.25:.2f}" in shown.text
    (chart,) = re.findall(r'<svg class="gain".*?</svg>', shown.html)
    at = {k: float(v) for k, v in re.findall(r'class="(win|zero|interval)" x1?="([^"]*)"', chart)}
    assert at["zero"] < at["interval"] < at["win"]


def test_samples_at_the_same_place_are_pairs_if_their_noise_is_the_same(world):
    world.add(1, 20, shown={})
    world.add(2, 10, shown={})
    other = {"samples": {"rows": 100, "seed": 1, "labels": "none"}}
    world.add(3, 5, shown=other)
    assert "No samples of a champion" in page(decide(world, 1)).text
    same = page(decide(world, 2))
    assert "images at the same place are a pair" in same.text
    grids = [attrs["alt"] for tag, attrs in same.tags if tag == "img" and "grid" in attrs["alt"]]
    assert [re.sub("model .*", "", alt) for alt in grids] == [
        "grid of samples of the Champion, ",
        "grid of samples of the Candidate, ",
    ]
    assert "sampled with different noise" in page(decide(world, 3)).text


def test_a_page_shows_copies_extremes_curves_and_provenance(world):
    first, second = world.add(1, 20, shown={}), world.add(2, 10, shown={})
    decide(world, 1)
    with world.command(2) as context:
        root = f"{champion_folder(context, 'vae', first)}/comparison"
    comparison = publish(root, Manifest(kind="comparison", fingerprint="c"))
    shown = page(decide(world, 2))
    assert "1 of 100 samples are copies of training images" in shown.text
    assert "made0 real0 flipped yes" in shown.text
    assert "Most likely, log p in nats -90.50 -91.50" in shown.text
    assert "Least likely, log p in nats -1,049.5" in shown.text
    assert [tag for tag, _ in shown.tags].count("polyline") == 8  # losses and solvers of two models
    with world.command() as context:
        ledger = f"{context.ledger_url}/vae/promotion-000002.json"
    digests = {a["title"] for tag, a in shown.tags if tag == "code" and "title" in a}
    decision = load_manifest(Manifest, f"{world.at(2)}/decision/vae", "decision").digest
    assert {first, second, comparison.digest, decision} < digests
    assert len(digests) == 7
    assert ledger in shown.text


def test_a_page_is_no_part_of_its_decision_and_is_written_again_if_it_is_missing(world, capsys):
    world.add(1, 20, shown={})
    url = decide(world, 1)
    root = f"{world.at(1)}/decision/vae"
    assert url == f"{root}/decision.html"
    digest = load_manifest(Manifest, root, "decision").digest
    before = storage.read_bytes(url)
    storage.write_bytes(url, b"older")
    assert decide(world, 1) == url
    assert storage.read_bytes(url) == b"older"
    storage.remove(url)
    with world.command(1) as context:
        applied = promote(context, "vae")
        result = promote_result(context, "promote", {"vae": applied}, root, 0.0)
    assert not applied.is_new
    assert result["decisions"]["vae"]["page"] == url
    assert f"  vae: see {url}" in capsys.readouterr().err
    assert storage.read_bytes(url) == before
    assert load_manifest(Manifest, root, "decision").digest == digest


def test_a_decision_that_is_made_again_has_its_own_page(world):
    world.add(1, 20, shown={})
    world.add(2, 10, shown={})
    world.add(3, 9.9, shown={})
    decide(world, 1)
    first = decide(world, 3)
    decide(world, 2)
    with world.command() as context:
        change_champions(
            context, ChampionAction("pin", first_digest(world, 2), "it <i>is</i> best")
        )
    assert page(first).text.count("Applied by entry 2") == 1
    world.add(4, 1, shown={})
    text = page(decide(world, 4)).text
    assert (
        "Not applied: entry 3 of the promotion ledger pins the champion: it <i>is</i> best" in text
    )


def first_digest(world, number):
    return load_manifest(Manifest, f"{world.at(number)}/models/vae", "model").digest


def test_what_files_name_is_only_text_and_the_policy_allows_no_requests(world):
    hostile = '"><script>alert(1)</script><img src=http://x/>'
    copies = {"named": 0, "fdr": 0.05, "samples": 1, "train_rows": 1, "held_out": 1}
    copies |= {"train_against_others": 1, "shown": []}
    shown = {
        "family": hostile,
        "monitor_events": [hostile],
        "memorisation": copies,
        "extremes": {end: [{"key": hostile, "nats": 1.0}] for end in ("most", "least")},
    }
    world.add(1, 20, shown=shown)
    found = page(decide(world, 1))
    assert found.text.count(hostile) == 2
    names = {tag for tag, _ in found.tags}
    assert names & {"script", "link", "iframe", "object", "form", "base"} == set()
    sources = [a[k] for _, a in found.tags for k in ("src", "href", "xlink:href") if k in a]
    assert all(re.match(r"data:image/png;base64,|#", source) for source in sources)
    (policy,) = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not any(key.startswith("on") or key == "style" for _, a in found.tags for key in a)


def test_a_decision_stands_without_its_page(world, capsys):
    world.add(1, 20)  # without pictures
    with world.command(1) as context:
        applied = promote(context, "vae")
    assert (applied.page, applied.is_new) == ("", True)
    assert "vae: the decision has no page: " in capsys.readouterr().err
    assert world.entries() == ["promotion-000001.json"]
    assert not storage.exists(f"{world.at(1)}/decision/vae/decision.html")


def act(world, kind, version="", reason=""):
    with world.command() as context:
        change_champions(context, ChampionAction(kind, version, reason))


def test_pages_say_what_became_of_the_candidate_after_a_rollback_or_a_pin(world, capsys):
    first, second = world.add(1, 20, shown={}), world.add(2, 10, shown={})
    pages = [decide(world, 1), decide(world, 2)]
    assert re.search(
        r"more about the candidate: entry 2, 20.* UTC, promote by", page(pages[0]).text
    )
    digests = [load_manifest(Manifest, url.rpartition("/")[0], "decision").digest for url in pages]
    act(world, "rollback", reason="worse <b>digits</b>")
    for url in pages:
        text = page(url).text
        assert "entry 3, 20" in text
        assert "rollback by" in text
        assert f"worse <b>digits</b>. The champion after entry 3 is model {first[:12]}." in text
    assert "Applied by entry 2" in page(pages[1]).text
    act(world, "pin", second, "best")
    assert "pin by" in page(pages[1]).text
    assert f"The champion after entry 4 is model {second[:12]}." in page(pages[0]).text
    act(world, "unpin")
    assert "unpin by" in page(pages[1]).text
    found = [load_manifest(Manifest, url.rpartition("/")[0], "decision").digest for url in pages]
    assert found == digests


def test_a_page_by_other_rules_or_never_written_stays_as_it_is(world):
    world.add(1, 20, shown={})
    second = world.add(2, 10, shown={})
    pages = [decide(world, 1), decide(world, 2)]
    storage.remove(pages[0])
    before = storage.read_bytes(pages[1])
    with world.command(1, "promote.false_promotion=0.2") as context:
        change_champions(context, ChampionAction("rollback"))
    assert storage.read_bytes(pages[1]) == before
    assert not storage.exists(pages[0])
    act(world, "pin", second, "back")
    assert "rollback by" in page(pages[1]).text
