"""Contract tests: what every family promises, asked of every file in genmod/models alike.

No test here knows which family it has. Weights are float64 where numbers are compared.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import torch as safetensors

from genmod import units
from genmod.config import as_json, parse
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel, Problem
from genmod.interface.model_store import load_model, weights_bytes
from genmod.interface.options import FamilyConfig, SampleOptions
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.nets import linear
from genmod.rng import rng_for
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.validation import SampleGrid, Validation
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from genmod.world import Group, SingleProcess, World

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    family: str
    spec: ImageSpec
    variant: int | None = None
    """Which of the family's variants; None for its tiny model."""

    def __str__(self) -> str:
        labels = f"{self.spec.classes}-classes" if self.spec.classes else "unlabelled"
        variant = "" if self.variant is None else f"-variant{self.variant}"
        return f"{self.family}-{'rgb' if self.spec.channels == 3 else 'grey'}-{labels}{variant}"

    @property
    def net(self) -> FamilyConfig:
        config = family(self.family).Config
        return config.tiny() if self.variant is None else config.variants()[self.variant]

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            family=self.family,
            net=as_json(self.net),
            spec=self.spec,
            stats=DataStats(mean=(0.0,) * self.spec.channels, std=(0.5,) * self.spec.channels),
        )

    def build(self) -> GenerativeModel:
        return self.config.build(3).double()

    def rows(self, index) -> Batch:
        """Images that depend on their index alone: noise below, bright above, by label."""
        rng = rng_for(11, "laws/data", index)
        labels_B = rng.fold("label").integers(max(1, self.spec.classes))
        pixels = rng.integers(100, *self.spec.shape)
        pixels[:, :, : self.spec.height // 2] += 60 + 40 * labels_B[:, None, None, None]
        labelled = labels_B if self.spec.classes else None
        return Batch(pixels.to(torch.uint8), labelled, rng.index_B)


SPECS = (
    ImageSpec(channels=1, height=8, width=8, classes=3),
    ImageSpec(channels=3, height=8, width=8),
)


def can_be_sampled(case: Case, options: SampleOptions) -> bool:
    try:
        family(case.family).check_sampling(case.net, options, case.spec)
    except ConfigError:
        return False
    return True


TINY = [Case(name, spec) for name in families() for spec in SPECS]
CASES = TINY + [
    Case(name, SPECS[0], variant)
    for name in families()
    for variant in range(len(family(name).Config.variants()))
]
SCORES = [
    pytest.param(case, options, id=f"{case}-score{number}")
    for case in CASES
    for number, options in enumerate(
        (family(case.family).Score.tiny(), *family(case.family).Score.variants())
    )
    if number == 0 or case.spec.channels == 1
]
SAMPLES = [
    pytest.param(case, options, id=f"{case}-sample{number}")
    for case in CASES
    for number, options in enumerate(
        (family(case.family).Sample(), *family(case.family).Sample.variants())
    )
    if can_be_sampled(case, options)
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_family = pytest.mark.parametrize("name", families())

CONFIG = TrainConfig(
    nimg=48,
    batch=8,
    optim=OptimConfig(lr=3e-3, warmup_nimg=8),
    ema_halflife_nimg=16,
    ema_rampup=None,
    log_every_nimg=16,
    validate_every_nimg=24,
    grid_every_nimg=24,
    checkpoint_every_nimg=8,
)


def stream_of(case: Case, world: World, start: int, stop: int | None = None):
    share = CONFIG.batch // world.size
    for nimg in itertools.count(start, CONFIG.batch):
        if stop is not None and nimg >= stop:
            raise ConnectionError("the power failed")
        first = nimg + world.rank * share
        yield case.rows(range(first, first + share))


def run(case: Case, world: World, config: TrainConfig = CONFIG, root=None, stop=None) -> TrainState:
    """Train; with a root, also metrics, checkpoints and monitors."""
    model, plan = case.build(), Plan(config, seed=5)
    if root is not None:
        checkpoints = Checkpoints(root, "laws", case.config)
        validation = Validation(case.rows(range(1000, 1080)), 5, "fp32")
        plan = Plan(config, 5, root, checkpoints, validation, SampleGrid(4, 5, model.Sample()))
    return train(model, lambda start: stream_of(case, world, start, stop), world, plan)


@cache
def straight(case: Case) -> TrainState:
    return run(case, SingleProcess())


def trained(case: Case) -> GenerativeModel:
    return copy.deepcopy(straight(case).ema)


def same(state: TrainState, other: TrainState, rtol: float) -> None:
    for mine, theirs in ((state.model, other.model), (state.ema, other.ema)):
        values = dict(theirs.named_parameters())
        assert values.keys() == dict(mine.named_parameters()).keys()
        for name, value in mine.named_parameters():
            torch.testing.assert_close(value, values[name], rtol=rtol, atol=rtol * 1e-2, msg=name)


@every_case
def test_resume_in_the_middle_is_the_straight_run_bitwise(case, tmp_path):
    root = str(tmp_path)
    with pytest.raises(ConnectionError):
        run(case, SingleProcess(), root=root, stop=24)
    assert Checkpoints(root, "laws", case.config).nimgs() == [16, 24]
    resumed = run(case, SingleProcess(), root=root)
    assert resumed.files() == straight(case).files()
    points = {point.nimg: point.metrics for point in read_metrics(root)}
    assert list(points) == [16, 24, 32, 48]


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for number, case in enumerate(CASES):
            state = run(case, Group(CPU), root=f"{folder}/{number}")
            for name, weights in (("raw", state.model), ("ema", state.ema)):
                with open(f"{folder}/{number}-{name}-{rank}", "wb") as stream:
                    stream.write(weights_bytes(weights))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    mp.start_processes(one_of_two, args=(str(folder),), nprocs=2, start_method="spawn")
    return folder


@every_case
def test_two_ranks_are_one(case, two_ranks, tmp_path):
    number = CASES.index(case)
    for name, weights in (("raw", straight(case).model), ("ema", straight(case).ema)):
        ranks = [(two_ranks / f"{number}-{name}-{rank}").read_bytes() for rank in range(2)]
        assert ranks[0] == ranks[1]
        theirs = safetensors.load(ranks[0])
        for key, value in weights.state_dict().items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-8, msg=key)
    alone = run(case, SingleProcess(), root=str(tmp_path))
    assert alone.nimg == 48
    for mine, theirs in zip(
        read_metrics(str(tmp_path)), read_metrics(f"{two_ranks}/{number}"), strict=True
    ):
        assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-5, abs=1e-7)
    for nimg in (24, 48):
        picture = f"grids/{nimg:012d}.png"
        theirs = (two_ranks / str(number) / picture).read_bytes()
        assert (tmp_path / picture).read_bytes() == theirs


