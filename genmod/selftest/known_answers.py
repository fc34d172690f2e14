"""What a device must compute: random bits, a SHA-256, images and log-likelihoods of tiny models.

Random bits and digests are the same on every device. Models agree bit by bit within a numeric class (see
:mod:`genmod.numerics`); for some classes the file next to this module has what they compute. ``python -m
genmod.selftest.known_answers`` adds this machine's class to it, and must be run when a model's code changes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmod.config import Config, as_json
from genmod.errors import Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import PACKAGE, ModelConfig, family
from genmod.manifest import ImageSpec
from genmod.numerics import numeric_class
from genmod.rng import philox4x32, philox4x32_torch, rng_for

_FILE = "known_answers.json"

_ROWS = 2
_SPEC = ImageSpec(channels=1, height=8, width=8, classes=2)
_STATS = DataStats(mean=(-0.1,), std=(0.6,))

PHILOX_VECTORS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
"""Counter, key and result of Philox4x32-10: the known answers of Random123 (Salmon et al. 2011)."""

_SHA256_BYTES = 1_000_000
_SHA256 = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
"""SHA-256 of a million letters a (FIPS 180-2, appendix B.3)."""


class DeviceAnswers(Config):
    """What one device computed."""

    device: str
    """``cpu`` or ``cuda:N``."""
    numerics: str
    """The numeric class."""
    wrong: tuple[str, ...] = ()
    """Answers that are wrong on any device: ``philox``, ``sha256``, and ``repeat NAME`` for an answer that
    differed when it was computed again."""
    digests: dict[str, str]
    """``FAMILY/image`` and ``FAMILY/log-likelihood`` -> SHA-256 of the values."""


def compute_answers(device: str) -> DeviceAnswers:
    """Compute all answers on a device, with one thread on a CPU.

    Args:
        device: ``cpu`` or ``cuda:N``.
    """
    place = torch.device(device)
    wrong = [] if _philox_holds(place) else ["philox"]
    if hashlib.sha256(b"a" * _SHA256_BYTES).hexdigest() != _SHA256:
        wrong.append("sha256")
    with _reproducible(place):
        numerics = numeric_class(place.type)
        digests, again = _model_digests(place), _model_digests(place)
    wrong += [f"repeat {name}" for name, digest in digests.items() if again[name] != digest]
    return DeviceAnswers(device=device, numerics=numerics, wrong=tuple(wrong), digests=digests)


@cache
def recorded_answers() -> Mapping[str, Mapping[str, str]]:
    """Numeric class -> name of an answer -> digest, of the classes that were recorded."""
    return json.loads((files("genmod.selftest") / _FILE).read_text())


def _philox_holds(device: torch.device) -> bool:
    """Whether both implementations give the known vectors on a device."""
    for counter, key, expected in PHILOX_VECTORS:
        counter_4N = torch.tensor(counter, dtype=torch.int64, device=device)[:, None].repeat(1, 4)
        for function in (philox4x32, philox4x32_torch):
            words_4N = function(counter_4N, key).cpu()
            if any(tuple(column) != expected for column in words_4N.T.tolist()):
                return False
    return True


@contextmanager
def _reproducible(device: torch.device) -> Generator[None]:
    """One thread, the current device, and kernels that give the same bits again."""
    threads = torch.get_num_threads()
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
        else:
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def _model_digests(device: torch.device) -> dict[str, str]:
    """An image and a log-likelihood of a tiny model of each family of this package."""
    package = importlib.import_module(PACKAGE)
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__[:1]))
    digests: dict[str, str] = {}
    for name in names:
        digests |= {f"{name}/{key}": digest for key, digest in _of_family(name, device).items()}
    return digests


def _of_family(name: str, device: torch.device) -> dict[str, str]:
    """Digests of one tiny model. One whose density takes a fit has no log-likelihood here."""
    kind = family(name)
    config = kind.Config.tiny()
    model = ModelConfig(family=name, net=as_json(config), spec=_SPEC, stats=_STATS).build()
    _fill(model)
    model.eval().to(device)
    labels_B = torch.arange(_ROWS, device=device)
    rng = rng_for(0, "known-answers", range(_ROWS), device)
    digests: dict[str, str] = {}
    sweep = kind.Sample().nfe_sweep()
    fastest = sweep[0][2] if sweep else kind.Sample()
    digests["image"] = _digest(model.sample(labels_B, rng.fold("sample"), fastest))
    options, _ = kind.Score.tiny().probe()
    try:
        kind.check_scorable(config, options)
        if options.prepares:
            return digests
        pixels_BCHW = rng.fold("pixels").integers(256, *_SPEC.shape).to(torch.uint8)
        batch = Batch(pixels_BCHW, labels_B, rng.index_B)
        digests["log-likelihood"] = _digest(
            model.log_prob(batch, rng.fold("score"), options).nats_B
        )
    except Unscorable:
        pass
    return digests


def _fill(model: torch.nn.Module) -> None:
    """Weights that are the same bits on every machine: torch's own initialization is not."""
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(model.named_parameters())):
            scale = 1.0 / max(1, weight[0].numel() if weight.ndim > 1 else weight.numel()) ** 0.5
            values = rng_for(0, "known-answers/weights", [number]).uniform(weight.numel())
            weight.copy_(((2 * values - 1) * scale).reshape(weight.shape))


def _digest(values: Tensor) -> str:
    """SHA-256 of the values' bits."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    return hashlib.sha256(array.tobytes()).hexdigest()


def record_answers() -> None:
    """Record what this machine's CPU computes."""
    answers = compute_answers("cpu")
    path = Path(__file__).with_name(_FILE)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[answers.numerics] = answers.digests
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record_answers()
