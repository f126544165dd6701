"""Data sets that are downloaded once: MNIST, Fashion-MNIST and QM7, checksummed, kept in the user's cache folder.

References: [lecun1998gradient], [xiao2017fashion], [rupp2012fast], [blum2009million].
"""

import gzip
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import requests
from scipy.io import loadmat

from pyro_invariance.typing import BadInput

VARIABLE = "PYRO_INVARIANCE_DATA"  # names a folder of .npz files that come before any download
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
BOHR = 0.529177210903  # angstrom
HELD_OUT = 1_000  # molecules for tests

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes
    ----------
    title, size, licence : str
        For people; the size is that of training and test.
    url : str
        Folder on the server, with a slash at the end.
    megabytes : float
        To be downloaded.
    checksums : mapping of str to str
        Of each file there, `md5:...` or `sha256:...`: published, or else recorded where a copy was found.
    keys : tuple of str
        Arrays that a local file holds, or else `x_train` and so on.
    read : callable
        `{file: path} -> arrays` by these keys.
    split : callable
        `arrays -> arguments` of `datasets.from_arrays`.
    """

    title: str
    size: str
    licence: str
    url: str
    megabytes: float
    checksums: Mapping[str, str]
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], Arrays]
    split: Callable[[Arrays], Arrays]


def read_images(paths: Mapping[str, Path]) -> Arrays:
    """Images and labels of `FILES`, uint8."""
    arrays = {role: read_idx(paths[file]) for role, file in FILES.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise BadInput(
                f"data: {part} images of shape {images.shape} and labels of shape {labels.shape} do not go together; "
                f"delete {str(paths[FILES[f'{part}_images']].parent)!r} and fetch again"
            )
    return arrays


def split_images(arrays: Arrays) -> Arrays:
    """Training and test images as they are published."""
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), (arrays[role] for role in FILES), strict=True))


def read_molecules(paths: Mapping[str, Path]) -> Arrays:
    """Positions `[N, P, 3]` (bohr there, angstrom here), charges `[N, P]` and energies `[N]` (kcal/mol) of QM7."""
    (path,) = paths.values()
    try:
        found = loadmat(path, variable_names=("R", "Z", "T"))
        positions, charges, energies = (np.asarray(found[key], dtype=float) for key in "RZT")
    except Exception as error:  # scipy and numpy have many
        why = type(error).__name__
        raise BadInput(
            f"data: {str(path)!r} is no MATLAB file with R, Z and T ({why}); delete and fetch again"
        ) from None
    return dict(zip(MOLECULES, (BOHR * positions, charges, energies.flatten()), strict=True))


def split_molecules(arrays: Arrays) -> Arrays:
    """Molecules `[N, P, 4]` of charge and position, and energies, shuffled: similar ones are published together."""
    positions, charges, energies = (arrays[key].astype(float) for key in MOLECULES)
    if positions.shape != (*charges.shape, 3) or charges.shape[:1] != energies.shape or charges.ndim != 2:
        shapes = " and ".join(f"{key} {arrays[key].shape}" for key in MOLECULES)
        raise BadInput(f"data: got {shapes}; [N, P, 3], [N, P] and [N] are accepted")
    order = np.random.default_rng(0).permutation(len(energies))  # the same test molecules for all seeds
    x, y = np.concatenate([charges[..., None], positions], -1)[order], energies[order]
    new = min(HELD_OUT, len(y) // 5)
    return {"x_train": x[new:], "y_train": y[new:], "x_test": x[:new], "y_test": y[:new], "kind": np.array("points")}


MOLECULES = ("positions", "atomic_numbers", "atomization_energy_pbe0")
SOURCES = {
    "mnist": Source(
        "handwritten digits, 28 x 28, 10 classes",
        "60,000 + 10,000",
        "CC BY-SA 3.0 as redistributed",  # the authors gave none
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        11.6,
        {
            FILES["train_images"]: "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            FILES["train_labels"]: "md5:d53e105ee54ea40749a09fcbcd1e9432",
            FILES["test_images"]: "md5:9fb629c4189551a2d022fa330f9573f3",
            FILES["test_labels"]: "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple(FILES),
        read_images,
        split_images,
    ),
    "fashion_mnist": Source(
        "articles of clothing, 28 x 28, 10 classes",
        "60,000 + 10,000",
        "MIT",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        30.9,
        {
            FILES["train_images"]: "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            FILES["train_labels"]: "md5:25c81989df183df01b3e8a0aad5dffbe",
            FILES["test_images"]: "md5:bef4ecab320f06d8554ea6380940ec79",
            FILES["test_labels"]: "md5:bb300cfdad3c16e7a12a480ee83cd310",
        },
        tuple(FILES),
        read_images,
        split_images,
    ),
    "qm7": Source(
        "energies of molecules of up to 23 atoms, kcal/mol",
        "about 6,100 + 1,000",  # the authors' file has 7,165 in all, others' copies 7,101
        "free with citation",
        "http://quantum-machine.org/data/",
        17.9,
        # The authors publish none: this is what github.com/jakeparker/10-701-project keeps in git-lfs, with the size.
        {"qm7.mat": "sha256:fd6c26c1086887310518e6a6da778253bc5d3ceb8166007a679a740fff9ee6ea"},
        MOLECULES,
        read_molecules,
        split_molecules,
    ),
}


def cache(name: str) -> Path:
    """Folder that the files of a data set are kept in."""
    return Path(pooch.os_cache("pyro_invariance")) / name


def local(name: str) -> Path | None:
    """The file `NAME.npz` of a data set in the folder that `PYRO_INVARIANCE_DATA` names, if it is there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".") / f"{name}.npz"
    return path if folder and path.is_file() else None


