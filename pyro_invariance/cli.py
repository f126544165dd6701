"""Command line: `select`, `predict`, `report`, `export`, `profile`, `check`, `list`, `card`, `data`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch

from pyro_invariance import datasets, downloads, plotting, results, zoo
from pyro_invariance.calibration import Calibration
from pyro_invariance.devices import checked_device
from pyro_invariance.examination import examine, table
from pyro_invariance.export import FORMATS, export
from pyro_invariance.profiles import profile
from pyro_invariance.report import of_all, report
from pyro_invariance.runs import read_json
from pyro_invariance.selection import NothingFitted, select
from pyro_invariance.typing import BadInput, checked_seed, nearest
from pyro_invariance.verdict import of_sums

NOUNS = {"images": "images", "series": "series", "points": "sets of points", "pairs": "pairs", "sphere": "places"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pyro-invariance",
        description="Which symmetry do the data have? Selection by evidence.",
        epilog="exit status: 0 done, 1 a hypothesis failed or was refused, 2 bad input, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    data_help = "a name (see data list) or an .npz with x_train, y_train and optionally x_test, y_test, kind"
    device_help = "where the data are while fitting: cpu, cuda or cuda:N"

    def command(name: str, function: Any, text: str, among: Any = commands) -> argparse.ArgumentParser:
        sub = among.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    run = command("select", _select, "rank symmetry hypotheses by evidence and judge each symmetry")
    run.add_argument("data", nargs="?", default="digits", help=data_help)
    run.add_argument("--model", default="orbit_gp", help="zoo entry")
    run.add_argument("--hypotheses", help="comma-separated names (see card); by default those that do not take long")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--out", help="run folder; runs/DATA-... by default")
    run.add_argument("--jobs", type=int, help="hypotheses fitted at the same time")
    run.add_argument("--device", default="cpu", help=device_help)
    run.add_argument("--check", action="store_true", help="search upper sides densely, hold posteriors against NUTS")
    run.add_argument("--no-carry", action="store_true", help="of more than 2,000 items, leave the others alone")

    new = command("predict", _predict, "predict new data with the best hypothesis of a saved run")
    new.add_argument("run", help="folder of a finished run")
    new.add_argument("new", help="an .npz with x (or x_test)")
    new.add_argument("--hypothesis", help="another hypothesis than the best")
    new.add_argument("--out", help="an .npz to write; RUN/predictions.npz by default")

    again = command("report", _report, "write the report of a saved run again")
    again.add_argument("run", help="folder of a finished run")

    take = command("export", _export, "what a saved run learned, as an augmentation policy for another library")
    take.add_argument("run", help="folder of a finished run")
    take.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    take.add_argument("--out", help="a file to write, .py or .json; printed by default")

    walk = command("profile", _profile, "evidence against the extent of a learned range, as a picture")
    walk.add_argument("data", nargs="?", default="digits", help=data_help)
    walk.add_argument("--model", default="orbit_gp", help="zoo entry")
    walk.add_argument("--hypothesis", default="rotation")
    walk.add_argument("--seed", type=int, default=0)
    walk.add_argument("--device", default="cpu", help=device_help)
    walk.add_argument("--images", type=int, default=500, help="evidence images, a class-balanced subset")
    walk.add_argument("--out", default="profile.png", help="picture to write")

    look = command("check", _check, "is an entry of the zoo right? A table of passes and fails (ten minutes or more)")
    look.add_argument("entry")
    look.add_argument("--hypothesis", help="whose posteriors are calibrated; the first with a range by default")
    look.add_argument("--simulations", type=int, default=200)
    look.add_argument("--seed", type=int, default=0)
    look.add_argument("--jobs", type=int, help="simulations fitted at the same time")
    look.add_argument("--out", default="check.png", help="picture of the calibration to write")

    command("list", _list, "the entries of the zoo")
    card = command("card", _card, "what an entry is")
    card.add_argument("name")

    text = "the data sets that have a name"
    data = commands.add_parser("data", help=text, description=text)
    about = data.add_subparsers(dest="about", required=True, metavar="COMMAND", parser_class=_Parser)
    command("list", _data_list, "what they are, and whether they are here", about)
    get = command("fetch", _data_fetch, "download one now; select does so when it needs one", about)
    get.add_argument("name")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 when a hypothesis failed or was refused, 2 for bad input, 130 interrupted."""
    try:
        chosen = _parser().parse_args(arguments)
        return int(chosen.function(chosen))
    except BadInput as error:
        print(f"pyro-invariance: {error}", file=sys.stderr)
        return 2
    except NothingFitted as error:
        print(f"pyro-invariance: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyro-invariance: interrupted; the same command resumes", file=sys.stderr)
        return 130


