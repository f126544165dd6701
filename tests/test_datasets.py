"""Bad data are refused in words that can be acted on; good data come out in the promised layout."""

import gc
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_invariance import datasets
from pyro_invariance.datasets import Dataset, from_arrays, load, load_new
from pyro_invariance.processes import class_codes
from pyro_invariance.typing import BadInput

N, SIDE = 20, 6
IMAGES = np.random.default_rng(0).random((N, SIDE, SIDE))
LABELS = np.arange(N) % 3
PLACES = np.stack([np.linspace(-80, 80, N), np.linspace(-180, 171, N)], 1)  # latitude, longitude


def changed(array: np.ndarray, where: object, value: float) -> np.ndarray:
    """Return a copy with one entry replaced."""
    copy = array.astype(np.result_type(array, type(value)))
    copy[where] = value
    return copy


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which a call is refused; it is one line."""
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# argument, what was got, what is accepted: all three in the message
BAD_ARRAYS = {
    "NaN in images": ({"x_train": changed(IMAGES, (3, 0, 0), np.nan)}, ("x_train", "1", "NaN or infinite")),
    "infinite images": ({"x_train": changed(IMAGES, (slice(2), 0, 0), -np.inf)}, ("x_train", "2", "NaN or infinite")),
    "NaN in test images": (
        {"x_test": changed(IMAGES, (0, 0, 0), np.nan), "y_test": LABELS},
        ("x_test", "1", "NaN or infinite"),
    ),
    "complex images": ({"x_train": IMAGES + 0j}, ("x_train", "complex128", "integers and floats")),
    "text for images": ({"x_train": np.full((N, SIDE, SIDE), "a")}, ("x_train", "<U1", "integers and floats")),
    "no images": ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, ("x_train", "0 items", "nothing to learn")),
    "one image": ({"x_train": IMAGES[:1], "y_train": LABELS[:1]}, ("x_train", "1 items", "nothing to learn")),
    "identical images": ({"x_train": np.repeat(IMAGES[:1], N, 0)}, ("x_train", "20 items are the same", "learn")),
    "all images constant": (
        {"x_train": np.ones((N, SIDE, SIDE)) * IMAGES[:, :1, :1]},
        ("x_train", "every image is constant", "learn"),
    ),
    "five channels": ({"x_train": np.random.default_rng(1).random((N, SIDE, SIDE, 5))}, ("x_train", "5", "4 at most")),
    "tiny images": ({"x_train": IMAGES[:, :3]}, ("x_train", "3 x 6", "4 x 4")),
    "flat list of pixels": ({"x_train": IMAGES[:, 0, 0]}, ("kind", "(20,)", "images, series, points")),
    "too many axes": ({"x_train": IMAGES[..., None, None]}, ("kind", "(20, 6, 6, 1, 1)", "images, series, points")),
    "wrong kind": ({"kind": "image"}, ("kind", "'image'", "did you mean 'images'")),
    "kind that does not fit": ({"x_train": IMAGES[:, 0], "kind": "images"}, ("x_train", "(20, 6)", "[N, H, W]")),
    "test images of another size": (
        {"x_test": IMAGES[:, :5], "y_test": LABELS},
        ("x_test", "(5, 6)", "(6, 6)"),
    ),
    "test images with channels": (
        {"x_test": IMAGES[..., None], "y_test": LABELS},
        ("x_test", "(6, 6, 1)", "(6, 6)"),
    ),
    "test images without labels": ({"x_test": IMAGES}, ("x_test, y_test", "only one", "both or none")),
    "test labels without images": ({"y_test": LABELS}, ("x_test, y_test", "only one", "both or none")),
    "too few labels": ({"y_train": LABELS[:-1]}, ("y_train", "(19,)", "one label per item")),
    "labels in a column": ({"y_train": LABELS[:, None]}, ("y_train", "(20, 1)", "one label per item")),
    "too many test labels": ({"x_test": IMAGES[:2], "y_test": LABELS[:3]}, ("y_test", "(3,)", "one label per item")),
    "negative label": ({"y_train": LABELS - 1}, ("y_train", "-1", "0, 1, ..., C-1")),
    "gapped labels": ({"y_train": LABELS * 2}, ("y_train", "1 does not occur", "0, 1, ..., C-1")),
    "labels from one": ({"y_train": LABELS + 1}, ("y_train", "0 does not occur", "0, 1, ..., C-1")),
    "one class": ({"y_train": LABELS * 0}, ("y_train", "one class", "two or more")),
    "words for labels": ({"y_train": np.array(["a", "b"] * (N // 2))}, ("y_train", "<U1", "integers and floats")),
    "constant values": ({"y_train": LABELS * 0.0}, ("y_train", "0.0", "nothing to learn")),
    "NaN values": ({"y_train": changed(LABELS * 1.0, 0, np.nan)}, ("y_train", "NaN", "NaN or infinite")),
    "missing values": ({"y_train": changed(LABELS * 1.0, 3, np.nan)}, ("y_train", "1 values", "leave out items")),
    "halves that differ": (
        {"kind": "pairs", "y_train": IMAGES[:, 1:]},
        ("y_train", "(20, 5, 6)", "(20, 6, 6)", "one shape"),
    ),
    "halves that are labels": ({"kind": "pairs"}, ("y_train", "(20,)", "one shape")),
    "halves of two scales": (
        {"kind": "pairs", "x_train": (255 * IMAGES).astype(np.uint8), "y_train": IMAGES},
        ("y_train", "float64", "one scale", "uint8"),
    ),
    "values of no numbers": ({"y_train": np.zeros((N, 0))}, ("y_train", "(20, 0)", "one number or more")),
    "a half that is not finite": (
        {"kind": "pairs", "y_train": changed(IMAGES, 0, np.inf)},
        ("y_train", "36 values", "finite"),
    ),
    "no places": ({"kind": "sphere"}, ("x_train", "(20, 6, 6)", "[N, 2], latitude and longitude")),
    "longitude first": ({"kind": "sphere", "x_train": PLACES[:, ::-1]}, ("x_train", "180", "-90 to 90")),
    "vectors of another length": (
        {"y_train": PLACES, "x_test": IMAGES[:2], "y_test": PLACES[:2, :1]},
        ("y_test", "(1,)", "(2,)"),
    ),
    "unseen test class": ({"x_test": IMAGES[:2], "y_test": np.array([0, 3])}, ("y_test", "0 to 3", "0 to 2")),
    "negative test class": ({"x_test": IMAGES[:2], "y_test": np.array([-1, 2])}, ("y_test", "-1", "0 to 2")),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_with_reasons(case, tmp_path):
    arrays, words = BAD_ARRAYS[case]
    arrays = {"x_train": IMAGES, "y_train": LABELS, **arrays}
    message = refusal(lambda: from_arrays("mine", **arrays))
    assert all(word in message for word in words), message
    np.savez(tmp_path / "mine.npz", **arrays)
    assert refusal(lambda: load(tmp_path / "mine.npz")) == message  # a file says the same as arrays


def not_zip(path: Path) -> None:
    path.write_text("x_train, y_train\n1, 2\n", encoding="utf-8")


def half_zip(path: Path) -> None:
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def damaged_zip(path: Path) -> None:
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # a pixel of x_train: the checksum no longer fits
    path.write_bytes(content)


def damaged_deflate(path: Path) -> None:
    np.savez_compressed(path, x_train=IMAGES, y_train=LABELS)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)


def renamed_npy(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    path.write_bytes(buffer.getvalue())


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays here")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (not_zip, ".npz"),
        (half_zip, "not an .npz archive"),
        (damaged_zip, "not an .npz archive"),
        (damaged_deflate, "not an .npz archive"),
        (renamed_npy, "not an .npz archive"),
        (foreign_zip, "lacks x_train and y_train; it holds readme.txt"),
        (lambda path: path.touch(), "not an .npz archive"),
        (lambda path: np.savez(path), "lacks x_train and y_train; it holds nothing"),
        (lambda path: np.savez(path, images=IMAGES, y_train=LABELS), "it holds images, y_train"),
        (lambda path: path.mkdir(), "no file"),
        (lambda path: None, "no file"),
    ],
    ids=[
        "text",
        "truncated",
        "bad checksum",
        "bad compression",
        "npy renamed",
        "another zip",
        "empty file",
        "nothing",
        "no x_train",
        "folder",
        "missing",
    ],
)
def test_bad_files_are_refused_with_their_name(write, words, tmp_path):
    path = tmp_path / "mine.npz"
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # numpy itself leaves a truncated archive open
        message = refusal(lambda: load(path))
        gc.collect()
    assert message.startswith("data: ")
    assert str(path) in message
    assert words in message


@pytest.mark.parametrize("keys", [("x_train",), ("y_train",), ("x_train", "y_train"), ("x_test",), ("kind",)])
def test_pickles_are_never_executed(keys, tmp_path):
    bomb = np.array([Bomb(tmp_path / "executed")], dtype=object)
    good = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}
    path = tmp_path / "mine.npz"
    np.savez(path, **{**good, **dict.fromkeys(keys, bomb)})
    message = refusal(lambda: load(path))
    assert "object arrays" in message
    assert str(path) in message
    assert not (tmp_path / "executed").exists()


def test_pickle_of_new_images_is_never_executed(tmp_path):
    data = from_arrays("mine", IMAGES, LABELS)
    np.savez(tmp_path / "new.npz", x=np.array([Bomb(tmp_path / "executed")], dtype=object))
    assert "object arrays" in refusal(lambda: load_new(tmp_path / "new.npz", data))
    np.array(Bomb(tmp_path / "executed"), dtype=object).dump(tmp_path / "raw.npz")  # a bare pickle
    assert "pickles are never loaded" in refusal(lambda: load(tmp_path / "raw.npz"))
    assert not (tmp_path / "executed").exists()


def test_bomb_mutant_goes_off(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.array([Bomb(tmp_path / "executed")], dtype=object))
    with np.load(tmp_path / "mine.npz", allow_pickle=True) as archive:
        archive["x"]
    assert (tmp_path / "executed").exists()  # what the two tests above would notice


def test_object_arrays_are_refused_without_a_file():
    message = refusal(lambda: from_arrays("mine", IMAGES, np.array([0, 1, None] * 6 + [0, 1], dtype=object)))
    assert "dtype object" in message
    assert "integers and floats" in message


def test_unknown_names_come_with_the_nearest_one():
    assert "did you mean 'digits'" in refusal(lambda: load("digit"))
    message = refusal(lambda: load("xyzzy"))
    assert "did you mean" not in message
    assert "'xyzzy'" in message
    assert "accepted: digits" in message
    assert ".npz" in message


def test_builtin_digits():
    data = load("digits")
    assert data.kind == "images"
    assert (data.x.shape, data.x_test.shape) == ((1000, 1, 8, 8), (797, 1, 8, 8))
    assert data.x.dtype == torch.float64
    assert (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert (data.classes, data.total, data.name) == (10, 1000, "digits")
    again, other = load("digits"), load("digits", seed=1)
    assert again.sha256 == data.sha256
    assert torch.equal(again.x, data.x)
    assert other.sha256 != data.sha256
    union = torch.cat([data.x, data.x_test]).flatten(1).sum(0)
    torch.testing.assert_close(torch.cat([other.x, other.x_test]).flatten(1).sum(0), union)  # the same images, redrawn


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_integer_images_are_divided_by_the_maximum_of_their_dtype(dtype):
    top = np.iinfo(dtype).max
    images = np.random.default_rng(0).integers(0, top, (N, SIDE, SIDE), endpoint=True).astype(dtype)
    images[0, 0, 0] = top
    data = from_arrays("mine", images, LABELS, images[:4], LABELS[:4])
    assert data.x.dtype == torch.float64
    assert torch.equal(data.x[:, 0], torch.tensor(images.astype(np.float64) / top))
    assert torch.equal(data.x_test, data.x[:4])
    assert float(data.x.max()) == 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_are_used_as_given(dtype):
    images = (IMAGES * 300 - 7).astype(dtype)
    data = from_arrays("mine", images, LABELS)
    assert data.x.dtype == torch.float64
    assert torch.equal(data.x[:, 0], torch.tensor(images.astype(np.float64)))


def test_boolean_images_are_zero_and_one():
    data = from_arrays("mine", IMAGES > 0.5, LABELS)
    assert torch.equal(data.x[:, 0], torch.tensor(IMAGES > 0.5).double())


@pytest.mark.parametrize(
    ("shape", "given", "kind"),
    [
        ((N, 9), None, "series"),
        ((N, 6, 6), None, "images"),
        ((N, 6, 6, 3), None, "images"),
        ((N, 7, 2), "points", "points"),
        ((N, 2), "sphere", "sphere"),
        ((N, 9), "series", "series"),
        ((N, 6, 6), "images", "images"),
    ],
)
def test_kind_is_inferred_unless_given(shape, given, kind, tmp_path):
    x = np.random.default_rng(0).random(shape)
    data = from_arrays("mine", x, LABELS, kind=given)
    assert data.kind == kind
    if kind != "images":
        assert torch.equal(data.x, torch.tensor(x))
    arrays = {"x_train": x, "y_train": LABELS} | ({} if given is None else {"kind": given})
    np.savez(tmp_path / "mine.npz", **arrays)
    from_file = load(tmp_path / "mine.npz")
    assert (from_file.kind, from_file.name, from_file.sha256) == (kind, "mine", data.sha256)
    assert torch.equal(from_file.x, data.x)


def test_vectors_are_scaled_and_values_are_centred_as_well():
    vectors = from_arrays("mine", IMAGES, PLACES, IMAGES[:2], PLACES[:2])
    assert vectors.classes is None
    assert float(vectors.targets.square().mean()) == pytest.approx(1)
    torch.testing.assert_close(vectors.targets * vectors.unit[1], torch.tensor(PLACES))
    torch.testing.assert_close(vectors.encode(vectors.y_test), vectors.targets[:2])
    assert vectors.coding == "vectors scaled to a mean square of one"
    values = from_arrays("mine", IMAGES, PLACES[:, 0])
    assert values.targets.shape == (N, 1)
    assert float(values.targets.mean()) == pytest.approx(0, abs=1e-12)
    assert float(values.targets.std()) == pytest.approx(1)
    column = from_arrays("mine", IMAGES, PLACES[:, :1], IMAGES[:2], PLACES[:2, :1])
    assert torch.equal(column.targets, values.targets), "a column is of single values"
    assert column.y_test.shape == (2,)
    assert torch.equal(vectors.itself().targets, vectors.x.flatten(1)), "inputs are left as they are"


def test_whole_degrees_are_degrees():
    whole = from_arrays("mine", PLACES.astype(int), PLACES[:, 0], kind="sphere")
    assert torch.equal(whole.x, torch.tensor(PLACES.astype(int)).double())


def test_halves_of_pairs_are_read_alike():
    x = (255 * IMAGES).astype(np.uint8)
    pairs = from_arrays("mine", x, x[:, ::-1], kind="pairs")
    assert torch.equal(pairs.x.flip(1), pairs.y)
    assert float(pairs.x.max()) <= 1
    assert torch.equal(pairs.targets, pairs.y.flatten(1))


@pytest.mark.parametrize(
    ("h", "w", "top", "left"), [(4, 8, 2, 0), (8, 4, 0, 2), (5, 8, 1, 0), (8, 5, 0, 1), (6, 6, 0, 0)]
)
def test_non_square_images_are_centred_on_their_ground(h, w, top, left):
    x = np.random.default_rng(0).random((N, h, w)) + 1
    x[:, [0, -1]], x[:, :, [0, -1]] = 7.0, 7.0
    data = from_arrays("mine", x, LABELS)
    side = max(h, w)
    assert data.x.shape == (N, 1, side, side)
    assert torch.equal(data.x[:, 0, top : top + h, left : left + w], torch.tensor(x))
    assert int((data.x == 7.0).sum()) == N * (side * side - (h - 2) * (w - 2))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_come_first(channels):
    x = np.random.default_rng(0).random((N, SIDE, 8, channels))
    data = from_arrays("mine", x, LABELS)
    assert data.x.shape == (N, channels, 8, 8)
    for c in range(channels):
        assert torch.equal(data.x[:, c, 1:-1], torch.tensor(x[..., c]))
    assert data.x.is_contiguous()


def test_digest_sees_every_array():
    base = from_arrays("mine", IMAGES, LABELS, IMAGES[:3], LABELS[:3])
    assert len(base.sha256) == 64
    same = from_arrays("another name", IMAGES.copy(order="F"), LABELS, IMAGES[:3], LABELS[:3])
    assert same.sha256 == base.sha256
    others = [
        from_arrays("mine", changed(IMAGES, (0, 0, 0), 0.5), LABELS, IMAGES[:3], LABELS[:3]),
        from_arrays("mine", IMAGES, LABELS[::-1], IMAGES[:3], LABELS[:3]),
        from_arrays("mine", IMAGES, LABELS, IMAGES[1:4], LABELS[:3]),
        from_arrays("mine", IMAGES, LABELS, IMAGES[:3], LABELS[1:4]),
        from_arrays("mine", IMAGES, LABELS),
    ]
    assert len({base.sha256, *(data.sha256 for data in others)}) == 6


def imbalanced() -> Dataset:
    """Classes of 60, 30 and 10 images, each image carrying its own number."""
    x = np.random.default_rng(0).random((100, 4, 4))
    x[:, 0, 0] = np.arange(100)
    return from_arrays("mine", x, np.repeat([0, 1, 2], [60, 30, 10])[np.random.default_rng(1).permutation(100)])


@pytest.mark.parametrize(
    ("size", "counts"), [(30, (10, 10, 10)), (20, None), (29, None), (50, (20, 20, 10)), (90, (50, 30, 10))]
)
def test_subsets_are_balanced(size, counts):
    data = imbalanced()
    small = data.subset(size, seed=3)
    found = torch.bincount(small.y, minlength=3)
    assert int(found.sum()) == size == len(small.x)
    if counts is None:  # classes allow it: counts differ by one at most
        assert int(found.max() - found.min()) <= 1
    else:
        assert found.tolist() == list(counts)
    numbers = small.x[:, 0, 0, 0].long()
    assert len(numbers.unique()) == size  # nothing twice
    assert torch.equal(data.y[numbers], small.y)  # labels stay with their images
    assert torch.equal(data.x[numbers], small.x)
    assert (small.total, small.sha256) == (100, data.sha256)


def test_subsets_depend_on_the_seed_only():
    data = imbalanced()
    numbers = [data.subset(30, seed).x[:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert torch.equal(data.subset(100, 0).x, data.x)
    assert torch.equal(data.subset(1_000, 0).y, data.y)


def test_subsets_for_regression_are_plain_draws():
    data = from_arrays("mine", np.random.default_rng(0).random((100, 4, 4)), np.arange(100.0))
    small = data.subset(40, 0)
    assert len(small.y) == len(small.y.unique()) == 40
    index = small.y.long()
    assert torch.equal(data.x[index], small.x)


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_contrasts_are_centred_one_hots_without_their_redundancy(classes):
    codes = class_codes(torch.ones(classes))
    assert codes.shape == (classes, classes - 1)
    assert codes.dtype == torch.float64
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(codes.T @ codes, classes * torch.eye(classes - 1), **exact)  # orthogonal, unit variance
    torch.testing.assert_close(codes.sum(0), torch.zeros(classes - 1), **exact)  # centred for balanced classes
    centred = torch.eye(classes) - 1 / classes
    torch.testing.assert_close(codes @ codes.T, classes * centred @ centred.T, **exact)  # nothing lost, nothing added


def test_two_classes_are_minus_and_plus_one():
    data = from_arrays("mine", IMAGES, np.arange(N) % 2)
    assert torch.equal(data.targets, torch.where(data.y == 1, 1.0, -1.0)[:, None])
    assert "-1 and +1" in data.coding
    boolean = from_arrays("mine", IMAGES, np.arange(N) % 2 == 1)
    assert torch.equal(boolean.targets, data.targets)


def test_unequal_classes_have_centred_targets_of_unit_variance():
    labels = np.array([0] * 14 + [1] * 4 + [2] * 2)
    data = from_arrays("mine", IMAGES[:20], labels)
    torch.testing.assert_close(data.targets.mean(0), torch.zeros(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(data.targets.square().mean(), torch.tensor(1.0), rtol=0, atol=1e-12)
    apart = torch.cdist(data.codes, data.codes)[~torch.eye(3, dtype=torch.bool)]
    torch.testing.assert_close(apart, apart[:1].expand(6))  # no class is farther than another one


def test_balanced_classes_have_unit_variance_targets():
    data = from_arrays("mine", IMAGES[:18], LABELS[:18])
    assert data.targets.shape == (18, 2)
    torch.testing.assert_close(data.targets.mean(0), torch.zeros(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(data.targets.var(0, unbiased=False), torch.ones(2), rtol=0, atol=1e-12)
    assert "2 orthonormal contrasts of 3" in data.coding


def test_regression_targets_are_standardised_by_the_training_values():
    y = np.random.default_rng(0).normal(5, 3, N)
    data = from_arrays("mine", IMAGES, y, IMAGES[:4], y[:4] + 1)
    assert data.classes is None
    assert data.codes is None
    assert data.targets.shape == (N, 1)
    torch.testing.assert_close(data.targets.mean(), torch.tensor(0.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(data.targets.std(), torch.tensor(1.0), rtol=0, atol=1e-12)
    expected = (y[:4] + 1 - y.mean()) / y.std(ddof=1)
    torch.testing.assert_close(data.encode(data.y_test)[:, 0], torch.tensor(expected))
    assert "unit variance" in data.coding


def test_new_images_get_the_layout_of_the_run(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (N, 4, 8, 3)).astype(np.uint8)
    data = from_arrays("mine", images, LABELS)
    for key in ("x", "x_test"):
        np.savez(tmp_path / "new.npz", **{key: images[:5]})
        assert torch.equal(load_new(tmp_path / "new.npz", data), data.x[:5])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": IMAGES[:, :, :5]}, ("x", "(6, 5, 1)", "(8, 8, 1)")),
        ({"x": np.zeros((2, 8, 8, 3))}, ("x", "(8, 8, 3)", "(8, 8, 1)")),
        ({"x": IMAGES[0]}, ("x", "(6, 6)", "[N, H, W]")),
        ({"x": np.full((2, 8, 8), np.nan)}, ("x", "128", "NaN or infinite")),
        ({"images": IMAGES}, ("new.npz", "images", "x")),
        (None, ("new", "no file", "new.npz")),
    ],
)
def test_new_images_that_do_not_fit_are_refused(arrays, words, tmp_path):
    data = from_arrays("mine", np.random.default_rng(0).random((N, 8, 8)), LABELS)
    if arrays is not None:
        np.savez(tmp_path / "new.npz", **arrays)
    message = refusal(lambda: load_new(tmp_path / "new.npz", data))
    assert all(word in message for word in words), message


def test_new_series_have_the_length_of_the_run(tmp_path):
    data = from_arrays("mine", np.random.default_rng(0).random((N, 9)), LABELS)
    np.savez(tmp_path / "new.npz", x=np.ones((2, 9)))
    assert torch.equal(load_new(tmp_path / "new.npz", data), torch.ones(2, 9))
    np.savez(tmp_path / "new.npz", x=np.ones((2, 8)))
    message = refusal(lambda: load_new(tmp_path / "new.npz", data))
    assert "(8,)" in message
    assert "(9,)" in message


def test_nearest_names_every_accepted_one():
    assert datasets.nearest("mirro", ["C4", "mirror"]) == "did you mean 'mirror'? accepted: C4, mirror"
    assert datasets.nearest("zzz", ["C4", "mirror"]) == "accepted: C4, mirror"


WHOLE = np.round(IMAGES * 255).astype(np.uint8)


@pytest.mark.parametrize(("train", "new"), [(WHOLE, WHOLE), (IMAGES, IMAGES.astype(np.float32))])
def test_new_inputs_of_one_scale_are_taken(train, new, tmp_path):
    data = from_arrays("mine", train, LABELS, new, LABELS)
    np.savez(tmp_path / "new.npz", x=new)
    torch.testing.assert_close(load_new(tmp_path / "new.npz", data), data.x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("train", "new"), [(WHOLE, WHOLE / 255), (WHOLE, WHOLE.astype(np.int16)), (IMAGES, WHOLE)])
def test_new_inputs_of_another_scale_are_refused(train, new, tmp_path):
    data = from_arrays("mine", train, LABELS)
    np.savez(tmp_path / "new.npz", x=new)
    assert f"got dtype {new.dtype}" in refusal(lambda: load_new(tmp_path / "new.npz", data))
    assert f"got dtype {new.dtype}" in refusal(lambda: from_arrays("mine", train, LABELS, new, LABELS))


def test_new_images_have_the_shape_of_the_old_before_they_are_padded(tmp_path):
    data = from_arrays("mine", np.random.default_rng(0).random((N, 8, 12)), LABELS)
    np.savez(tmp_path / "new.npz", x=np.ones((2, 12, 8)))
    assert "(12, 8, 1)" in refusal(lambda: load_new(tmp_path / "new.npz", data))
    np.savez(tmp_path / "new.npz", x=np.ones((2, 8, 12, 1)))
    assert load_new(tmp_path / "new.npz", data).shape == (2, 1, 12, 12)