@every_case
def test_accumulation_changes_nothing(case):
    parts = run(case, SingleProcess(), CONFIG.model_copy(update={"accumulate": 2}))
    same(parts, straight(case), rtol=1e-5)


def _counted(times, used):
    def call(*inputs):
        used.append(1)
        return times(*inputs)

    return call


@every_case
def test_own_products_change_nothing(case, monkeypatch):
    """The linear layers of these nets are too small for them otherwise."""
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(linear, "DTYPES", (torch.float64,))
    used: list[int] = []
    monkeypatch.setattr(linear, "multiply", _counted(linear.multiply, used))
    same(run(case, SingleProcess()), straight(case), rtol=1e-9)
    assert used or not any(isinstance(m, linear.Linear) for m in case.build().modules())


@every_case
def test_channels_last_changes_nothing(case):
    same(
        run(case, SingleProcess(), CONFIG.model_copy(update={"channels_last": True})),
        straight(case),
        1e-5,
    )


@every_case
def test_bf16_is_near_fp32(case):
    plain, config = case.config.build(3), CONFIG.model_copy(update={"precision": "bf16"})
    states = [
        train(
            copy.deepcopy(plain),
            lambda start: stream_of(case, SingleProcess(), start),
            SingleProcess(),
            Plan(c, 5),
        )
        for c in (CONFIG, config)
    ]
    before = torch.cat([p.detach().flatten() for p in plain.parameters()])
    fp32, bf16 = (
        torch.cat([p.detach().flatten() for p in state.model.parameters()]) - before
        for state in states
    )
    assert all(p.dtype == torch.float32 for p in states[1].model.parameters())
    assert not torch.equal(bf16, fp32)
    assert float(torch.cosine_similarity(bf16, fp32, dim=0)) > 0.8