def _select(chosen: argparse.Namespace) -> int:
    checked_seed(chosen.seed)
    checked_device(chosen.device)
    data = zoo.load_data(chosen.data, chosen.seed)
    names = None if chosen.hypotheses is None else [n for n in chosen.hypotheses.split(",") if n]
    out = Path(chosen.out or f"runs/{data.name}-{chosen.model}-seed{chosen.seed}-{data.sha256[:8]}")
    how = {name: getattr(chosen, name) for name in ("seed", "jobs", "check", "device")}
    how["carry"] = not chosen.no_carry
    result = select(data, chosen.model, names, out=out, **how)
    print(describe(result))
    page = report(result, out, read_json(out / "selection.json")["command"])
    drawn = ", ".join(f"{draw.__name__}.png" for draw in plotting.pictures(result))
    print(f"\nin {out}: selection.json, posterior.nc, {drawn}")
    print(f"look at {page}")
    return 1 if result.failed or isinstance(result.carried, str) else 0


def describe(result: results.Selection) -> str:
    """The outcome for a terminal: the table, the verdicts in words, the best model."""
    data, best = result.data, result.best
    how = "a class-balanced subset" if data.x_earlier is None else "what nothing was learned from"
    drawn = f", {how} of {data.total} drawn with seed {result.seed}" if data.total > len(data.y) else ""
    lines = [f"{data.name}: evidence on {len(data.y)} {NOUNS[data.kind]}{drawn}; {data.coding}", ""]
    table = result.table.round(3).drop(columns=["cpu_seconds"])
    lines += [table.to_string(float_format=lambda v: f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}"), result.ranking, ""]
    lines += [f"{label:16} {reason}" for label, reason in result.failed.items()]
    for name, v in result.verdicts.items():
        certain = ", certified" if v.certified else ""
        lines.append(f"{name:12} {v.verdict:10}{certain} ({v.base}: {v.reason})")
    lines += of_sums(list(result.fits))
    if result.omitted:
        lines += ["", f"not fitted, so the verdicts know nothing of them: {', '.join(h.label for h in result.omitted)}"]
    lines += ["", of_all(result)] if result.carried else []
    lines += ["", *agreement(result), f"best model: {best.label}, {best.evidence}"]
    return "\n".join(lines)


def agreement(result: results.Selection) -> list[str]:
    """How far the posteriors are from those of NUTS, a line for each site; nothing if that was not asked for."""
    if result.scrutiny is None:
        return []
    rows = [
        f"{label:16} {site:12} mean off by {a.difference:+.2f} sd, sd x {a.ratio:.2f} "
        f"(NUTS: R-hat {a.rhat:.3f}, ESS {a.ess:.0f}): {a.words}"
        for label, sites in result.scrutiny.agreement.items()
        for site, a in sites.items()
    ]
    return [f"posteriors on {result.scrutiny.items} items against NUTS:", *rows, ""]


def _writable(path: str | Path, ending: str) -> Path:
    """Check that a file of that ending can be written there, before any work."""
    path = Path(path)
    if path.suffix != ending:
        raise BadInput(f"out: got {str(path)!r}; a name that ends in {ending}")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"out: {str(path)!r} cannot be written; name a file in a folder that exists")
    return path


