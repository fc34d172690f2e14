"""Cases of the README's table of data: Parquet tables and arrays."""

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.sharding.census_text import census_lines
from genmod.errors import DataError
from tests.genmod.data.readme_cases import (
    brings,
    class_rows,
    decisions,
    image,
    pixels,
    plan_of,
    rows_of,
    stored,
)

N = 24
IMAGES = [{"bytes": image(number), "path": None} for number in range(N)]
PIXELS = np.stack([pixels(number, side=8) for number in range(N)])


def table(path, metadata=None, images=IMAGES, **columns):
    """Write a Parquet file of images and other columns; returns the source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = pa.table({"image": images, **columns})
    pq.write_table(written.replace_schema_metadata(metadata) if metadata else written, path)
    return f"parquet:{path}"


def labels_of(plan):
    """Labels of the rows in the order of the source."""
    return [label for _, (label, _) in sorted(rows_of(plan).items())]


@brings("Parquet: class numbers with names (Hugging Face), pandas' categories, booleans")
def named_labels(root):
    names = ["zebra", "ant", "cat", "never"]
    label = {"_type": "ClassLabel", "names": names}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    numbers = [number % 3 for number in range(N)]
    plan = plan_of(table(root / "hf.parquet", metadata, label=numbers))
    assert plan.class_names == tuple(names)
    assert labels_of(plan) == [names[number] for number in numbers]
    assert class_rows(plan)["never"] == 0
    values = pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(["high", "low", "mid"]))
    plan = plan_of(table(root / "pandas.parquet", label=values))
    assert plan.class_names == ("high", "low", "mid")
    assert labels_of(plan)[:3] == ["high", "low", "mid"]
    plan = plan_of(table(root / "bool.parquet", label=[n % 2 == 1 for n in range(N)]))
    assert labels_of(plan)[:2] == ["false", "true"]


@brings("Parquet: labels 3.0, [3] or as texts `3`, `no`, `01`, `1e3`")
def other_types(root):
    numbers = [number % 12 for number in range(N)]
    for name, labels in (("float", [float(n) for n in numbers]), ("list", [[n] for n in numbers])):
        plan = plan_of(table(root / f"{name}.parquet", label=labels))
        assert (plan.spec.classes, plan.class_names) == (12, ())
        assert labels_of(plan) == numbers
    plan = plan_of(table(root / "text.parquet", label=[str(n) for n in numbers]))
    assert plan.class_names == tuple(map(str, range(12)))
    assert labels_of(plan) == [str(n) for n in numbers]
    plan = plan_of(table(root / "words.parquet", label=["no", "01", "1e3", "yes"] * (N // 4)))
    assert plan.class_names == ("01", "1e3", "no", "yes")


@brings("Parquet: several columns of labels")
def several_columns(root):
    columns = {"fine_label": [n % 5 for n in range(N)], "coarse_label": [n % 2 for n in range(N)]}
    source = table(root / "a.parquet", **columns)
    with pytest.raises(DataError, match=r"fine_label, coarse_label; choose with data\.label"):
        plan_of(source)
    for name, classes in (("fine_label", 5), ("coarse_label", 2)):
        plan = plan_of(source, label=name)
        assert plan.spec.classes == classes
        assert labels_of(plan) == columns[name]
    assert plan_of(source, labels=False).spec.classes == 0


@brings("Parquet: a column `split`, or files named `train-...`, `test-...`")
def declared_splits(root):
    splits = ["train", "val", "test"] * (N // 3)
    plan = plan_of(
        table(root / "a.parquet", label=[0, 1] * (N // 2), split=splits), splits="source"
    )
    assert [split for _, (_, split) in sorted(rows_of(plan).items())] == splits
    for split in ("train", "test"):
        table(root / "hf" / f"{split}-00000-of-00001.parquet", label=[0, 1] * (N // 2))
    plan = plan_of(f"parquet:{root}/hf", splits="source")
    assert plan.rows_by_split == {"train": N, "val": 0, "test": N}
    assert "declare the splits train, test" in decisions(plan_of(f"parquet:{root}/hf"))


@brings("labels of which none is a class: 1.5, one-hot lists, identifiers of 16 digits")
def labels_of_no_class(root):
    reasons = {
        "fraction": [n + 0.5 for n in range(N)],
        "several labels": [[int(n % 3 == k) for k in range(3)] for n in range(N)],
        "not a class number": [10**15 + n for n in range(N)],
    }
    for reason, label in reasons.items():
        source = table(root / f"{reason}.parquet", label=label)
        with pytest.raises(
            DataError, match=rf"{N} rows have no class \(.*{reason}.*data\.labels=false"
        ):
            plan_of(source)
        assert plan_of(source, labels=False).spec.classes == 0


@brings("npz: arrays named as in Keras or MedMNIST")
def common_arrays(root):
    labels = np.arange(N) % 3
    parts = {"x_train": PIXELS, "y_train": labels, "x_test": PIXELS[:6], "y_test": labels[:6]}
    np.savez(root / "keras.npz", **parts)
    plan = plan_of(f"npz:{root}/keras.npz", splits="source")
    assert plan.rows_by_split == {"train": N, "val": 0, "test": 6}
    assert class_rows(plan) == {0: 10, 1: 10, 2: 10}
    medmnist = {}
    for split, count in (("train", N), ("val", 6), ("test", 9)):
        medmnist |= {f"{split}_images": PIXELS[:count], f"{split}_labels": labels[:count, None]}
    np.savez(root / "med.npz", **medmnist)
    plan = plan_of(f"npz:{root}/med.npz", splits="source")
    assert plan.rows_by_split == {"train": N, "val": 6, "test": 9}
    assert plan.spec.classes == 3


@brings("npz: arrays under other names")
def other_arrays(root):
    labels = np.arange(N) % 3
    np.savez(root / "a.npz", arr_0=PIXELS, arr_1=labels)
    plan = plan_of(f"npz:{root}/a.npz")
    assert plan.spec.classes == 3
    assert labels_of(plan) == labels.tolist()
    assert "images are those of arr_0, labels those of arr_1" in decisions(plan)
    np.savez(root / "b.npz", photos=PIXELS, masks=PIXELS // 100, kinds=labels)
    with pytest.raises(DataError, match=r"image could be array .*; choose with data\.image"):
        plan_of(f"npz:{root}/b.npz")
    plan = plan_of(f"npz:{root}/b.npz", image="photos")
    assert sorted(one.sum() for one in stored(plan).values()) == sorted(PIXELS.sum(axis=(1, 2)))


@brings("npz: images as floats, labels as one-hot rows")
def refused_arrays(root):
    np.savez(root / "float.npz", images=PIXELS / 255)
    with pytest.raises(
        DataError, match=r"expected uint8 .* \(255 \* x\)\.round\(\)\.astype\('uint8'\)"
    ):
        plan_of(f"npz:{root}/float.npz")
    np.savez(root / "hot.npz", images=PIXELS, labels=np.eye(5, dtype=int)[np.arange(N) % 5])
    with pytest.raises(DataError, match=r"labels\.argmax\(axis=1\) if they are one-hot"):
        plan_of(f"npz:{root}/hot.npz")


@brings("IDX: `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`")
def mnist_files(root):
    def idx(name, array):
        head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (root / name).write_bytes(head + array.astype(np.uint8).tobytes())

    for split, count in (("train", N), ("t10k", 6)):
        idx(f"{split}-images-idx3-ubyte", PIXELS[:count])
        idx(f"{split}-labels-idx1-ubyte", np.arange(count) % 3)
    plan = plan_of(f"idx:{root}", splits="source")
    assert plan.rows_by_split == {"train": N, "val": 0, "test": 6}
    assert class_rows(plan) == {0: 10, 1: 10, 2: 10}
    dealt = plan_of(f"idx:{root}", splits={"val": 0.0, "test": 0.0})
    assert dealt.rows_by_split == {"train": N + 6, "val": 0, "test": 0}
    assert "declare the splits train, test" in decisions(dealt)


@brings("labels that start at 1")
def start_at_1(root):
    np.savez(root / "a.npz", images=PIXELS, labels=np.arange(N) % 3 + 1)
    plan = plan_of(f"npz:{root}/a.npz")
    assert plan.spec.classes == 4
    assert class_rows(plan) == {0: 0, 1: 8, 2: 8, 3: 8}
    assert plan.summary().empty_classes == (0,)
    warning = "no rows of class 0: not dealt out to balanced samples"
    assert any(warning in line for line in census_lines(plan.census))
