"""The notebooks run, and what is shown is what is written."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PLACES = (str(FOLDER.parent), sys.prefix, str(Path.home()) + "/", tempfile.gettempdir() + "/")  # of this machine
SOURCES = sorted(FOLDER.glob("*.py"))
SLOW = {"05_a_large_space_of_augmentations", "06_a_tour_of_the_zoo"}  # a minute or two even when quick


def cells_of_source(text: str) -> list[tuple[str, str]]:
    """Kind and text of each cell of a percent-format file."""
    _, *parts = ("\n" + text).split("\n# %%")
    found = []
    for part in parts:
        first, _, body = part.partition("\n")
        if "[markdown]" in first:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.split("\n")]
            found.append(("markdown", "\n".join(lines).strip()))
        else:
            found.append(("code", body.strip()))
    return found


def cells_of_notebook(content: dict) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in content["cells"]]


def faults(source: str, content: dict) -> list[str]:
    """What is wrong with a pair of a source and a notebook."""
    found = [] if cells_of_source(source) == cells_of_notebook(content) else ["the cells differ"]
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            found += [] if cell["execution_count"] else ["a cell was not run"]
            found += ["a cell failed" for output in cell["outputs"] if output["output_type"] == "error"]
    shown = json.dumps(content)
    return found + [f"it shows {word}" for word in PLACES if word in shown]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_notebooks_are_run_and_in_sync(source):
    content = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert faults(source.read_text(encoding="utf-8"), content) == []
    pictures = [o for c in content["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_mutant_notebooks_are_noticed(source):
    text = source.read_text(encoding="utf-8")
    content = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert faults(text.replace("seed=0", "seed=1").replace("nodes=64", "nodes=65"), content) == ["the cells differ"]
    content["cells"][-2]["execution_count"] = None
    content["cells"][-2]["cell_type"] = "code"
    content["cells"][-2].setdefault("outputs", [])
    assert "a cell was not run" in faults(text, content)


@pytest.mark.parametrize(
    "source", [pytest.param(s, marks=[pytest.mark.slow] * (s.stem in SLOW), id=s.stem) for s in SOURCES]
)
def test_notebooks_run(source, tmp_path):
    environment = {**os.environ, "PYRO_INVARIANCE_SHORT": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, source], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