@every_case
def test_each_phase_moves_its_own_parameters_and_no_other(case):
    phases = case.build().phases()
    owners = [name for phase in phases for name in case.build().parameters_of(phase)]
    assert sorted(owners) == sorted(name for name, _ in case.build().named_parameters())
    for phase in phases:
        still = {other.name: {"lr": 1e-30} for other in phases if other != phase}
        state = run(case, SingleProcess(), CONFIG.model_copy(update={"phase_optim": still}))
        before = dict(case.build().named_parameters())
        mine = state.model.parameters_of(phase)
        for name, value in state.model.named_parameters():
            moved = float((value - before[name]).detach().abs().max())
            assert moved > 1e-6 if name in mine else moved < 1e-20, (phase.name, name, moved)


@every_case
def test_average_moves_and_lags(case):
    state, before = straight(case), dict(case.build().named_parameters())
    raw = dict(state.model.named_parameters())
    for name, value in state.ema.named_parameters():
        assert not torch.equal(value, before[name]), name
        assert not torch.equal(value, raw[name]), name
    at_once = run(case, SingleProcess(), CONFIG.model_copy(update={"ema_halflife_nimg": 0}))
    assert weights_bytes(at_once.ema) == weights_bytes(at_once.model)


@every_family
def test_each_case_and_each_way_to_sample_is_asked(name):
    label_request = [param.values for param in SAMPLES if param.values[0].family == name]
    assert {str(case) for case, _ in label_request} == {
        str(case) for case in CASES if case.family == name
    }
    ways = (family(name).Sample(), *family(name).Sample.variants())
    assert all(any(options == way for _, options in label_request) for way in ways)


@pytest.mark.parametrize(("case", "options"), SAMPLES)
def test_samples_do_not_depend_on_the_batch(case, options):
    model = trained(case)
    rng = rng_for(1, "laws/sample", range(6))
    labels_B = rng.index_B % case.spec.classes if case.spec.classes else None
    together = model.sample(labels_B, rng, options)
    assert together.shape == (6, *case.spec.shape)
    assert together.isfinite().all()
    assert together.abs().max() <= 1 + 1e-12
    assert (together[0] - together[3]).abs().max() > 1e-3
    for some in (slice(0, 1), slice(1, 6), torch.tensor([4, 2])):
        apart = model.sample(None if labels_B is None else labels_B[some], rng.rows(some), options)
        torch.testing.assert_close(apart, together[some], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("case", "options"), SCORES)
