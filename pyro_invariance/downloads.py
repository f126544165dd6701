"""Data sets that are downloaded once: MNIST and Fashion-MNIST, checksummed, kept in the user's cache folder.

References: [lecun1998gradient], [xiao2017fashion].
"""

import gzip
import logging
import math
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import requests

from pyro_invariance.typing import BadInput

VARIABLE = "PYRO_INVARIANCE_DATA"  # names a folder of .npz files that come before any download
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes
    ----------
    title, licence : str
        For people.
    url : str
        Folder on the server, with a slash at the end.
    megabytes : float
        To be downloaded.
    md5 : mapping of str to str
        Published checksum of each of `FILES`.
    """

    title: str
    licence: str
    url: str
    megabytes: float
    md5: Mapping[str, str]


SOURCES = {
    "mnist": Source(
        "handwritten digits, 28 x 28, 10 classes",
        "CC BY-SA 3.0 as redistributed",  # the authors gave none
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        11.6,
        {
            "train_images": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train_labels": "d53e105ee54ea40749a09fcbcd1e9432",
            "test_images": "9fb629c4189551a2d022fa330f9573f3",
            "test_labels": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "articles of clothing, 28 x 28, 10 classes",
        "MIT",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        30.9,
        {
            "train_images": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train_labels": "25c81989df183df01b3e8a0aad5dffbe",
            "test_images": "bef4ecab320f06d8554ea6380940ec79",
            "test_labels": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


def cache(name: str) -> Path:
    """Folder that the files of a data set are kept in."""
    return Path(pooch.os_cache("pyro_invariance")) / name


def local(name: str) -> Path | None:
    """`NAME.npz` in the folder that `PYRO_INVARIANCE_DATA` names, if it is there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".") / f"{name}.npz"
    return path if folder and path.is_file() else None


def cached(name: str) -> bool:
    """Whether all files of a data set are in the cache and whole."""
    paths = {role: cache(name) / file for role, file in FILES.items()}
    md5 = SOURCES[name].md5
    return all(path.is_file() and pooch.file_hash(str(path), alg="md5") == md5[role] for role, path in paths.items())


def fetch(name: str) -> dict[str, np.ndarray]:
    """Arrays of a data set (the keys of `FILES`, uint8), from the cache or else from the server.

    Raises
    ------
    BadInput
        With what failed and what to do; the cache then holds whole files only.
    """
    paths = {role: _retrieve(name, role) for role in FILES}
    arrays = {role: read_idx(path) for role, path in paths.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise BadInput(
                f"data: {name}: {part} images of shape {images.shape} and labels of shape {labels.shape} do not go "
                f"together; delete {cache(name)} and fetch again"
            )
    return arrays


def _retrieve(name: str, role: str) -> Path:
    """Path of one file: pooch downloads to a temporary name, and moves it into place once the checksum is right."""
    source, file = SOURCES[name], FILES[role]
    url = source.url + file
    otherwise = f"try again later, or put {name}.npz into the folder that {VARIABLE} names"
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
        return Path(pooch.retrieve(url, f"md5:{source.md5[role]}", file, cache(name), downloader=downloader))
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
        raise BadInput(f"data: {name}: {url} has the wrong checksum and was not kept; {otherwise}") from None
    except OSError as error:
        raise BadInput(
            f"data: {name}: cannot write to {cache(name)} ({error.strerror or type(error).__name__}); "
            f"free or unlock that folder, or put {name}.npz into the folder that {VARIABLE} names"
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