def _predict(chosen: argparse.Namespace) -> int:
    run = results.load(chosen.run)
    out = _writable(chosen.out or Path(chosen.run) / "predictions.npz", ".npz")
    images = datasets.load_new(chosen.new, run.data)
    scores = run.predict(images, chosen.hypothesis).numpy()
    if run.data.classes is None:
        np.savez_compressed(out, value=scores)
    else:
        np.savez_compressed(out, label=scores.argmax(1), probability=scores)
    print(f"{len(images)} predictions by {chosen.hypothesis or run.best.label} in {out}")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    run, folder = results.load(chosen.run), Path(chosen.run)
    print(f"look at {report(run, folder, read_json(folder / 'selection.json')['command'])}")
    return 0


def _export(chosen: argparse.Namespace) -> int:
    text = export(chosen.run, chosen.to)
    if chosen.out is None:
        print(text, end="")
    else:
        out = _writable(chosen.out, ".json" if chosen.to == "json" else ".py")
        out.write_text(text, encoding="utf-8")
        print(f"policy in {out}")
    return 0


def _profile(chosen: argparse.Namespace) -> int:
    out = _writable(chosen.out, ".png")
    if chosen.images < 2:
        raise BadInput(f"images: got {chosen.images}; 2 or more")
    checked_seed(chosen.seed)
    device = checked_device(chosen.device)
    data = zoo.load_data(chosen.data, chosen.seed).subset(chosen.images, chosen.seed).to(device)
    candidates = [h for h in zoo.choose(data, chosen.model, [chosen.hypothesis]) if h.extents]
    if not candidates:
        raise BadInput(f"hypothesis: {chosen.hypothesis!r} has no learned range to profile")
    data = zoo.taken(data, candidates, chosen.seed)
    print(
        f"{data.name}, {len(data.y)} of {data.total} {NOUNS[data.kind]}: largest log joint density, the rest optimised"
    )
    result = profile(candidates[0], data)
    for extent, value in zip(result.extent, result.log_density, strict=True):
        shown = f"{np.degrees(extent):8.1f} deg" if result.unit == "rad" else f"{extent:8.3f}"
        print(f"{shown}  {value:12.1f} nats")
    plotting.save(plotting.profile(result), out)
    print(f"picture in {out}")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    checked_seed(chosen.seed)
    if chosen.simulations < 20:
        raise BadInput(f"simulations: got {chosen.simulations}; 20 or more tell something")
    if chosen.jobs is not None and chosen.jobs < 1:
        raise BadInput(f"jobs: got {chosen.jobs}; 1 or more")
    out, checks = _writable(chosen.out, ".png"), []
    options = {"simulations": chosen.simulations, "seed": chosen.seed, "jobs": chosen.jobs}
    for found in examine(chosen.entry, chosen.hypothesis, **options):
        if isinstance(found, Calibration):
            plotting.save(plotting.ranks(found), out)
            continue
        checks.append(found)
        print(table([found]), flush=True)
    failed = sum(not c.passed for c in checks)
    print(f"{len(checks) - failed} of {len(checks)} passed; the calibration is drawn in {out}")
    return 1 if failed else 0


def _list(chosen: argparse.Namespace) -> int:
    for name in zoo.names():
        card = zoo.load(name).CARD
        print(f"{name:16} {card.title} - {card.task}")
    return 0


def _data_list(chosen: argparse.Namespace) -> int:
    heading = ("name", "what it is", "size", "licence", "where")
    rows = [heading, *zoo.catalogue()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _data_fetch(chosen: argparse.Namespace) -> int:
    name, known = chosen.name, [*datasets.NAMES, *zoo.simulated()]
    if name not in known:
        raise BadInput(f"name: got {name!r}; {nearest(name, known)}")
    if name not in downloads.SOURCES:
        print(f"{name} is bundled, there is nothing to fetch")
    elif path := downloads.local(name):
        print(f"{name} is in {path}, there is nothing to fetch")
    else:
        downloads.fetch(name)
        print(f"{name} is in {downloads.cache(name)}")
    return 0


def _card(chosen: argparse.Namespace) -> int:
    entry = zoo.load(chosen.name)
    print(f"{entry.CARD.title}\n\n{(entry.__doc__ or '').strip()}\n")
    for field, value in vars(entry.CARD).items():
        if isinstance(value, dict):
            value = "; ".join(f"{k} {v}" for k, v in value.items())
        print(f"{field:12} {', '.join(value) if isinstance(value, tuple) else value}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
