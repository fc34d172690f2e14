"""Classes of datasets that meet are matched by name."""

import pytest

from genmod.errors import ConfigError
from genmod.manifest.class_match import Classes, match_classes


def classes(*names, count=None):
    return Classes("/data", len(names) if count is None else count, names)


MODEL = Classes("model vae", 3, ("ant", "bee", "cow"))


def test_names_decide_not_numbers():
    assert match_classes(classes("ant", "bee", "cow"), MODEL) == ()
    assert match_classes(classes("cow", "bee"), MODEL) == (2, 1)
    assert match_classes(classes("bee", "dog"), MODEL, used={0}) == (1, -1)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            classes("bee", "dog"),
            "/data has the classes bee, dog, model vae has the classes ant, bee, cow; "
            "it lacks class 'dog'",
        ),
        (classes(count=3), "/data has 3 classes without names, model vae has the classes ant"),
    ],
)
def test_what_cannot_be_matched_is_refused(other, words):
    with pytest.raises(ConfigError, match=words) as error:
        match_classes(other, MODEL)
    assert "\n" not in str(error.value)


def test_numbers_match_only_where_neither_has_names():
    numbered = Classes("model vae", 3)
    assert match_classes(classes(count=3), numbered) == ()
    assert match_classes(classes(count=2), numbered) == ()
    for other in (classes(count=4), classes("a", "b", "c")):
        with pytest.raises(ConfigError, match="matched by name"):
            match_classes(other, numbered)
