"""Downloads against a server on this machine: what arrives is whole or refused in one line, and kept only if whole."""

import gc
import gzip
import hashlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

import pyro_invariance
from pyro_invariance import datasets, downloads, zoo
from pyro_invariance.cli import main
from pyro_invariance.downloads import FILES, read_idx
from pyro_invariance.typing import BadInput

ORIGINALS = os.environ.get("PYRO_INVARIANCE_DATA")  # read before the tests unset it
RNG = np.random.default_rng(0)
ARRAYS = {
    "train_images": RNG.integers(0, 256, (12, 5, 5), np.uint8),
    "train_labels": np.arange(12, dtype=np.uint8) % 3,
    "test_images": RNG.integers(0, 256, (4, 5, 5), np.uint8),
    "test_labels": np.arange(4, dtype=np.uint8) % 3,
}
X_NAMES = dict(zip(("x_train", "y_train", "x_test", "y_test"), ARRAYS.values(), strict=True))


def idx(array: np.ndarray) -> bytes:
    """The IDX file of an array of bytes, gzipped."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


def mat(**changes: object) -> bytes:
    """A MATLAB file of ten molecules of up to three atoms; energies say which is which."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    charges = np.where(rng.random((10, 3)) < 0.2, 0, rng.choice([1, 6, 8], (10, 3)))
    savemat(file, {"R": rng.normal(size=(10, 3, 3)), "Z": charges, "T": -np.arange(10.0)[None], "P": 0} | changes)
    return file.getvalue()


