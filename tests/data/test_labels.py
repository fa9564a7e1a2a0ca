"""dataset.json: what it may say, and what is refused."""

from __future__ import annotations

import json

import pytest

from kdgen.data.labels import CLASSES, Labels, from_json
from kdgen.errors import DataError

NAMES = ["a.png", "b.png", "c.png"]


def read(content: object, names: list[str] = NAMES) -> Labels:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return from_json("images.zip", data, names)


def pairs(*labels: object) -> dict[str, object]:
    return {"labels": [list(pair) for pair in zip(NAMES, labels, strict=True)]}


def test_labels_are_matched_by_name_and_not_by_place():
    labels = read({"labels": [["c.png", 2], ["a.png", 0], ["b.png", 1]]})
    assert labels.values.tolist() == [0, 1, 2]
    assert labels.classes == 3
    assert labels.class_names is None


@pytest.mark.parametrize("content", [{}, {"labels": None}, {"labels": None, "classes": ["x"]}])
def test_null_or_absent_labels_mean_none(content: object):
    assert read(content) == (None, 0, None)


def test_class_names_say_how_many_classes_there_are():
    labels = read({**pairs(0, 2, 2), "classes": ["x", "y", "z", "w"]})
    assert labels.classes == 4
    assert labels.class_names == ("x", "y", "z", "w")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "holds a list"),
        ("text", "holds a str"),
        ({"labels": {}}, "are a dict"),
        ({"labels": 3}, "are a int"),
        ({"labels": []}, "are an empty list"),
        (pairs(0, 1, -1), r'1 of 3 labels .* \["c.png", -1\]'),
        (pairs(0, 1, True), "malformed"),
        (pairs(0, 1, 1.0), "malformed"),
        (pairs(0, 1, "1"), "malformed"),
        (pairs(0, 1, [0.5, 0.5]), "malformed"),
        ({"labels": [["a.png", 0], "b.png", ["c.png"]]}, "2 of 3 labels"),
        ({"labels": [*pairs(0, 1, 0)["labels"], ["a.png", 1]]}, "more than once .* a.png"),
        ({"labels": pairs(0, 1, 0)["labels"][:2]}, "1 images without a label .* c.png"),
        ({"labels": [*pairs(0, 1, 0)["labels"], ["d.png", 1]]}, "not there: d.png"),
        (pairs(0, 1, 5), "3 classes have no image: 2, 3, 4"),
        (pairs(1, 2, 3), "1 classes have no image: 0"),
        (pairs(0, 1, 10**6), "1,000,001 classes"),
        (pairs(0, 1, 10**30), "classes; expected at most"),
        ({**pairs(0, 1, 2), "classes": ["x", "y"]}, r"beyond its 2 class names: c.png \(2\)"),
        ({**pairs(0, 1, 2), "classes": "xyz"}, "expected a list of names"),
        ({**pairs(0, 1, 2), "classes": [1, 2, 3]}, "expected a list of names"),
        ({**pairs(0, 1, 2), "classes": ["x"] * (CLASSES + 1)}, "expected at most 65,536"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(content: object, words: str):
    with pytest.raises(DataError, match=words) as caught:
        read(content)
    assert str(caught.value).startswith("images.zip: ")
    assert "; expected " in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_as_many_classes_as_images_are_fine_up_to_the_limit():
    names = [f"{k:07d}.png" for k in range(CLASSES + 1)]
    content = {"labels": [[name, k] for k, name in enumerate(names)]}
    with pytest.raises(DataError, match="65,537 classes"):
        read(content, names)
    content["labels"].pop()
    assert read(content, names[:-1]).classes == CLASSES