def cached(name: str) -> bool:
    """Whether all files of a data set are in the cache and whole."""
    paths = {cache(name) / file: checksum for file, checksum in SOURCES[name].checksums.items()}
    return all(path.is_file() and _checked(path, checksum) for path, checksum in paths.items())


def _checked(path: Path, checksum: str) -> bool:
    algorithm, value = checksum.split(":")
    return pooch.file_hash(str(path), alg=algorithm) == value


def fetch(name: str) -> Arrays:
    """Arrays of a data set (its `keys`), from the cache or else from the server.

    Raises
    ------
    BadInput
        With what failed and what to do; the cache then holds whole files only.
    """
    source = SOURCES[name]
    return source.read({file: _retrieve(name, file) for file in source.checksums})


def _retrieve(name: str, file: str) -> Path:
    """Path of one file: pooch downloads to a temporary name, and moves it into place once the checksum is right."""
    source = SOURCES[name]
    url = source.url + file
    instead = f"put {name}.npz into the folder that {VARIABLE} names"
    otherwise = f"try again later, or {instead}"
    answers: list[requests.Response] = []  # kept to be closed: pooch leaves a failed one open
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        headers={"Accept-Encoding": "identity"},  # or a helpful server unpacks the .gz and the checksum is another
        hooks={"response": lambda answer, **options: answers.append(answer)},
    )
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # pooch tells each download on stderr
    try:
        return Path(pooch.retrieve(url, source.checksums[file], file, cache(name), downloader=downloader))
    except requests.HTTPError:
        status = f"{answers[-1].status_code} {answers[-1].reason}"
        raise BadInput(f"data: {name}: the server answered {status} to {url}; {otherwise}") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        why = type(error).__name__
        raise BadInput(f"data: {name}: no connection for {url} ({why}); check the network and {otherwise}") from None
    except requests.RequestException as error:
        why = type(error).__name__
        raise BadInput(f"data: {name}: the transfer of {url} broke off ({why}); {otherwise}") from None
    except ValueError:  # pooch's word for a checksum
        why = "it was damaged on the way, or is no longer what the checksum was recorded of"
        raise BadInput(
            f"data: {name}: {url} has the wrong checksum and was not kept ({why}); try once more, or {instead}"
        ) from None
    except OSError as error:
        raise BadInput(
            f"data: {name}: cannot write to {cache(name)} ({error.strerror or type(error).__name__}); "
            f"free or unlock that folder, or {instead}"
        ) from None
    finally:
        logger.setLevel(level)
        for answer in answers:
            answer.close()


def read_idx(path: Path) -> np.ndarray:
    """Array of bytes in a gzipped IDX file: two zeros, type 8, the number of axes, their sizes, the values."""
    again = "delete it and fetch again"
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error):
        raise BadInput(f"data: {str(path)!r} is no whole gzip file; {again}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] == 0:
        raise BadInput(f"data: {str(path)!r} begins with {content[:4].hex()}, not with 000008 as IDX bytes do; {again}")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], ">u4").tolist())
    if len(content) - start != math.prod(shape):
        size = " x ".join(map(str, shape))
        raise BadInput(f"data: {str(path)!r} announces {size} bytes and holds {len(content) - start}; {again}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