@dataclass
class Server:
    """What a server has, what was asked of it, and how it misbehaves."""

    url: str
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    announce: int = 0  # bytes announced and never sent

    def publish(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point the library here, with the checksums of what is here now."""
        for name in ("mnist", "qm7"):
            source = downloads.SOURCES[name]
            kinds = {file: checksum.split(":")[0] for file, checksum in source.checksums.items()}
            found = {file: f"{k}:{hashlib.new(k, self.files[file]).hexdigest()}" for file, k in kinds.items()}
            monkeypatch.setitem(downloads.SOURCES, name, replace(source, url=self.url, checksums=found))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, no local folder, no proxy between the tests and their server; connections left open are told."""
    monkeypatch.setattr(downloads.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("PYRO_INVARIANCE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    yield tmp_path / "cache" / "pyro_invariance" / "mnist"
    gc.collect()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            state.asked.append(name)
            if name not in state.files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.files[name]) + state.announce))
            self.end_headers()
            self.wfile.write(state.files[name])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        files = {FILES[role]: idx(a) for role, a in ARRAYS.items()} | {"qm7.mat": mat()}
        state = Server(f"http://127.0.0.1:{http.server_port}/", files)
        state.publish(monkeypatch)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which a call is refused; it is one line."""
    with pytest.raises(BadInput) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def held(folder: Path) -> list[str]:
    """Everything that lies in a folder, temporary files too."""
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def check(data: datasets.Dataset) -> None:
    assert (data.name, data.kind, data.classes, data.total, data.dtype) == ("mnist", "images", 3, 12, "uint8")
    assert torch.equal(data.x[:, 0] * 255, torch.tensor(ARRAYS["train_images"], dtype=torch.float64))
    assert torch.equal(data.x_test[:, 0] * 255, torch.tensor(ARRAYS["test_images"], dtype=torch.float64))
    assert data.y.tolist() == ARRAYS["train_labels"].tolist()
    assert data.y_test.tolist() == ARRAYS["test_labels"].tolist()


def test_second_use_asks_nothing_of_the_server(server, cache, capfd):
    check(datasets.load("mnist"))
    assert sorted(server.asked) == sorted(FILES.values())
    assert held(cache) == sorted(FILES.values())
    server.asked.clear()
    check(datasets.load("mnist"))
    assert server.asked == []
    assert capfd.readouterr() == ("", "")  # no bar where nobody looks


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only(terminal, server, monkeypatch, capsys):
    monkeypatch.setattr(downloads.sys.stderr, "isatty", lambda: terminal)
    downloads.fetch("mnist")
    assert ("100%" in capsys.readouterr().err) == terminal


def test_damaged_file_in_the_cache_is_fetched_again(server, cache):
    downloads.fetch("mnist")
    server.asked.clear()
    file = cache / FILES["test_labels"]
    file.write_bytes(file.read_bytes()[:-1])
    assert not downloads.cached("mnist")
    check(datasets.load("mnist"))
    assert server.asked == [FILES["test_labels"]]
    assert downloads.cached("mnist")


def test_wrong_checksum(server, cache):
    server.files[FILES["train_labels"]] = idx(ARRAYS["train_labels"][::-1])
    message = refusal(lambda: datasets.load("mnist"))
    assert f"{server.url}{FILES['train_labels']} has the wrong checksum" in message
    assert "put mnist.npz into the folder that PYRO_INVARIANCE_DATA names" in message
    assert held(cache) == [FILES["train_images"]]


def test_transfer_that_breaks_off(server, cache):
    server.announce = 100
    message = refusal(lambda: datasets.load("mnist"))
    assert f"the transfer of {server.url}{FILES['train_images']} broke off" in message
    assert "try again later" in message
    assert held(cache) == []
    server.announce = 0
    check(datasets.load("mnist"))


def test_server_without_the_file(server, cache):
    del server.files[FILES["test_images"]]
    message = refusal(lambda: datasets.load("mnist"))
    assert f"the server answered 404 Not Found to {server.url}{FILES['test_images']}" in message
    assert "PYRO_INVARIANCE_DATA" in message
    assert held(cache) == sorted([FILES["train_images"], FILES["train_labels"]])


def test_no_network(cache, monkeypatch):
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port, and it refuses
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setitem(downloads.SOURCES, "mnist", replace(downloads.SOURCES["mnist"], url=url))
        message = refusal(lambda: datasets.load("mnist"))
    assert f"no connection for {url}" in message
    assert "check the network" in message
    assert held(cache) == []


def test_cache_that_cannot_be_written(server, cache):
    cache.parent.parent.mkdir()
    cache.parent.touch()  # a file where the folder should be
    message = refusal(lambda: datasets.load("mnist"))
    assert f"cannot write to {cache}" in message
    assert "PYRO_INVARIANCE_DATA" in message


IMAGES, PLAIN = ARRAYS["train_images"], gzip.decompress(idx(ARRAYS["train_images"]))
BAD_FILES = {
    "half a gzip": (idx(IMAGES)[:-40], "is no whole gzip file"),
    "damaged gzip": (idx(IMAGES)[:20] + bytes(30) + idx(IMAGES)[50:], "is no whole gzip file"),
    "no gzip": (PLAIN, "is no whole gzip file"),
    "floats": (gzip.compress(b"\0\0\x0d\x03" + PLAIN[4:]), "begins with 00000d03"),
    "empty": (gzip.compress(b""), "begins with , not"),
    "no axes": (gzip.compress(b"\0\0\x08\0" + PLAIN[4:]), "begins with 00000800"),
    "half a header": (gzip.compress(PLAIN[:9]), "holds -7"),
    "too short": (gzip.compress(PLAIN[:-1]), "announces 12 x 5 x 5 bytes and holds 299"),
    "too long": (gzip.compress(PLAIN + b"\0"), "announces 12 x 5 x 5 bytes and holds 301"),
    "fewer images": (idx(IMAGES[:7]), "train images of shape (7, 5, 5) and labels of shape (12,)"),
    "labels for images": (idx(IMAGES[:, 0, 0]), "train images of shape (12,)"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_with_the_right_checksum(case, server, cache, monkeypatch):
    server.files[FILES["train_images"]], words = BAD_FILES[case]
    server.publish(monkeypatch)
    message = refusal(lambda: datasets.load("mnist"))
    assert words in message
    assert str(cache) in message
    assert "fetch again" in message


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
def test_idx_files_are_read(shape, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "array.gz").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "array.gz"), array)


# The local folder.


@pytest.mark.parametrize("arrays", [ARRAYS, X_NAMES], ids=["train_images", "x_train"])
def test_local_folder_goes_first(arrays, server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", str(tmp_path))
    check(datasets.load("mnist"))  # no mnist.npz there
    assert server.asked
    server.asked.clear()
    changed = {k: v[::-1] for k, v in arrays.items()}
    np.savez(tmp_path / "mnist.npz", **changed)
    assert datasets.load("mnist").y.tolist() == ARRAYS["train_labels"][::-1].tolist()
    assert server.asked == []


def test_local_file_that_lacks_arrays(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", train_images=IMAGES, train_labels=ARRAYS["train_labels"])
    message = refusal(lambda: datasets.load("mnist"))
    assert f"{str(tmp_path / 'mnist.npz')!r} lacks train_images and train_labels and test_images" in message
    assert "or x_train and y_train" in message
    assert "it holds train_images, train_labels" in message
    (tmp_path / "mnist.npz").write_bytes(b"no zip")
    assert "mnist.npz" in refusal(lambda: datasets.load("mnist"))
    np.savez(tmp_path / "mnist.npz", **{**ARRAYS, "train_labels": np.array([None] * 12)})
    assert "pickles are never loaded" in refusal(lambda: datasets.load("mnist"))
    assert server.asked == []


# Molecules.


def test_molecules_are_in_angstrom_and_shuffled(server, cache):
    data = datasets.load("qm7")
    assert downloads.cached("qm7")
    assert held(cache.parent) == ["qm7", "qm7.mat"]
    there = loadmat(cache.parent / "qm7" / "qm7.mat")
    x, y = torch.cat([data.x, data.x_test]).numpy(), torch.cat([data.y, data.y_test])
    assert (data.kind, data.x.shape, data.x_test.shape, data.classes) == ("points", (8, 3, 4), (2, 3, 4), None)
    assert sorted(y.tolist()) == list(range(-9, 1)) != y.tolist()
    rows = (-y).long().numpy()
    np.testing.assert_allclose(x[..., 1:] / 0.529177, there["R"][rows], rtol=1e-6)
    assert np.array_equal(x[..., 0], there["Z"][rows])


BAD_MOLECULES = {
    "no MATLAB": (b"something else", "is no MATLAB file with R, Z and T"),
    "no energies": (mat(T=np.array([["a"]])), "is no MATLAB file with R, Z and T (ValueError)"),
    "fewer charges": (mat(Z=np.ones((9, 3))), "atomic_numbers (9, 3)"),
    "no axis": (mat(R=np.zeros((10, 3))), "positions (10, 3)"),
}


@pytest.mark.parametrize("case", BAD_MOLECULES)
def test_bad_molecules_with_the_right_checksum(case, server, monkeypatch):
    server.files["qm7.mat"], words = BAD_MOLECULES[case]
    server.publish(monkeypatch)
    assert words in refusal(lambda: datasets.load("qm7"))


def test_molecules_with_the_wrong_checksum(server, cache):
    server.files["qm7.mat"] = mat(T=np.ones((1, 10)))
    message = refusal(lambda: downloads.fetch("qm7"))
    assert "qm7.mat has the wrong checksum and was not kept" in message
    assert "no longer what the checksum was recorded of" in message
    assert "put qm7.npz into the folder" in message
    assert held(cache.parent / "qm7") == []


def test_local_molecules_go_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", str(tmp_path))
    before, arrays = datasets.load("qm7"), downloads.fetch("qm7")
    assert server.asked == ["qm7.mat"]
    server.asked.clear()
    downloads.cache("qm7").joinpath("qm7.mat").unlink()
    np.savez(tmp_path / "qm7.npz", n_atoms=3, **arrays)
    assert downloads.local("qm7") == tmp_path / "qm7.npz"
    data = datasets.load("qm7")
    assert server.asked == []
    assert data.sha256 == before.sha256
    for name in ("x", "y", "x_test", "y_test"):
        assert torch.equal(getattr(data, name), getattr(before, name))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_local_originals(name, monkeypatch):
    if not ORIGINALS or not (Path(ORIGINALS) / f"{name}.npz").is_file():
        pytest.skip(f"PYRO_INVARIANCE_DATA names no folder with {name}.npz")
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", ORIGINALS)
    data = datasets.load(name)
    assert data.x.shape == (60_000, 1, 28, 28)
    assert data.x_test.shape == (10_000, 1, 28, 28)
    assert (data.classes, data.total, data.dtype) == (10, 60_000, "uint8")
    chosen = data.subset(2_000, 0)
    assert chosen.y.bincount().tolist() == [200] * 10


# Names.


@pytest.mark.parametrize("planted", ["none", "mirror", "C4", "SO2", "rotation", "translation"])
def test_simulated_data_have_names(planted):
    data = zoo.load_data(f"simulated-{planted}", 3)
    assert data.sha256 == zoo.load("orbit_gp").data(planted, 3).sha256
    assert data.name == f"simulated-{planted}"
    assert data.sha256 != pyro_invariance.load(f"simulated-{planted}").sha256


@pytest.mark.parametrize(
    ("given", "close"),
    [("simulated-miror", "simulated-mirror"), ("fashion-mnist", "fashion_mnist"), ("minst", "mnist")],
)
def test_unknown_names(given, close):
    message = refusal(lambda: pyro_invariance.load(given))
    assert (
        f"got {given!r}; did you mean {close!r}? accepted: digits, mnist, fashion_mnist, qm7, simulated-none" in message
    )
    assert message.endswith("or the path of an .npz file")


# The command line.


def rows(capsys: pytest.CaptureFixture) -> dict[str, str]:
    assert main(["data", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return {line.split()[0]: line for line in out.splitlines()}


def test_list_says_where_data_are(server, tmp_path, monkeypatch, capsys):
    lines = rows(capsys)
    assert list(lines) == ["name", "digits", "mnist", "fashion_mnist", "qm7", *zoo.simulated()]
    assert "CC BY 4.0" in lines["digits"]
    assert lines["digits"].endswith("bundled")
    assert lines["mnist"].endswith("to be downloaded (11.6 MB)")
    assert server.asked == []
    downloads.fetch("mnist")
    assert rows(capsys)["mnist"].endswith("cached")
    np.savez(tmp_path / "mnist.npz", **ARRAYS)
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", str(tmp_path))
    assert rows(capsys)["mnist"].endswith("local folder")
    assert "MIT" in lines["fashion_mnist"]


def test_listed_sizes_are_true():
    sizes = {name: size for name, _, size, _, where in zoo.catalogue() if where == "bundled"}
    for name in ("digits", "simulated-none"):
        data = zoo.load_data(name)
        assert sizes[name] == f"{len(data.y):,} + {len(data.y_test):,}"


def test_fetch(server, cache, tmp_path, monkeypatch, capsys):
    assert main(["data", "fetch", "mnist"]) == 0
    assert capsys.readouterr() == (f"mnist is in {cache}\n", "")
    assert downloads.cached("mnist")
    assert main(["data", "fetch", "digits"]) == 0
    assert "digits is bundled" in capsys.readouterr().out
    np.savez(tmp_path / "mnist.npz", **ARRAYS)
    monkeypatch.setenv("PYRO_INVARIANCE_DATA", str(tmp_path))
    assert main(["data", "fetch", "mnist"]) == 0
    assert str(tmp_path / "mnist.npz") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["fetch", "mnits"],
            "got 'mnits'; did you mean 'mnist'? accepted: digits, mnist, fashion_mnist, qm7",
        ),
        (["fetch", "mnist"], "has the wrong checksum"),
        (["fetch"], "name"),
        ([], "COMMAND"),
    ],
)
def test_commands_fail_in_one_line(arguments, words, server, capsys):
    server.files[FILES["train_images"]] = b"something else"
    assert main(["data", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyro-invariance: ")
    assert err.count("\n") == 1
    assert words in err
