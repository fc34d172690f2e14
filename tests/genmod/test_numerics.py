"""Numeric classes: other instruction sets are other classes; portable processes compute the same bits."""

import json
import os
import subprocess
import sys

import pytest

from genmod.errors import ConfigError
from genmod.manifest import check_same_class
from genmod.numerics import PORTABLE_VARIABLES, numeric_class
from tests.processes import TIMEOUT_S

PROGRAM = """
import json, torch
from genmod.generation.labels import LabelRequest
from genmod.generation.synthetic import SampleGenerator
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import ImageSpec
from genmod.numerics import numeric_class
from genmod.rng import rng_for
import hashlib
torch.set_num_threads(1)
spec = ImageSpec(channels=1, height=16, width=16, classes=3)
net = family("diffusion").Config.tiny().model_dump()
config = ModelConfig(family="diffusion", net=net, spec=spec, stats=DataStats(mean=(0.0,), std=(0.5,)))
model = config.build(1).eval()
torch.manual_seed(0)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape), alpha=0.1)
generator = SampleGenerator(model, family("diffusion").Sample(), LabelRequest(3), 7, 8)
with torch.no_grad():
    index_B = torch.arange(8)
    x_BCHW = model.sample(index_B % 3, rng_for(7, "sample", index_B), generator.options)
pixels = generator.micro_batch_of(0).batch.pixels_BCHW
print(json.dumps([numeric_class("cpu"), hashlib.sha256(x_BCHW.numpy().tobytes()).hexdigest(),
                  hashlib.sha256(pixels.numpy().tobytes()).hexdigest()]))
"""


def computed(**variables):
    """Numeric class, digest of the values and digest of the pixels in a process with these variables."""
    environment = {
        name: value for name, value in os.environ.items() if name not in PORTABLE_VARIABLES
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | variables, timeout=TIMEOUT_S,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_other_kernels_are_another_class_and_portable_ones_are_the_same_everywhere():
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    limits = [("default", "SSE41"), ("avx2", "AVX2")]
    plain = [computed(**dict(zip(names, limit, strict=True))) for limit in limits]
    assert plain[0][0] != plain[1][0]
    assert plain[0][1] != plain[1][1]  # so the test would notice
    portable = [computed(**PORTABLE_VARIABLES, OMP_NUM_THREADS=count) for count in ("1", "2")]
    assert portable[0] == portable[1]
    assert portable[0][0].startswith("cpu portable")


def test_a_strict_dataset_has_the_class_of_its_first_worker(tmp_path):
    own = numeric_class("cpu")
    for _ in range(2):
        check_same_class(str(tmp_path), own, section="sample")
    with pytest.raises(
        ConfigError,
        match=r"run on nodes of one kind .* or set score\.numerics",
    ):
        check_same_class(str(tmp_path), "cpu other", section="score")
    with pytest.raises(ConfigError, match="numeric class 'cpu older'"):
        check_same_class(str(tmp_path), own, ["cpu older"], section="sample")
