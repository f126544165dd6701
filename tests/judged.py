"""Fits made by hand, with the numbers that the rule of verdicts reads."""

import torch

from pyro_invariance.evidence.base import Evidence
from pyro_invariance.fitting import Fit
from pyro_invariance.verdict import Verdict, verdicts

TURNS = {"C4", "SO2", "rotation"}
CLAIMS = {
    "null": set(),
    "trivial": set(),
    "mirror": {"mirror"},
    "C4": {"C4"},
    "D4": {"C4", "mirror"},
    "SO2": TURNS,
    "O2": TURNS | {"mirror"},
    "rotation": TURNS,
    "translation": {"translation"},
    "convolution": {"convolution"},
}
KINDS = {
    "null": "null",
    "trivial": "none",
    "rotation": "augmentation",
    "translation": "augmentation",
    "convolution": "convolution",
}


def made(
    name: str,
    value: float,
    *,
    base: str = "polar",
    contains: set[str] | None = None,
    std_error: float = 0.1,
    upper: float | None = None,
    dense: bool = True,
    khat: float | None = None,
    draws: int = 0,
    spread: float = 0.0,
    drift: float | None = 0.0,
    looseness: float | None = 0.0,
) -> Fit:
    """A fit with the numbers that the rule reads; a range holds at its learned extent what `contains` says."""
    held = CLAIMS[name] if contains is None else contains
    if name == "rotation" and contains is None:
        held = {"rotation"}
    nothing, top = torch.zeros(0), value + 1.0 if upper is None else upper
    sides = {"upper": top, "upper_error": std_error} if dense else {}
    return Fit(
        label=f"{name}-{base}" if name == "trivial" else name,
        name=name,
        kind=KINDS.get(name, "group"),
        base="none" if name == "null" else base,
        contains=frozenset(held),
        claims=frozenset(CLAIMS[name]),
        evidence=Evidence(value, std_error, "lower", khat, looseness, drift, spread, draws=draws, **sides),
        upper=top,
        other_optima=[],
        extents={},
        draws={},
        prior={},
        weighted=nothing,
        site_log_prior={},
        pointwise={},
        replicates={},
        observed={},
        test_variance=nothing,
        climbs=[],
        profile=[],
        test_mean=nothing,
        test_log_density=nothing,
        path=[],
        cpu_seconds=0.0,
        wall_seconds=0.0,
    )


def judge(symmetry: str, *fits: Fit) -> Verdict:
    """Judge one symmetry; the order of the fits is no matter."""
    found = verdicts(list(fits))[symmetry]
    assert verdicts(list(reversed(fits)))[symmetry] == found
    assert found.symmetry == symmetry
    return found


NULL, TRIVIAL = made("null", -1000.0), made("trivial", 0.0)
