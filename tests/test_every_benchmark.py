"""One command runs the benchmarks: each in a process of its own, its time and memory in one table."""

import json

import pytest

from benchmarks import every


@pytest.fixture
def modules(monkeypatch):
    """Benchmarks that take no time: one that prints, one that is not there."""
    monkeypatch.setattr(every, "MODULES", {"good": "this", "lost": "benchmarks.nothing"})
    monkeypatch.setattr(every, "asks", lambda module: f"What does {module} say?")
    monkeypatch.setattr(every, "code", lambda: "abc")


def run(monkeypatch, out, *names: str) -> int:
    monkeypatch.setattr("sys.argv", ["every", *names, "--out", str(out)])
    return every.main()


def test_table_says_what_was_run_and_what_was_printed(modules, monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, "good") == 0
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| good | What does this say? | as expected |" in text
    assert "Beautiful is better than ugly." in text
    assert "cores" in text
    row = json.loads((tmp_path / "good.json").read_text())
    assert 0 < row["peak GiB"] < 10
    assert row["minutes"] > 0


def test_failures_are_told(modules, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "good", "lost") == 1
    assert "fell short" in capsys.readouterr().out  # Python ends with 1 where there is no such module
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, "best")
    assert "names: got 'best'; accepted: good, lost" in capsys.readouterr().err


def test_the_same_code_is_not_run_again(modules, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, "good")
    (tmp_path / "good.log").write_text("kept")
    run(monkeypatch, tmp_path, "good")
    assert "kept" in (tmp_path / "benchmarks.md").read_text()
    monkeypatch.setattr(every, "code", lambda: "changed")
    run(monkeypatch, tmp_path, "good")
    assert "kept" not in (tmp_path / "benchmarks.md").read_text()


@pytest.mark.parametrize("name", every.MODULES)
def test_each_benchmark_asks_something(name):
    asked = every.asks(every.MODULES[name])
    assert len(asked) > 20
    assert "`" not in asked
