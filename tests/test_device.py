"""Data on another device: every step on the way from images to results, on a device that is made up here.

`Elsewhere` keeps its numbers on the CPU and claims another device; as on a GPU, whatever is not a single number must be
there as well, and nothing is read by NumPy before it was brought back.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from pyro_invariance import cli, zoo
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.devices import checked_device, moved
from pyro_invariance.selection import select
from pyro_invariance.sparse_classes import fit_classes
from pyro_invariance.sparse_fitting import fit_sparse
from pyro_invariance.sweep import sweep
from pyro_invariance.typing import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

PLACE = torch.device("meta")  # the name it goes by: torch must know one
INDICES = {torch.ops.aten.index.Tensor, torch.ops.aten._index_put_impl_.default, torch.ops.aten.index_put_.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=PLACE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"


class Device(TorchDispatchMode):
    """Within it, what is asked for on the device is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict) -> Any:
    """Carry out one operation where its arguments are; on both devices at once only as a GPU would."""
    held = [t for t in tree_iter((args, kwargs)) if isinstance(t, Elsewhere)]
    if held and func not in COPIES:  # what is indexed and what is put there, wherever the indices are
        if func._schema.name.endswith("_") and args[0].device.type == "cpu":
            raise RuntimeError(f"{func}: what is on a device cannot be put into a tensor on the CPU")
        together = (args[0], args[2:]) if func in INDICES else (args, kwargs)
        strangers = [t for t in tree_iter(together) if isinstance(t, Tensor) and not isinstance(t, Elsewhere)]
        if any(t.dim() > 0 for t in strangers):
            raise RuntimeError(f"{func}: tensors on two devices, {[tuple(t.shape) for t in strangers]} on the CPU")
    known = {id(t.held): t for t in held}  # what is changed in place stays the tensor that it is
    inside = tree_map(lambda t: t.held if isinstance(t, Elsewhere) else t, (args, kwargs))
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == PLACE
        inside[1]["device"] = "cpu"
    elif func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    else:
        there = bool(held) and func is not torch.ops.aten._local_scalar_dense.default
    found = func(*inside[0], **inside[1])
    if torch.Tag.inplace_view in func.tags and held:
        with no_dispatch():  # the shape that it claims changes with that of what it holds
            func(*args, **kwargs)
    return tree_map(lambda t: known.get(id(t), Elsewhere(t)) if isinstance(t, Tensor) else t, found) if there else found


@pytest.fixture
def device() -> Iterator[torch.device]:
    with Device():
        yield PLACE


def test_the_made_up_device_refuses_what_a_gpu_would(device):
    there, here = torch.arange(4.0).to(device), torch.arange(4.0)
    assert (there.device.type, (2 * there).device.type, there.sum().cpu().device.type) == ("meta", "meta", "cpu")
    assert float((there * torch.tensor(2.0)).sum()) == 12.0
    assert float(there[torch.tensor([1, 2])].sum()) == 3.0
    for wrong in (lambda: there + here, lambda: here @ there, lambda: torch.stack([there, here])):
        with pytest.raises(RuntimeError, match="two devices"):
            wrong()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()


@pytest.fixture(scope="module")
def data(float64: None) -> Dataset:
    return zoo.load("orbit_gp").data("SO2", 0, size=24, test=4, side=10)


def named(data: Dataset, entry: str, label: str) -> Any:
    return next(h for h in zoo.load(entry).hypotheses(data) if h.label == label)


KERNELS = [
    *[("orbit_gp", label) for label in ("trivial-polar", "O2", "rotation", "translation", "convolution")],
    ("turning_patches", "rotation"),
    ("augmentation_gp", "affine"),
]


@pytest.mark.parametrize(("entry", "label"), KERNELS)
def test_a_kernel_stays_where_its_images_are(entry, label, data, device):
    hypothesis = named(data, entry, label)
    extents = [torch.tensor(0.3, requires_grad=True) for _ in hypothesis.extents]
    at = [torch.tensor(0.7, requires_grad=True), *extents]
    found = []
    for place in ("cpu", device):
        kernel, targets = hypothesis.prepare(data.to(place))
        gram = kernel.gram(*at)
        covariance, variance = kernel.cross(kernel.compared(data.x_test.to(place)), *at)
        assert {t.device.type for t in (gram, covariance, variance, targets)} == {torch.device(place).type}
        slopes = torch.autograd.grad(gram.sum() + covariance.sum(), at)
        assert all(s.device.type == "cpu" for s in slopes)
        found.append([gram.detach().cpu(), covariance.detach().cpu(), *slopes])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def on_cpu(value: object) -> bool:
    if isinstance(value, dict):
        return all(on_cpu(v) for v in value.values())
    return not isinstance(value, Tensor) or value.device.type == "cpu"


