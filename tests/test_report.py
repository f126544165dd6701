"""The report: one file, escaped, with every picture described, and the truth in plain English."""

import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pyro_invariance import plotting
from pyro_invariance.fitting import Fit, Range
from pyro_invariance.report import cautions, report, sentences
from pyro_invariance.results import Selection
from pyro_invariance.verdict import Verdict


class Page(HTMLParser):
    """Tags that are open, links and pictures, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.links, self.pictures, self.text, self.tags = [], [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.links += [given[k] for k in ("src", "href") if k in given]
        if tag == "img":
            self.pictures.append(given)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(run: Selection, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("report")
    begin = time.perf_counter()
    path = report(run, folder, "pyro-invariance select tiny --seed 0")
    print(f"report: {path.stat().st_size / 2**20:.2f} MiB in {time.perf_counter() - begin:.1f} s")
    return path, Page(path)


def test_report_is_one_whole_file(page):
    path, parsed = page
    assert parsed.open == []
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)  # nothing is fetched
    assert "script" not in parsed.tags
    assert path.stat().st_size < 3 * 2**20
    pictures = {f"{draw.__name__}.png" for draw in plotting.PICTURES}
    assert {p.name for p in path.parent.iterdir()} == {"report.html", *pictures}


def test_every_picture_is_there_and_described(page):
    _, parsed = page
    assert len(parsed.pictures) == len(plotting.PICTURES) == 10
    for picture, question in zip(parsed.pictures, plotting.PICTURES.values(), strict=True):
        assert len(picture["alt"]) > 20
        assert question in parsed.text


def test_report_tells_what_the_run_found(page, run):
    _, parsed = page
    for f in run.fits:
        assert f.label in parsed.text
        assert f"{f.evidence.value:.1f}" in parsed.text
    for _, sentence in sentences(run):
        assert sentence in parsed.text
    for caution in cautions(run):
        assert caution in parsed.text
    assert "pyro-invariance select tiny --seed 0" in parsed.text
    assert "torch 2" in parsed.text
    assert f"accuracy {run.test_scores(run.best)['accuracy']:.3f}" in parsed.text


def test_names_are_escaped(run, tmp_path):
    hostile = "<script>alert('x')</script>"
    named = replace(run, data=replace(run.data, name=hostile), failed={"<b>own</b>": "\"<img src=x onerror='y'>"})
    text = report(named, tmp_path, hostile).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>own" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;" in text


def verdict(kind: str, gap: float | None, **more: object) -> Verdict:
    given = {"certified": False, "margin": 10.0, "base": "polar", "explained_by": None, "reason": "A against B"}
    return Verdict("rotation", kind, **{**given, **more}, gap=gap)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (
            verdict("supported", 42.4),
            r"survives turns of (up to|at least) .* degrees either way: 42 nats for it\.",
        ),
        (verdict("supported", 42.0, certified=True), r"even with every bound taken at its worst\."),
        (verdict("supported", 42.0, explained_by="translation"), r"But translation explains these data better still\."),
        (verdict("refused", -68.0), r"The label does not survive turns: 68 nats against\."),
        (verdict("undecided", 3.0), r"Turns: undecided \(A against B\)\."),
        (verdict("undecided", None), r"Turns: undecided \(A against B\)\."),
    ],
)
def test_sentences_say_the_verdict(judged, expected, run):
    told = replace(run)
    told.__dict__["verdicts"] = {"rotation": judged}
    ((kind, sentence),) = sentences(told)
    assert kind == judged.verdict
    assert re.search(expected, sentence)


def test_supported_comes_first(run):
    told = replace(run)
    told.__dict__["verdicts"] = {
        "a": verdict("undecided", 1.0),
        "b": verdict("refused", -30.0),
        "c": verdict("supported", 30.0),
    }
    assert [kind for kind, _ in sentences(told)] == ["supported", "refused", "undecided"]


def test_cautions_name_what_is_unsure(run):
    f = run.fits[0]
    shaky = replace(
        f,
        evidence=replace(f.evidence, khat=0.9, looseness=5.0, draws=1000),
        other_optima=[{"below_best": 12.0, "extents": {"rotation": 1.0}}],
    )
    told = replace(
        run, data=replace(run.data, total=5000), fits=(shaky, *run.fits[1:]), failed={"O2": "refused: needs 9 GB"}
    )
    said = " ".join(cautions(told))
    for words in ("drawn from 5000", "k-hat 0.90", "5.0 nats loose", "ended elsewhere, 12 nats below", "needs 9 GB"):
        assert words in said
        assert words not in " ".join(cautions(run))
    assert "Not fitted" in said


def test_report_of_a_run_without_test_data_or_verdicts(run, tmp_path):
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    bare = replace(
        run,
        data=replace(run.data, x_test=run.data.x_test[:0], y_test=run.data.y_test[:0]),
        fits=tuple(replace(f, test_log_density=nothing, test_mean=nothing[:, :1]) for f in run.fits),
        entry="custom",
    )
    bare.__dict__["verdicts"] = {}
    parsed = Page(report(bare, tmp_path))
    assert "0 held out" in parsed.text
    assert sum("test data" in p["alt"] and "No " in p["alt"] for p in parsed.pictures) == 3


def test_ranges_that_say_nothing_are_not_quoted(run):
    told = replace(run)
    told.__dict__["verdicts"] = {"rotation": verdict("supported", 40.0)}
    f = next(f for f in run.fits if f.label == "rotation")
    for change in ({"saturated": True, "lower": 0.0, "upper": 3.1}, {"zero": True}):
        said = replace(f, extents={"rotation": replace(f.extents["rotation"], **change)})
        ((_, sentence),) = sentences(_with(told, said))
        assert sentence == "The label survives turns: 40 nats for it."


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("rad", "up to 29 ± 1 degrees of hue"),
        ("grid", "up to 0.50 ± 0.02 of hue (image grid, side 2)"),
        ("log", "up to 0.50 ± 0.02 of hue (log scale)"),
        ("level", "up to 0.50 ± 0.02 of hue (black 0, white 1)"),
    ],
)
def test_kept_ranges_are_quoted_in_their_unit_beside_those_that_are_not(unit, expected, run):
    f = next(f for f in run.fits if f.label == "rotation")
    kept = Range(0.5, 0.02, 0.46, 0.54, unit, saturated=False, zero=False)
    grid = replace(kept, unit="grid")
    ranges = {"rows": replace(grid, zero=True), "hue": kept, "columns": grid, "shear": replace(grid, zero=True)}
    ranges["aspect"] = replace(grid, lower=0.1, upper=0.7, saturated=True)
    told = replace(run)
    told.__dict__["verdicts"] = {"rotation": verdict("supported", 40.0)}
    ((_, sentence),) = sentences(_with(told, replace(f, extents=ranges)))
    assert sentence == (
        f"The label survives turns of {expected} and up to 2.0 ± 0.1 columns of pixels either way "
        "(shut off: rows, shear; undetermined: aspect): 40 nats for it."
    )


def _with(run: Selection, fit: Fit) -> Selection:
    """The same run and verdicts, one fit changed."""
    told = replace(run, fits=tuple(fit if f.label == fit.label else f for f in run.fits))
    told.__dict__["verdicts"] = run.verdicts
    return told


def test_columns_stand_under_their_names(run, tmp_path):
    best = run.best
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    bare = replace(best, test_log_density=nothing, test_mean=nothing[:, :1])
    text = report(_with(run, bare), tmp_path).read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len({row.count("<td>") for row in rows[1:]} | {rows[0].count("<th>")}) == 1


def test_what_the_evidence_is_of_is_said(run, tmp_path):
    said = " ".join(Page(report(run, tmp_path)).text.split())
    assert "probability of the labels" in said
    assert "labels in random order give less" in said
    assert "an insensitivity" in cautions(run)[-1]
    density = replace(run, hypotheses=tuple(replace(h, density=True) for h in run.hypotheses))
    said = " ".join(Page(report(density, tmp_path)).text.split())
    assert "probability of the data under" in said
    assert "random order" not in said
    assert "insensitivity" not in said
