"""Names of classes: files that state them, and those that lie beside weights."""

import pytest
import torch
from safetensors.torch import save_file

from tests.fixtures.networks import make_network
from ttc_core.errors import LoadError
from ttc_core.load import load

NETWORKS = "tests.fixtures.networks"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "a\nb\nc d\ne\nf\n"),
        ("names.txt", "\ufeffa\r\nb\r\nc d\r\ne\r\nf"),
        ("names.json", '["a", "b", "c d", "e", "f"]'),
        ("names.json", '{"0": "a", "1": "b", "2": "c d", "4": "f", "3": "e"}'),
        ("class_to_idx", '{"f": 4, "a": 0, "b": 1, "c d": 2, "e": 3}'),
    ],
)
def test_class_names_are_read_in_each_form(name, content, tmp_path):
    """Lines, and JSON in three forms, whatever the file is called."""
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    model = load(f"{NETWORKS}:small_network", class_names=tmp_path / name)
    assert model.class_names == ("a", "b", "c d", "e", "f")
    assert model.origins.class_names == str(tmp_path / name)


def test_digits_as_class_names_are_no_indices(tmp_path):
    """ImageFolder's of the folders 0 to 4, read backwards."""
    (tmp_path / "names").write_text('{"4": 0, "3": 1, "2": 2, "1": 3, "0": 4}')
    model = load(f"{NETWORKS}:small_network", class_names=tmp_path / "names")
    assert model.class_names == ("4", "3", "2", "1", "0")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\nb\nc", r"names 3 classes \(a … c\), and the network has 5"),
        ("a\nb\n\nd\ne", r"the name of class 2 is ''"),
        ("", r"a list, or names with an index each"),
        ("[1, 2, 3, 4, 5]", r"the name of class 0 is 1"),
        ('["a", "b"', r"it is no JSON"),
        ('{"a": 0, "b": 0}', r"two names of class 0"),
        ('{"1": "a", "2": "b"}', r"no name of class 0; counting begins at 0"),
        ('{"a": "b"}', r"has no index"),
        ("[" * 100_000, r"holds no class names"),
    ],
)
def test_class_names_that_do_not_fit_are_a_sentence(content, sentence, tmp_path):
    """With the file's name and the forms that are accepted, or how many there are."""
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(LoadError, match=sentence) as error:
        load(f"{NETWORKS}:small_network", class_names=tmp_path / "names.txt")
    assert "names.txt" in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_missing_file_of_class_names_is_a_sentence(tmp_path):
    with pytest.raises(LoadError, match=r"class names .*none\.txt cannot be read: No such file"):
        load("bundled", class_names=tmp_path / "none.txt")


def test_names_in_a_weight_file_go_before_published_ones_and_behind_stated_ones(tmp_path):
    """In safetensors' header, or beside the state dict; those of another number are told."""
    state = make_network("batch-norm").state_dict()
    save_file(state, tmp_path / "a.safetensors", {"class_names": '["v", "w", "x", "y", "z"]'})
    torch.save({"model": state, "class_to_idx": {"z": 4, "y": 3, "x": 2, "w": 1, "v": 0}},
               tmp_path / "a.pt")  # fmt: skip
    (tmp_path / "names").write_text("a\nb\nc\nd\ne")
    for file in ("a.safetensors", "a.pt"):
        spec = f"{NETWORKS}:small_network@{tmp_path}/{file}"
        assert load(spec).class_names == ("v", "w", "x", "y", "z")
        assert load(spec, class_names=tmp_path / "names").class_names == tuple("abcde")
    torch.save({"model": state, "classes": ["only", "two"]}, tmp_path / "a.pt")
    model = load(f"{NETWORKS}:small_network@{tmp_path}/a.pt")
    assert model.class_names == tuple("01234")
    assert any("names 2 classes, and the network has 5" in said for said in model.notices)


def test_doubles_among_the_names_are_told(tmp_path):
    """And no more, as published lists have some: ImageNet's two cranes."""
    state = make_network("batch-norm").state_dict()
    torch.save({"model": state, "classes": list("abcbe")}, tmp_path / "a.pt")
    (tmp_path / "names").write_text("a\nb\nc\nd\ne")
    spec = f"{NETWORKS}:small_network@{tmp_path}/a.pt"
    told = "'b' is the name of class 1 and of class 3"
    assert sum(told in said for said in load(spec).notices) == 1
    assert not any(told in said for said in load(spec, class_names=tmp_path / "names").notices)
    (tmp_path / "names").write_text("a\nb\nc\nb \na")
    assert any(told in said for said in load(spec, class_names=tmp_path / "names").notices)
