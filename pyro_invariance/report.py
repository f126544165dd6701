"""A run as one HTML file that convinces, or warns, a person who never saw the code."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pyro_invariance import plotting, zoo
from pyro_invariance.diagnostics import UNITS
from pyro_invariance.fitting import Fit
from pyro_invariance.plotting.base import VERDICTS
from pyro_invariance.reference import Agreement
from pyro_invariance.results import Selection, describe_extents
from pyro_invariance.runs import versions
from pyro_invariance.sparse_fitting import SparseFit
from pyro_invariance.verdict import Verdict, of_sums

CLAIMS = {  # what a supported and a refused symmetry say, by the kind of data or of what is known of them
    "labels": ("The label survives", "The label does not survive"),
    "values": ("The value survives", "The value does not survive"),
    "data": ("The images come in poses that differ by", "The images do not come in poses that differ by"),
    "pairs": ("The halves of a pair are equal up to", "The halves of a pair are not equal up to"),
}


def report(selection: Selection, folder: Path, command: str = "") -> Path:
    """Write `report.html`, self-contained: everything escaped, pictures embedded and described in words.

    Each picture is left as a PNG as well.

    Parameters
    ----------
    selection : Selection
        A finished run.
    folder : Path
        Where to write.
    command : str
        What reproduces the run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    best, rows = selection.best, [_row(selection, f) for f in selection.fits]
    text = environment.get_template("report.html.jinja").render(
        data=selection.data,
        seed=selection.seed,
        subject=_subject(selection),
        entry=selection.entry,
        best=best,
        scores=selection.test_scores(best),
        sentences=sentences(selection),
        cautions=cautions(selection),
        pictures=[
            _picture(selection, draw, question, folder) for draw, question in plotting.pictures(selection).items()
        ],
        agreement=_agreement(selection),
        items=selection.scrutiny.items if selection.scrutiny else 0,
        rows=rows,
        columns=dict.fromkeys(name for row in rows for name in row),
        failed=selection.failed,
        versions=versions(),
        command=command,
    )
    part = folder / "report.html.part"
    part.write_text(text, encoding="utf-8")
    return part.replace(folder / "report.html")


def sentences(selection: Selection) -> list[tuple[str, str]]:
    """Verdicts in plain English, each with its kind: supported, then refused, then undecided; last the sums."""
    words = {} if selection.entry == "custom" else zoo.load(selection.entry).CARD.symmetries
    order = list(VERDICTS)
    claim = CLAIMS.get(selection.data.kind, CLAIMS[_subject(selection)])
    judged = sorted(selection.verdicts.items(), key=lambda item: order.index(item[1].verdict))
    said = [(v.verdict, _sentence(claim, words.get(s, s), _reach(selection, s), v)) for s, v in judged]
    return said + [("sum", f"{sentence[0].upper()}{sentence[1:]}.") for sentence in of_sums(list(selection.fits))]


def _subject(selection: Selection) -> str:
    """What the models are models of, in a word."""
    return "data" if any(h.density for h in selection.hypotheses) else "labels" if selection.data.classes else "values"


def _sentence(claim: tuple[str, str], words: str, reach: str, v: Verdict) -> str:
    nats, (holds, fails) = "" if v.gap is None else f"{abs(v.gap):.0f} nats", claim
    if v.verdict == "refused":
        return f"{fails} {words}: {nats} against."
    if v.verdict == "undecided":
        return f"{words[0].upper()}{words[1:]}: undecided ({v.reason})."
    certain = ", even with every bound taken at its worst" if v.certified else ""
    more = f" But {v.explained_by} explains these data better still." if v.explained_by else ""
    return f"{holds} {words}{reach}: {nats} for it{certain}.{more}"


def _reach(selection: Selection, symmetry: str) -> str:
    """How far each range goes that is kept, in words, and which are not; nothing where none is kept."""
    f = next((f for f in selection.fits if f.label == symmetry), None)
    ranges = f.extents if f and f.kind == "augmentation" else {}
    words: list[str] = []
    others: dict[str, list[str]] = {}
    for name, r in ranges.items():
        if r.zero or r.undetermined:
            others.setdefault("undetermined" if r.undetermined else "shut off", []).append(name)
            continue
        scale, unit = 1.0, f"of {name} ({UNITS[r.unit]})"
        if r.unit == "rad":
            scale, unit = 180 / np.pi, "degrees" if len(ranges) == 1 else f"degrees of {name}"
        elif name in ("rows", "columns"):
            scale, unit = selection.data.x.shape[-1] / 2, f"{name} of pixels"
        digits = 0 if r.mean * scale >= 10 else 1 if scale > 1 else 2
        if r.saturated:
            words.append(f"at least {r.lower * scale:.{digits}f} {unit}")
        else:
            words.append(f"up to {r.mean * scale:.{digits}f} ± {max(r.sd * scale, 0.1**digits):.{digits}f} {unit}")
    aside = "; ".join(f"{what}: {', '.join(names)}" for what, names in others.items())
    return f" of {' and '.join(words)} either way{f' ({aside})' if aside else ''}" if words else ""


