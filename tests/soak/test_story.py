"""The story of a champion on real digits; ``python -m tests.soak.story`` tells it under kills too."""

from __future__ import annotations

import pytest

from pipelines.cli.program import main
from tests.soak.story import tell, write_recipe


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_better_model_is_promoted_and_bad_ones_are_refused(ray_session, tmp_path):
    recipe = str(write_recipe(tmp_path, "{}"))

    def command(words, is_done):
        assert main([words[0], "--recipe", recipe, *words[1:]]) == 0

    for line in tell(tmp_path, command):
        print(line)
