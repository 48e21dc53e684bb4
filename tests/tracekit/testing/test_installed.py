"""A pruner of somebody else, as an installed distribution: found, checked, configured, replayed, timed by its name."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

import tracekit.pruning as pruning
from replay import Replay, replay_decisions
from tracekit.bench import bench_pruners
from tracekit.cli import main
from tracekit.config import Configuration, load_config
from tracekit.errors import ConfigError
from tracekit.pruning import PRUNERS, DecisionKey, Shape, decision_digest, pruner
from tracekit.testing import check_pruner

MODULE = '''
from dataclasses import dataclass

import numpy as np

from tracekit.pruning import Decision, Pruner


@dataclass(frozen=True)
class BorderConfig:
    """Keeps all but a frame of `width` patches around the picture."""

    width: int = 2


def decide(seen, state, config, key, shape, **_):
    inside = np.zeros((shape.views, 16, 16), bool)
    inside[:, config.width : 16 - config.width, config.width : 16 - config.width] = True
    return Decision(inside.ravel(), inside.ravel() if shape.n_3d else None), state


BORDER = Pruner(
    kind="border",
    config=BorderConfig,
    observes="none",
    reads="nothing",
    requires=lambda config: frozenset(),
    initial_state=lambda config, shape: None,
    decide=decide,
)


@dataclass(frozen=True)
class BusiestConfig:
    """Keeps the patches of the highest attention; it offers no choice of a reduction."""

    rate: float = 0.5


def busiest(scores, state, config, key, shape, **_):
    if scores is None:
        return Decision(np.ones(shape.n_2d, bool), np.ones(shape.n_2d, bool) if shape.n_3d else None), state
    keep = np.zeros(shape.n_2d, bool)
    keep[np.argsort(-scores.attention_2d, kind="stable")[: round(shape.n_2d * (1 - config.rate))]] = True
    return Decision(keep, keep if shape.n_3d else None), state


BUSIEST = Pruner(
    kind="busiest",
    config=BusiestConfig,
    observes="forward",
    reads="scores",
    requires=lambda config: frozenset({"attention_2d"}),
    initial_state=lambda config, shape: None,
    decide=busiest,
)
'''


FAULTY = """

def raises(seen, state, config, key, shape, **_):
    raise LookupError("a table is\\nmissing")


def too_long(seen, state, config, key, shape, **_):
    return Decision(np.ones(shape.n_2d + 1, bool), None, keep_3d_tokens=np.ones(shape.n_3d, bool)), state


RAISES = dataclasses.replace(BORDER, kind="raises", decide=raises)
TOO_LONG = dataclasses.replace(BORDER, kind="too_long", decide=too_long)
"""


@pytest.fixture
def faulty(site):
    """The same with three kinds more, each of which fails."""
    module = site / "border_pruner.py"
    module.write_text("import dataclasses\n" + module.read_text() + FAULTY)
    with (site / "border_pruner-1.0.dist-info" / "entry_points.txt").open("a") as points:
        points.write("raises = border_pruner:RAISES\ntoo_long = border_pruner:TOO_LONG\ngone = no_such_module:IT\n")
    _forget()
    return site


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages with one distribution in it, on the path of this process."""
    (tmp_path / "border_pruner.py").write_text(MODULE)
    about = tmp_path / "border_pruner-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: border-pruner\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[tracekit.pruners]\nborder = border_pruner:BORDER\nbusiest = border_pruner:BUSIEST\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget()
    yield tmp_path
    monkeypatch.undo()
    sys.modules.pop("border_pruner", None)
    _forget()


def _forget():
    pruning._plugins.cache_clear()
    pruning._load.cache_clear()


def test_it_is_found_and_keeps_the_contract(site):
    assert list(PRUNERS)[-2:] == ["border", "busiest"]
    assert pruner("border").kind == "border"
    check_pruner(pruner("border"))
    check_pruner(pruner("busiest"))
    assert "border" in bench_pruners(rounds=1, kinds=["border"]).pruners


