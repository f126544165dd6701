"""What README says runs, and what it points to is there."""

import re
from pathlib import Path

import pytest
import torch

import pyro_invariance
from pyro_invariance import zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_selection_block_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    small = zoo.load("orbit_gp").data("mirror", size=40, test=10, side=8)  # digits would take a minute
    real = pyro_invariance.select
    monkeypatch.setattr(pyro_invariance, "select", lambda data, **rest: real(small, jobs=1, **rest))
    namespace: dict = {}
    exec(BLOCKS[0], namespace)
    assert "mirror" in namespace["result"].table.index
    assert "noise" in namespace["posterior"].posterior


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_site_block_learns_the_planted_extent():
    namespace: dict = {}
    exec(BLOCKS[1], namespace)
    extent = float(namespace["elbo"].model.model.extent.detach())
    assert 0.6 < extent < 1.0
    assert torch.isfinite(namespace["loss"].detach())


def test_evidence_block_finds_the_line():
    namespace: dict = {}
    exec(BLOCKS[2], namespace)
    assert namespace["compare"](namespace["line"], namespace["parabola"]).better == "first"
    assert namespace["line"].cautions == []


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert "docs/report.png" in targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_zoo_table_is_complete():
    assert [name for name in zoo.names() if f"[`{name}`]" not in README] == []
