"""Bad arrays and bad files are refused in words that can be acted on, and no pickle is ever executed."""

import gc
import io
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_arrays import IMAGES, LABELS, PLACES, SIDE, N, changed, refusal

from pyro_invariance.datasets import from_arrays, load, load_new


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
    "integers of several numbers": (
        {"y_train": np.stack([LABELS, LABELS], 1)},
        ("y_train", "integers of shape (20, 2)", "floats"),
    ),
    "test places off the globe": (
        {"kind": "sphere", "x_train": PLACES, "y_train": PLACES[:, 0], "x_test": [[200.0, 0.0]], "y_test": [0.0]},
        ("x_test", "latitudes to 200", "-90 to 90"),
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


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_masked_values_are_refused(name):
    arrays = {"x_train": IMAGES, "y_train": np.arange(1.0, N + 1)}
    arrays[name] = np.ma.masked_equal(arrays[name], arrays[name].flat[0])
    assert f"{name}: got 1 masked values; leave out items" in refusal(lambda: from_arrays("mine", **arrays))
    arrays[name] = np.ma.masked_equal(arrays[name].data, -1.0)  # of which nothing is masked
    from_arrays("mine", **arrays)


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