def test_it_is_configured_and_replayed_by_its_name(site, small_trace, tmp_path):
    file = tmp_path / "border.toml"
    file.write_text('[pruner]\nkind = "border"\nwidth = 3\n[execution]\nthreads = 1\n')
    config = load_config(file)
    result = Replay(small_trace).run(config)
    assert result.summaries[0].rates.kept_2d == 100
    for decisions in replay_decisions(small_trace, config).values():
        assert all(decision.keep_3d_patches.sum() == 100 for decision in decisions)
    file.write_text('[pruner]\nkind = "border"\nwidht = 3\n')
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        load_config(file)


def test_one_that_reads_scores_is_shown_those_of_the_default_reduction(site, small_trace):
    table = {"pruner": {"kind": "busiest", "rate": 0.75}, "execution": {"threads": 1}}
    config = Configuration.from_table(table, "busiest")
    forward = Replay(small_trace).run(config).episodes["busiest"]
    stored = replay_decisions(small_trace, config)
    for episode in forward:
        decisions = [step.result.decision for step in episode.steps]
        assert decision_digest(decisions) == decision_digest(stored[episode.id])
        assert {int(decision.keep_2d.sum()) for decision in decisions} == {64}


def test_one_that_passes_the_kit_runs_a_step_behind(site, small_trace):
    table = {"pruner": {"kind": "busiest"}, "observe": {"mode": "lagged"}, "execution": {"threads": 1}}
    for episode in Replay(small_trace).run(Configuration.from_table(table, "busiest")).episodes["busiest"]:
        kept = [int(step.result.decision.keep_2d.sum()) for step in episode.steps]
        assert kept == [256] + [128] * (len(kept) - 1)


def test_another_process_finds_it_too(site):
    code = """
        import json
        from tracekit.pruning import PRUNERS
        print(json.dumps([list(PRUNERS), PRUNERS["border"].config().width]))
    """
    path = [str(site), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{dedent(code)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kinds, width = json.loads(done.stdout)
    assert kinds[-2:] == ["border", "busiest"]
    assert width == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "pruner 'raises': decide at step 1 failed with LookupError: a table is missing"),
        ("too_long", "pruner 'too_long': decide at step 1: keep_2d is bool(257,); it must be bool(256,)"),
        ("gone", "entry point 'gone' of group tracekit.pruners: no_such_module:IT cannot be loaded"),
    ],
)
def test_one_that_fails_is_one_line_that_names_it(faulty, small_trace, tmp_path, monkeypatch, capsys, kind, message):
    file = tmp_path / "faulty.toml"
    file.write_text(f'[pruner]\nkind = "{kind}"\n[execution]\nthreads = 1\n')
    arguments = ["tracekit", "replay", str(small_trace), "--config", str(file), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError) as caught:
        replay_decisions(small_trace, file)
    assert message in str(caught.value)


def test_the_error_of_a_plug_in_stays_as_the_cause(faulty):
    method = pruner("raises")
    with pytest.raises(ConfigError) as caught:
        method.decide(None, None, method.config(), DecisionKey(0, 1, 1), Shape(256, 256))
    assert isinstance(caught.value.__cause__, LookupError)


def test_all_are_timed_but_those_that_fail(faulty, monkeypatch):
    kinds, plugins = ("border", "raises", "too_long", "gone"), pruning._plugins()
    monkeypatch.setattr(pruning, "_BUILT_IN", ())  # which are timed elsewhere, and slow
    monkeypatch.setattr(pruning, "_plugins", lambda: {kind: plugins[kind] for kind in kinds})
    report = bench_pruners(rounds=1)
    assert list(report.pruners) == ["border"]
    assert list(report.skipped) == list(kinds[1:])
    assert report.to_json()["skipped"]["raises"].startswith("pruner 'raises': decide at step 1")
    with pytest.raises(ConfigError, match="'too_long'"):
        bench_pruners(rounds=1, kinds=["too_long"])


def test_without_it_the_kind_is_unknown():
    with pytest.raises(ConfigError, match="no such pruner"):
        pruner("border")
