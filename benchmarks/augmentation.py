"""Is a learned augmentation policy worth having?  `python -m benchmarks.augmentation [--out FILE] [--seeds N]`.

A small CNN is trained on 1,000 images with the policy that `select` and `export` make of these very images, with none,
and with the usual one (turns of 15 degrees, shifts of 10 %, left-right flips): held-out accuracy, mean and standard
deviation over seeds.  A seed draws the images, the network and the augmentation.  Needs kornia (0.9), which the project
does not; rows are JSON lines, and what is there already is not trained again.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pyro_invariance
from benchmarks.cases import Absent, _arrays
from pyro_invariance.datasets import Dataset, from_arrays
from pyro_invariance.export import export
from pyro_invariance.representations import Pixels

DATA = {
    "mnist rotated": ("mnist.npz", math.pi),
    "mnist": ("mnist.npz", 0.0),
    "fashion_mnist": ("fashion_mnist.npz", 0.0),
}
POLICIES = ("learned", "none", "usual")
TEST, BATCH = 10_000, 50

Policy = Callable[[Tensor], Tensor]


def images(name: str, seed: int, n: int) -> tuple[Dataset, Tensor, Tensor]:
    """The `n` images to learn from, and those held out with their labels; turned alike."""
    file, angle = DATA[name]
    raw, rng = _arrays(file), np.random.default_rng(seed)
    chosen = rng.permutation(len(raw["train_labels"]))[:n]
    x = np.concatenate([raw["train_images"][chosen], raw["test_images"][:TEST]]) / 255.0
    x = torch.as_tensor(x)[:, None]
    if angle:
        x = Pixels().rotate(x, torch.as_tensor(rng.uniform(-angle, angle, len(x))))
    data = from_arrays(name, x[:n, 0].numpy(), raw["train_labels"][chosen].astype(np.int64))
    return data, x[n:].float(), torch.as_tensor(raw["test_labels"][:TEST].astype(np.int64))


def policy(kind: str, data: Dataset, seed: int, folder: Path) -> Policy:
    """What is done to a batch of images; the learned policy is left beside its run."""
    if kind == "none":
        return lambda x: x
    if kind == "usual":
        import kornia.augmentation as K

        flip = K.RandomHorizontalFlip(p=0.5)
        return K.AugmentationSequential(flip, K.RandomAffine(degrees=15.0, translate=(0.1, 0.1), p=1.0))
    run = folder / f"{data.name} seed {seed} of {len(data.y)}"
    pyro_invariance.select(data, seed=seed, out=run)
    source = export(run, "kornia")
    (run / "policy.py").write_text(source, encoding="utf-8")
    names: dict = {}
    exec(compile(source, str(run / "policy.py"), "exec"), names)
    return names["policy"]


def network(classes: int) -> nn.Module:
    """Three convolutions and a linear layer, for 28 x 28 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.3), nn.Linear(64 * 49, classes)),
    )


def accuracy(data: Dataset, x_test: Tensor, y_test: Tensor, augment: Policy, seed: int, epochs: int) -> float:
    """Held-out accuracy after that many passes over the images."""
    torch.manual_seed(seed)
    x, y, net = data.x.float(), data.y, network(10)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(augment(x[batch])), y[batch]).backward()
            optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(block).argmax(1) for block in x_test.split(1000)])
    return float((found == y_test).double().mean())


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    lines = [f"{'data':16}" + "".join(f"{kind:>16}" for kind in POLICIES)]
    for name in dict.fromkeys(row["data"] for row in rows):
        cells = []
        for kind in POLICIES:
            scores = [100 * row["accuracy"] for row in rows if (row["data"], row["policy"]) == (name, kind)]
            spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.2f}{spread}" if scores else "")
        lines.append(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def trained(name: str, seed: int, kind: str, n: int, epochs: int, folder: Path) -> dict:
    """A row: one network, and the seconds that its policy and its training took."""
    data, x_test, y_test = images(name, seed, n)
    begin = time.perf_counter()
    augment = policy(kind, data, seed, folder)
    middle = time.perf_counter()
    score = accuracy(data, x_test, y_test, augment, seed, epochs)
    return {"accuracy": score, "policy_seconds": middle - begin, "training_seconds": time.perf_counter() - middle}


def main() -> int:
    """Train what is missing and print the table; 2 if kornia or the data are not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentation", description=__doc__)
    parser.add_argument("--data", choices=DATA, action="append", help="all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/augmentation/rows.jsonl"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    out, rows = chosen.out, []
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    try:
        import kornia.augmentation  # noqa: F401

        for name, seed, kind in itertools.product(chosen.data or DATA, range(chosen.seeds), POLICIES):
            key = {"data": name, "seed": seed, "policy": kind, "images": chosen.images, "epochs": chosen.epochs}
            row = next((row for row in done if row.items() >= key.items()), None)
            if row is None:
                row = key | trained(name, seed, kind, chosen.images, chosen.epochs, out.parent)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(f"{name:16} seed {seed} {kind:8} {100 * row['accuracy']:.2f} %", flush=True)
    except ImportError as error:
        print(f"kornia is needed to draw from a policy: pip install kornia ({error})", file=sys.stderr)
        return 2
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
