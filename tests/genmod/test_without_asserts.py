"""Checks of data from files hold under ``python -O``, which removes asserts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from genmod import storage
from genmod.config import canonical_json
from genmod.interface.model import DataStats
from genmod.interface.model_store import weights_bytes
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import ImageSpec, Manifest, publish, write_file
from genmod.training.checkpoint import Checkpoints
from genmod.training.ema import averaged
from genmod.training.optim import PhaseOptimiser
from genmod.training.plan import TrainConfig
from genmod.training.state import TrainState

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 6 << 30
"""Address space of the child, in which the largest forged net does not fit."""

CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from genmod.errors import GenmodError
from genmod.config import Config
from genmod.interface.model_store import load_model
from genmod.metrics.features import load_extractor
from genmod.receipts import load_receipt
from genmod.training.metric_log import read_metrics
from tests.genmod.test_without_asserts import checkpoints, new_state

class Note(Config):
    fingerprint: str

root, out = sys.argv[1], {}
calls = {
    "wide": lambda: load_model(f"{root}/wide"),
    "weights": lambda: load_model(f"{root}/nan"),
    "features": lambda: load_extractor(f"{root}/features"),
    "receipt": lambda: load_receipt(Note, root, "a", "f"),
    "metrics": lambda: [point.nimg for point in read_metrics(root)],
    "checkpoint": lambda: checkpoints(f"{root}/half").newest(new_state()),
}
assert False, "asserts are on"
for name, call in calls.items():
    try:
        out[name] = repr(call())
    except GenmodError as error:
        out[name] = type(error).__name__
print(json.dumps(out))
"""


def config():
    spec = ImageSpec(channels=1, height=8, width=8)
    net = family("vae").Config.tiny().model_dump(mode="json")
    return ModelConfig(family="vae", net=net, spec=spec, stats=DataStats(mean=(0.0,), std=(0.5,)))


def checkpoints(root):
    return Checkpoints(root, "f", config())


def new_state():
    model = config().build(1)
    optimisers = [PhaseOptimiser(model, p, TrainConfig().optim) for p in model.phases()]
    return TrainState(0, model, averaged(model), optimisers)


def publish_forged(root, kind, contents):
    files = tuple(write_file(root, name, data) for name, data in contents.items())
    publish(root, Manifest(kind=kind, fingerprint="f", files=files))


@pytest.fixture
def forged(tmp_path):
    """A folder with files of every kind that say what is not so."""
    root, weights = str(tmp_path), weights_bytes(config().build(1))
    values = config().model_dump(mode="json")
    wide = values | {"net": values["net"] | {"hidden": [65536, 65536]}}
    publish_forged(
        f"{root}/wide",
        "model",
        {"config.json": canonical_json(wide), "ema.safetensors": weights},
    )
    tensors = safetensors.load(weights)
    tensors[min(tensors)].fill_(torch.nan)
    nan = safetensors.save(tensors)
    publish_forged(
        f"{root}/nan", "model", {"config.json": canonical_json(values), "ema.safetensors": nan}
    )
    publish_forged(f"{root}/features", "features", {"config.json": b"[]"})
    storage.write_bytes(f"{root}/receipts/a.json", b'{"fingerprint": 1}')
    log = f"{root}/metrics/{0:012d}-{'a' * 12}/000000.jsonl"
    storage.write_bytes(log, b'[]\n{"nimg": 8, "metrics": {}, "timing": {}}\n{"nimg": -1}\n')
    state = new_state()
    for nimg in (8, 16):
        state.nimg = nimg
        if nimg == 16:
            next(iter(state.model.parameters())).data.fill_(torch.nan)
        checkpoints(f"{root}/half").save(state.snapshot())
    return root


@pytest.mark.slow
@pytest.mark.long
def test_readers_refuse_without_asserts_too(forged):
    command = [sys.executable, "-O", "-c", CHILD, forged, str(MEMORY_BYTES)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "wide": "DataError",
        "weights": "DataError",
        "features": "DataError",
        "receipt": "DataError",
        "metrics": "[8]",
        "checkpoint": "8",
    }