def test_scores_do_not_depend_on_the_batch(case, options):
    model, batch = trained(case), case.rows(range(200, 204))
    rng = rng_for(1, "laws/score", batch.index_B)
    try:
        model.check_scorable(model.config, options)
    except Unscorable:
        with pytest.raises(Unscorable):
            model.log_prob(batch, rng, options)
        return
    together = model.log_prob(batch, rng, options)
    assert together.nats_B.dtype == together.stderr_B.dtype == torch.float64
    assert together.nats_B.isfinite().all()
    assert (together.stderr_B >= 0).all()
    for some in (slice(0, 1), slice(1, 4)):
        apart = model.log_prob(batch.rows(some), rng.rows(some), options)
        torch.testing.assert_close(apart.nats_B, together.nats_B[some], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(apart.stderr_B, together.stderr_B[some], rtol=1e-6, atol=1e-10)
        assert apart.columns.keys() == together.columns.keys()
        for column, values_B in together.columns.items():
            torch.testing.assert_close(apart.columns[column], values_B[some], rtol=1e-6, atol=1e-8)


PAIRS = ImageSpec(channels=1, height=2, width=2, levels=2)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param(
            Case(name, PAIRS, variant), options, id=f"{Case(name, PAIRS, variant)}-score{number}"
        )
        for name in families()
        for variant in (None, *range(len(family(name).Config.variants())))
        for number, options in enumerate((family(name).Score(), *family(name).Score.variants()))
    ],
)
def test_probabilities_of_all_images_add_up_to_one_or_less(case, options):
    """Of two by two binary pixels there are 16 images: a bound with a wrong unit or volume is found out."""
    spec = PAIRS
    try:
        family(case.family).check(case.net, spec)
        family(case.family).check_scorable(case.net, options)
    except ConfigError as reason:
        pytest.skip(str(reason))
    model = case.build()
    images = list(itertools.product((0, 255), repeat=spec.dims))
    pixels = torch.tensor(images, dtype=torch.uint8).view(-1, *spec.shape)
    batch = Batch(pixels, None, torch.arange(len(images)))
    score = model.log_prob(batch, rng_for(2, "laws/sum", batch.index_B), options)
    if score.measure != units.COUNTS:
        pytest.skip("a density of points, not a probability of images")
    total = float(score.nats_B.exp().sum())
    slack = 4 * float((score.nats_B.exp() * score.stderr_B).square().sum().sqrt())
    if score.label.startswith("exact"):
        assert total == pytest.approx(1, abs=1e-3)
    elif score.label.endswith("lower_bound"):
        assert total < 1 + slack + 0.02
        if options == family(case.family).Score() and case.variant is None:  # others may be looser
            assert total > 0.01
    elif score.label.endswith("upper_bound"):
        assert total > 1 - slack - 0.02


@every_case
def test_published_and_loaded_it_samples_the_same_bytes(case, tmp_path):
    state = straight(case)
    model = copy.deepcopy(state.ema).float()
    single = TrainState(state.nimg, copy.deepcopy(state.model).float(), model, state.optimisers)
    published = publish_model(
        str(tmp_path), case.config, single, fingerprint="f", parents={}, metadata={}
    )
    for weights, source in (("ema", single.ema), ("raw", single.model)):
        loaded = load_model(str(tmp_path), weights)
        rng, options = rng_for(1, "laws/save", range(4)), loaded.Sample()
        labels_B = rng.index_B % case.spec.classes if case.spec.classes else None
        assert torch.equal(
            loaded.sample(labels_B, rng, options), source.sample(labels_B, rng, options)
        )
        assert weights_bytes(loaded) == weights_bytes(source)
    assert published.metadata["parameters"].keys() == {phase.name for phase in model.phases()}


@every_family
def test_configurations_survive_json_and_refuse_unknown_keys(name):
    model_class = family(name)
    for schema, config in (
        (model_class.Config, model_class.Config.tiny()),
        (model_class.Config, model_class.Config()),
        *((model_class.Config, config) for config in model_class.Config.variants()),
        (model_class.Sample, model_class.Sample()),
        *((model_class.Sample, options) for options in model_class.Sample.variants()),
        (model_class.Score, model_class.Score()),
        (model_class.Score, model_class.Score.tiny()),
        *((model_class.Score, options) for options in model_class.Score.variants()),
    ):
        values = json.loads(json.dumps(as_json(config)))
        assert parse(schema, values, "here") == config
        with pytest.raises(ConfigError, match=r"unknown key 'here\.no_such_key'"):
            parse(schema, values | {"no_such_key": 1}, "here")


@every_case
def test_weights_are_a_function_of_configuration_and_seed(case):
    first, again = case.config.build(3), case.config.build(3)
    assert weights_bytes(first) == weights_bytes(again)
    assert weights_bytes(first) != weights_bytes(case.config.build(4))


@every_family
@pytest.mark.parametrize("problem", get_args(Problem))
def test_hints_name_settings_of_training_and_of_the_family(name, problem):
    hint = family(name).hint(problem)
    settings = re.findall(r"\b(train|net)\.([a-z_]+)(?:\.([a-z_]+))?", hint)
    assert settings, hint
    for section, key, below in settings:
        fields = (TrainConfig if section == "train" else family(name).Config).model_fields
        assert key in fields, (key, hint)
        if below and section == "train":
            assert below in OptimConfig.model_fields, (below, hint)
