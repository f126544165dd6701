"""Good data come out in the promised layout; new inputs have to fit it."""

import numpy as np
import pytest
import torch
from small_arrays import IMAGES, LABELS, PLACES, SIDE, N, changed, refusal

from pyro_invariance import datasets
from pyro_invariance.datasets import Dataset, from_arrays, load, load_new
from pyro_invariance.processes import class_codes


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
