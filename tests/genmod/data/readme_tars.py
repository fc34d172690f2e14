"""Cases of the README's table of data: WebDataset tars."""

import json

import pytest

from genmod.errors import DataError
from tests.genmod.data.builders import write_tar
from tests.genmod.data.readme_cases import (
    brings,
    class_rows,
    decisions,
    image,
    passed_over,
    plan_of,
    rows_of,
    stored,
    write,
)


@brings("tars with several images per sample")
def several_images(root):
    members = []
    for number in range(20):
        members += [
            (f"{number}.mask.png", image(number, base=20)),
            (f"{number}.png", image(number)),
        ]
    write_tar(root / "a.tar", members)
    with pytest.raises(
        DataError, match=r"several images per sample: mask\.png, png; set data\.image"
    ):
        plan_of(f"webdataset:{root}/a.tar")
    for member, base in (("png", 100), ("mask.png", 20)):
        plan = plan_of(f"webdataset:{root}/a.tar", image=member)
        assert {round(one.mean(), -1) for one in stored(plan).values()} == {base}


@brings("tars with names of classes in `.cls`")
def class_names_in_tars(root):
    names = ["dog", "cat", "ant"]
    members = []
    for number in range(30):
        text = f"{names[number % 3]}\n".encode()
        members += [(f"{number}.png", image(number)), (f"{number}.cls", text)]
    write_tar(root / "a.tar", members)
    plan = plan_of(f"webdataset:{root}/a.tar")
    assert plan.class_names == ("ant", "cat", "dog")
    assert rows_of(plan)["a/1"][0] == "cat"
    assert class_rows(plan) == {"ant": 10, "cat": 10, "dog": 10}


@brings("tars with labels in `.json` or `.txt`")
def other_labels_in_tars(root):
    members = []
    for number in range(20):
        document = json.dumps({"label": number % 4, "width": 4}).encode()
        members += [
            (f"{number}.png", image(number)),
            (f"{number}.json", document),
            (f"{number}.txt", b"odd" if number % 2 else b"even"),
        ]
    write_tar(root / "a.tar", members)
    plan = plan_of(f"webdataset:{root}/a.tar")
    assert plan.spec.classes == 0
    assert "data.label=json:label reads labels from there" in decisions(plan)
    assert "data.label=txt reads labels from there" in decisions(plan)
    plan = plan_of(f"webdataset:{root}/a.tar", label="json:label")
    assert {name: label for name, (label, _) in rows_of(plan).items()} == {
        f"a/{number}": number % 4 for number in range(20)
    }
    assert plan_of(f"webdataset:{root}/a.tar", label="txt").class_names == ("even", "odd")


@brings("tars of the same name in two folders")
def equal_names(root):
    for folder, base in (("a", 50), ("b", 200)):
        (root / folder).mkdir()
        members = [(f"{number}.png", image(number, base=base)) for number in range(10)]
        write_tar(root / folder / "00.tar", members)
    plan = plan_of(f"webdataset:{root}/*/00.tar")
    assert not plan.rejected
    assert {name: round(one.mean(), -1) for name, one in stored(plan).items()} == {
        f"{folder}/00/{n}": base for folder, base in (("a", 50), ("b", 200)) for n in range(10)
    }


@brings("`[ ]`, braces, `?` or `*` in names of folders and files")
def patterns_in_names(root):
    names = ("run [3]", "run 3", "run {4,5}", "what?", "a*")
    for number, name in enumerate(names):
        (root / name).mkdir()
        members = [(f"{n}.png", image(n, base=20 + 40 * number)) for n in range(10)]
        write_tar(root / name / "00.tar", members)
    for number, name in enumerate(names):
        for end in ("*.tar", "0?.tar", "{00..00}.tar"):
            images = stored(plan_of(f"webdataset:{root}/{name}/{end}"))
            assert len(images) == 10
            assert {round(one.mean(), -1) for one in images.values()} == {20 + 40 * number}
    (root / "whats").mkdir()
    with pytest.raises(DataError, match=r"its \? also matches 'whats'; rename it"):
        plan_of(f"webdataset:{root}/what?/*.tar")


@brings("tars whose members are in class folders, without `.cls`")
def class_folders_in_tars(root):
    members = [(f"{'cat' if n % 2 else 'dog'}/{n}.png", image(n)) for n in range(20)]
    write_tar(root / "a.tar", members)
    plan = plan_of(f"webdataset:{root}/a.tar")
    assert plan.spec.classes == 0
    assert "(dog, cat) are not read as classes: no labels; data.label=folder" in decisions(plan)
    plan = plan_of(f"webdataset:{root}/a.tar", label="folder")
    assert class_rows(plan) == {"cat": 10, "dog": 10}
    assert rows_of(plan)["a/cat/1"][0] == "cat"
    members = [(f"{split}/{name}", one) for split in ("train", "test") for name, one in members]
    write_tar(root / "b.tar", members)
    plan = plan_of(f"webdataset:{root}/b.tar", label="folder", splits="source")
    assert class_rows(plan) == {"cat": 20, "dog": 20}
    assert plan.rows_by_split == {"train": 20, "val": 0, "test": 20}


@brings("a folder of tars, also in folders `train`, `val`, `test`")
def folder_of_tars(root):
    for first, split in ((0, "train"), (10, "test")):
        (root / split).mkdir()
        members = [(f"{number}.png", image(number)) for number in range(first, first + 10)]
        write_tar(root / split / "00.tar", members)
    write(root / "README.md", b"a dataset")
    plan = plan_of(f"webdataset:{root}", splits="source")
    assert {name: split for name, (_, split) in rows_of(plan).items()} == {
        f"{'train' if number < 10 else 'test'}/00/{number}": "train" if number < 10 else "test"
        for number in range(20)
    }
    assert passed_over(plan) == {"text files (.md)": 1}
    (root / "train" / "00.tar").unlink()
    (root / "test" / "00.tar").unlink()
    with pytest.raises(
        DataError,
        match=r"no such file: \*\.tar in that folder or below, but 2 folders without files; 1 text",
    ):
        plan_of(f"webdataset:{root}")