FITTED = [
    ("orbit_gp", "null"),
    ("orbit_gp", "convolution"),
    *[pytest.param(*both, marks=pytest.mark.slow) for both in (("orbit_gp", "rotation"), ("turning_patches", "SO2"))],
]


@pytest.mark.parametrize(("entry", "label"), FITTED)
def test_a_fit_on_a_device_is_that_on_the_cpu(entry, label, data, device):
    hypothesis = named(data, entry, label)
    (expected,), _ = sweep([hypothesis], data, 0, jobs=1)
    done, failed = sweep([hypothesis], data.to(device), 0, jobs=1)
    assert failed == {}
    (found,) = done
    assert all(on_cpu(value) for value in vars(found).values())
    assert found.evidence.value == pytest.approx(expected.evidence.value, abs=1e-3)
    torch.testing.assert_close(found.test_mean, expected.test_mean, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "label"), [("latent_pose", "rotation"), ("sphere_gp", "zonal"), ("molecules", "SE3")]
)
def test_other_data_on_a_device_are_those_on_the_cpu(entry, label, device):
    module = zoo.load(entry)
    small = module.data(next(planted for planted in module.PLANTED if planted != "none"), size=24, test=4)
    (hypothesis,) = (h for h in module.hypotheses(small) if h.label == label)
    small = zoo.taken(small, [hypothesis], 0)
    (expected,), _ = sweep([hypothesis], small, 0, jobs=1)
    done, failed = sweep([hypothesis], small.to(device), 0, jobs=1)
    assert failed == {}
    assert all(on_cpu(value) for value in vars(done[0]).values())
    assert done[0].evidence.value == pytest.approx(expected.evidence.value, rel=1e-3, abs=1e-2)


def test_a_sparse_fit_on_a_device_is_that_on_the_cpu(data, device):
    hypothesis = named(data, "orbit_gp", "SO2")
    expected, found = (moved(fit_sparse(hypothesis, data.to(place), 20), "cpu") for place in ("cpu", device))
    assert all(on_cpu(value) for value in vars(found).values())
    assert found.evidence.value == pytest.approx(expected.evidence.value, abs=1e-3)
    torch.testing.assert_close(found.test_mean, expected.test_mean, rtol=1e-3, atol=1e-3)


def test_classes_on_a_device_are_those_on_the_cpu(device):
    rng = np.random.default_rng(0)
    labelled = from_arrays("mine", rng.random((24, 8, 8)), np.arange(24) % 3, rng.random((4, 8, 8)), np.arange(4) % 3)
    hypothesis = named(labelled, "orbit_gp", "mirror")
    fits = (fit_classes(hypothesis, labelled.to(place), 10, steps=3) for place in ("cpu", device))
    expected, found = (moved(fit, "cpu") for fit in fits)
    assert all(on_cpu(value) for value in vars(found).values())
    assert found.evidence.value == pytest.approx(expected.evidence.value, abs=1e-3)
    torch.testing.assert_close(found.test_log_density, expected.test_log_density, rtol=1e-3, atol=1e-3)


def test_devices_that_are_not_there_are_named(monkeypatch):
    assert checked_device("cpu").type == "cpu"
    with pytest.raises(BadInput, match="device: got 'mps', which has no float64"):
        checked_device("mps")
    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:-1", "", "meta"):
        with pytest.raises(BadInput, match=f"device: got {wrong!r}; cpu, cuda and cuda:N are accepted"):
            checked_device(wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BadInput, match=r"device: got 'cuda', which is not there; what torch can use here is cpu$"):
        checked_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput, match=r"got 'cuda:2', which is not there; .* here is cpu, cuda:0, cuda:1"):
        checked_device("cuda:2")


def test_the_device_is_looked_at_before_any_work(capsys, tmp_path):
    with pytest.raises(BadInput, match="device: got 'mps'"):
        select("digits", device="mps", out=tmp_path / "run")
    for command in (["select", "digits", "--out", "run"], ["profile", "digits", "--out", str(tmp_path / "p.png")]):
        assert cli.main([*command, "--device", "tpu"]) == 2
        assert capsys.readouterr().err.startswith("pyro-invariance: device: got 'tpu'; cpu, cuda and cuda:N")
    assert not Path("run").exists()


def test_a_selection_may_be_told_its_device(data, fitted):
    assert select(data, hypotheses=["null"], device="cpu", jobs=1).best.label == "null"
    assert fitted == ["null"]
