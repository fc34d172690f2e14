"""The recipe's ``train.order`` on real datasets: the same ids for every world and resume point."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmod.config import fingerprint, parse
from genmod.data.order.row_order import RankSlice
from genmod.data.order.training_order import (
    MAIN,
    MixturePart,
    OrderConfig,
    check_mixture,
    make_training_order,
    mixture_parts,
)
from genmod.data.reading.reader import split_reader
from genmod.data.reading.training_stream import TrainingStream
from genmod.errors import ConfigError, DataError
from genmod.manifest import DatasetManifest, FileEntry, ImageSpec, ShardEntry
from tests.genmod.data.builders import encode


def file(path):
    return FileEntry(path=path, size_bytes=1, sha256=fingerprint(path))


def manifest_of(rows_S, name="f"):
    """A manifest with nothing but the numbers of rows of its shards."""
    shards = tuple(
        ShardEntry(split="train", rows=n, tar=file(f"{i}.tar"), index=file(f"{i}.idx.parquet"))
        for i, n in enumerate(rows_S)
    )
    spec = ImageSpec(channels=1, height=2, width=2)
    return DatasetManifest(fingerprint=name, spec=spec, shards=shards).sealed()


@pytest.fixture(scope="module")
def second(tmp_path_factory, images, build):
    """Another dataset of the same images, with classes of very different sizes."""
    folder = tmp_path_factory.mktemp("second")
    pixels, _ = images(90, seed=4)
    labels = np.array([0] * 70 + [1] * 12 + [2] * 8)
    np.savez(folder / "source.npz", images=pixels, labels=labels)
    root = str(folder / "data")
    return root, build(root, source=f"npz:{folder}/source.npz", shard_rows=10)


CONFIGS = st.one_of(
    st.builds(OrderConfig, shuffle_window_shards=st.none() | st.integers(1, 4)),
    st.builds(
        OrderConfig, shuffle_window_shards=st.none() | st.integers(1, 4), last_batch=st.just("drop")
    ),
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.data(),
)
def test_any_manifest_any_world_any_resume_point_one_sequence(datasets, seed, data):
    """Worlds of 1 to 7 ranks, changed at random positions: each part is planned again, as in a restart."""
    batch, steps = 420, 4
    several = len(datasets) > 1
    config = data.draw(st.builds(OrderConfig, shuffle_window_shards=st.none() | st.integers(1, 4)))
    if not several and sum(datasets[0]) >= batch:
        config = data.draw(CONFIGS)
    parts = [
        MixturePart(f"/{k}", manifest_of(rows_S, str(k)), data.draw(st.integers(1, 5)))
        for k, rows_S in enumerate(datasets)
    ]

    def rows(size, start, count):
        orders = [
            make_training_order(parts, "train", config, seed=seed, global_batch=batch).order
            for _ in range(2)
        ]
        dealt = [
            RankSlice(batch, rank, size).positions(start * batch, count) for rank in range(size)
        ]
        parts_read = [
            orders[rank % 2].rows_at(at.reshape(-1)).reshape(at.shape)
            for rank, at in enumerate(dealt)
        ]
        return np.concatenate(parts_read, axis=1)

    straight = rows(1, 0, steps)
    cuts = sorted({0, steps, *data.draw(st.lists(st.integers(0, steps), max_size=3))})
    pieces = [
        rows(data.draw(st.integers(1, 7)), begin, end - begin) for begin, end in pairwise(cuts)
    ]
    assert np.array_equal(np.concatenate(pieces), straight)


@pytest.mark.slow
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_the_streams_of_any_world_read_the_same_rows(dataset, second, data):
    """Real tars: window, balance and mix; the run is cut and goes on with another number of ranks."""
    config = data.draw(
        st.sampled_from(
            [
                OrderConfig(shuffle_window_shards=2),
                OrderConfig(balance="classes"),
                OrderConfig(mixture={MAIN: 1, second[0]: 2}),
                OrderConfig(mixture={MAIN: 1, second[0]: 2}, balance="classes"),
                OrderConfig(mixture={MAIN: 3, second[0]: 1}, shuffle_window_shards=2),
                OrderConfig(last_batch="drop"),
            ]
        )
    )
    cut = data.draw(st.integers(0, 4))
    before, after = data.draw(st.sampled_from([1, 3, 7])), data.draw(st.sampled_from([1, 2, 7]))
    parts = [MixturePart(*dataset, config.mixture.get(MAIN, 1)), *mixture_parts(config)]

    def ranks(size, start, count):
        parts_read = []
        for rank in range(size):
            training_order = make_training_order(parts, "train", config, seed=5, global_batch=42)
            options = {"global_batch": 42, "rank": rank, "size": size, "start_nimg": 42 * start}
            with TrainingStream(
                *dataset, "train", training_order=training_order, **options
            ) as stream:
                parts_read.append(list(islice(stream, count)))
        return [batch for together in zip(*parts_read, strict=True) for batch in together]

    straight, resumed = ranks(1, 0, 5), ranks(before, 0, cut) + ranks(after, cut, 5 - cut)
    for name in ("pixels_BCHW", "labels_B", "index_B"):
        a, b = (
            np.concatenate([getattr(x, name) for x in batches]) for batches in (straight, resumed)
        )
        assert np.array_equal(a, b)


def test_a_mixture_reads_each_dataset_by_its_share(dataset, second):
    parts = [MixturePart(*dataset, 1), MixturePart(*second, 2)]
    config = OrderConfig()
    training_order = make_training_order(parts, "train", config, seed=1, global_batch=30)
    with TrainingStream(
        *dataset, "train", global_batch=30, training_order=training_order
    ) as stream:
        pixels = np.concatenate([batch.pixels_BCHW for batch in islice(stream, 20)])
    counts = []
    for root, manifest in (dataset, second):
        reader = split_reader(root, manifest, "train")
        own = {image.tobytes() for image in reader.pixels(np.arange(len(reader)))}
        counts.append(sum(image.tobytes() in own for image in pixels))
    assert counts == [200, 400]


def test_the_order_of_a_mixture_depends_on_its_contents(dataset, second):
    """Named the other way round, with doubled weights: the same rows."""

    def images(parts):
        training_order = make_training_order(parts, "train", OrderConfig(), seed=1, global_batch=30)
        with TrainingStream(
            *dataset, "train", global_batch=30, training_order=training_order
        ) as stream:
            return next(stream).pixels_BCHW.numpy()

    first = images([MixturePart(*dataset, 1), MixturePart(*second, 3)])
    assert np.array_equal(first, images([MixturePart(*second, 6), MixturePart(*dataset, 2)]))
    assert not np.array_equal(first, images([MixturePart(*second, 1), MixturePart(*dataset, 3)]))
    alone = images([MixturePart(*dataset, 0), MixturePart(*second, 1)])
    reader = split_reader(*second, "train")
    own = {image.tobytes() for image in reader.pixels(np.arange(len(reader)))}
    assert all(image.tobytes() in own for image in alone)


def test_balanced_classes_of_a_real_dataset(dataset, second):
    training_order = make_training_order(
        [MixturePart(*second)], "train", OrderConfig(balance="classes"), seed=1, global_batch=30
    )
    with TrainingStream(*second, "train", global_batch=30, training_order=training_order) as stream:
        for batch in islice(stream, 4):
            assert np.bincount(batch.labels_B).tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixture": {"elsewhere": 1}}, "no weight for 'data'"),
        ({"mixture": {"data": 0}}, "not all of them 0"),
        ({"mixture": {"data": -1}}, "greater than or equal to 0"),
        ({"shuffle_window_shards": 2, "balance": "classes"}, "incompatible"),
        ({"last_batch": "drop", "balance": "classes"}, "no common epochs"),
        ({"last_batch": "drop", "mixture": {"data": 1}}, "no common epochs"),
        ({"last_batch": "keep"}, "wrap"),
        ({"shuffle_window": 2}, "did you mean 'shuffle_window_shards'"),
    ],
)
def test_contradictory_settings_are_an_error(values, words):
    with pytest.raises(ConfigError, match=words):
        parse(OrderConfig, values, "train.order")


def test_datasets_that_cannot_be_mixed(dataset, second, tmp_path):
    root, manifest = dataset
    own = manifest.spec, manifest.class_names
    other = manifest_of([3])
    cases = [
        ([MixturePart("/other", other)], "/other has 1x2x2.*mix datasets of the same images"),
        ([MixturePart(root, manifest), MixturePart("/copy", manifest)], "are the same dataset"),
        (
            [MixturePart("/named", manifest.model_copy(update={"class_names": ("a", "b", "c")}))],
            "/named has the classes a, b, c, the recipe's dataset has 3 classes without names",
        ),
        (
            [MixturePart("/empty", manifest.model_copy(update={"shards": ()}))],
            "no rows in its train",
        ),
    ]
    for parts, words in cases:
        with pytest.raises(ConfigError, match=words):
            check_mixture(parts, "train", *own)
    check_mixture(
        [MixturePart("/empty", manifest.model_copy(update={"shards": ()}), 0)], "train", *own
    )
    with pytest.raises(ConfigError, match="no dataset at"):
        mixture_parts(OrderConfig(mixture={MAIN: 1, str(tmp_path): 1}))


def test_classes_of_a_mixture_are_matched_by_name(tmp_path, images, build):
    pixels, _ = images(80)
    parts = []
    for name, classes in (("own", ["ant", "bee", "cow"]), ("other", ["bee", "ant"])):
        rows = [(n, label) for n in range(40) for label in classes]
        for n, label in rows:
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            pixels = np.full((6, 6), {"ant": 10, "bee": 90, "cow": 200}[label] + n, np.uint8)
            (tmp_path / name / label / f"{n}.png").write_bytes(encode(pixels))
        root = str(tmp_path / f"{name}-data")
        parts.append(MixturePart(root, build(root, source=f"folder:{tmp_path / name}")))
    order = make_training_order(parts, "train", OrderConfig(), seed=1, global_batch=8)
    stream = TrainingStream(
        parts[0].root, parts[0].manifest, "train", global_batch=8, training_order=order
    )
    with stream:
        for batch in islice(stream, 30):
            shade_B = batch.pixels_BCHW[:, 0, 0, 0].numpy()
            expected_B = np.searchsorted([60, 150], shade_B)
            assert batch.labels_B.tolist() == expected_B.tolist()
    assert parts[1].empty_classes("train", parts[0]) == {2}
    own = parts[1].manifest.spec, parts[1].manifest.class_names
    with pytest.raises(
        ConfigError, match=r"own-data has the classes ant, bee, cow.*lacks class 'cow'"
    ):
        check_mixture(parts[:1], "train", *own)


def test_what_cannot_be_balanced(second, tmp_path):
    root, manifest = second
    config = OrderConfig(balance="classes")
    with pytest.raises(ConfigError, match="has no labels"):
        make_training_order(
            [MixturePart("/x", manifest_of([3]))], "train", config, seed=1, global_batch=4
        )
    spec = manifest.spec.model_copy(update={"classes": 4})
    wider = manifest.model_copy(update={"spec": spec, "class_names": ("a", "b", "c", "rare")})
    order = make_training_order([MixturePart(root, wider)], "train", config, seed=1, global_batch=4)
    same = make_training_order(
        [MixturePart(root, manifest)], "train", config, seed=1, global_batch=4
    )
    row_N = order.order.rows_at(np.arange(60))
    assert np.array_equal(row_N, same.order.rows_at(np.arange(60))), "class rare is not drawn"
    with pytest.raises(DataError, match="is missing"):
        make_training_order(
            [MixturePart(str(tmp_path), manifest)], "train", config, seed=1, global_batch=4
        )