def cautions(selection: Selection) -> list[str]:
    """Everything that makes the numbers less sure than they look."""
    data, found = selection.data, [f"The table is {selection.ranking}."]
    if data.total > len(data.y):
        found.append(f"The evidence is of {len(data.y)} items, drawn from {data.total} with seed {selection.seed}.")
    if learning := [f.label for f in selection.fits if f.learned]:
        found.append(
            f"The parameters of {', '.join(learning)} were learned from other items than those that the evidence of "
            "every hypothesis is of."
        )
    if selection.carried:
        found.append(of_all(selection))
    if selection.omitted:
        found.append(
            f"Not fitted, so that the verdicts know nothing of them: {', '.join(h.label for h in selection.omitted)}."
        )
    for label, reason in selection.failed.items():
        found.append(f"{label} was not fitted: {reason}.")
    if any(f.evidence.bound == "lower" and f.evidence.upper is None for f in selection.fits):
        found.append("Upper sides were not searched densely, so that nothing is certified (select ... --check does).")
    for f in selection.fits:
        found += [f"{f.label}: {caution}." for caution in f.evidence.cautions]
        if f.other_optima:
            least = min(o["below_best"] for o in f.other_optima)
            found.append(f"{f.label}: another start ended elsewhere, {least:.0f} nats below.")
    reach = "an insensitivity, and wider than the range of poses in the data"
    if _subject(selection) == "data":
        reach = "that of the poses in the data as this model sees them"
    found.append(f"Supported and refused mean: by this family of models on these data. A learned range is {reach}.")
    return found


def of_all(selection: Selection) -> str:
    """What the best hypothesis is worth on all data, and that its bound is no part of the ranking."""
    c = selection.carried
    if not isinstance(c, SparseFit):
        return f"{c}."
    scores = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in selection.test_scores(c).items())
    return (
        f"{c.label} was then carried to all {c.count} items through {c.inducing} inducing values: their log evidence "
        f"is at least {c.evidence.value:.0f} ± {c.evidence.std_error:.1f} nats, a bound of other data than the "
        f"table's, no part of the ranking{'; ' if scores else ''}{scores}."
    )


def _picture(selection: Selection, draw: Callable[[Selection], Axes], question: str, folder: Path) -> dict[str, str]:
    """A plot as a PNG, with the question that it answers, how to read it, and what it shows in words."""
    axes = draw(selection)
    figure = axes.get_figure(root=True)
    assert figure is not None
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    legend = axes.get_legend()
    said = [axes.get_title(), axes.get_xlabel(), *(t.get_text() for t in axes.texts)]
    said += [t.get_text() for t in axes.get_yticklabels()] if axes.get_yticklabels() else []
    said += [t.get_text() for t in legend.get_texts()] if legend else []
    plt.close(figure)
    (folder / f"{draw.__name__}.png").write_bytes(file.getvalue())
    return {
        "name": draw.__name__,
        "question": question,
        "reading": (draw.__doc__ or "").split("\n")[0],
        "words": "; ".join(word for word in said if word.strip()),
        "png": base64.b64encode(file.getvalue()).decode(),
    }


def _agreement(selection: Selection) -> list[tuple[str, str, Agreement]]:
    """How far each posterior is from that of NUTS, if that was asked for."""
    found = selection.scrutiny.agreement if selection.scrutiny else {}
    return [(label, site, a) for label, sites in found.items() for site, a in sites.items()]


def _row(selection: Selection, f: Fit) -> dict[str, str]:
    """A hypothesis in the table."""
    scores, paired, e = selection.test_scores(f), selection.paired(f), f.evidence
    return {
        "hypothesis": f.label,
        "base": f.base,
        "log evidence": f"{e.value:.1f} ± {e.std_error:.2f}",
        "upper side": f"{f.upper:.1f}",
        "learned range": describe_extents(f),
        **{k.replace("_", " "): f"{v:.3f}" for k, v in scores.items()},
        "against the best": "" if paired is None else f"{paired[0]:+.3f} ± {paired[1]:.3f}",
    }
