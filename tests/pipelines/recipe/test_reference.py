"""The reference of recipe keys is complete and up to date."""

from pathlib import Path

import pytest

from genmod.interface.external import FAMILIES_VARIABLE
from pipelines.recipe.reference import BEGIN, END, keys_without_meaning, markdown, page_with_keys

PAGE = Path(__file__).parents[3] / "pipelines" / "recipes" / "README.md"


def test_every_key_has_a_meaning():
    assert keys_without_meaning() == []


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.delenv(FAMILIES_VARIABLE, raising=False)
    page = PAGE.read_text()
    assert page == page_with_keys(page), f"run python -m pipelines.recipe.reference {PAGE.name}"


def test_keys_of_sections_models_and_families_are_listed():
    text = markdown()
    for key in ("`root`", "`train.optim.lr`", "`promote.rules`", "`net.z_dim`", "`sample.solver`"):
        assert f"| {key} |" in text
    assert "### model.NAME.net of family vae" in text


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="expected the markers"):
        page_with_keys("no keys here")
    assert page_with_keys(f"a {BEGIN} old {END} z").endswith(f"{END} z")
