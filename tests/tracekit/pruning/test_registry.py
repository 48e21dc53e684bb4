import sys
from importlib.metadata import EntryPoint

import pytest

import tracekit.pruning as pruning
from tracekit.errors import ConfigError
from tracekit.pruning import PRUNERS, pruner
from tracekit.pruning.none import NONE


@pytest.fixture
def plugins(monkeypatch):
    """Registers entry points of group `tracekit.pruners` for one test."""

    def install(**targets):
        found = [EntryPoint(name, target, "tracekit.pruners") for name, target in targets.items()]
        monkeypatch.setattr(pruning, "entry_points", lambda group: found if group == "tracekit.pruners" else [])
        pruning._plugins.cache_clear()
        pruning._load.cache_clear()

    yield install
    monkeypatch.undo()
    pruning._plugins.cache_clear()
    pruning._load.cache_clear()


def test_kinds_lead_to_pruners_of_that_kind():
    assert set(PRUNERS) >= {"none", "naive", "tri_stage", "fastv", "sp_vla", "vla_pruner"}
    for kind in PRUNERS:
        assert pruner(kind).kind == kind
    assert len(PRUNERS) == len(list(PRUNERS))


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'tri_stage'"):
        pruner("tristage")
    with pytest.raises(KeyError):
        PRUNERS["tristage"]


def test_an_entry_point_adds_a_pruner(plugins, monkeypatch):
    module = type(sys)("their_pruner")
    module.MINE = type(NONE)(**{**{f: getattr(NONE, f) for f in NONE.__slots__}, "kind": "mine"})
    monkeypatch.setitem(sys.modules, "their_pruner", module)
    plugins(mine="their_pruner:MINE", none="their_pruner:MINE")
    assert (pruner("mine").kind, pruner("mine").config) == ("mine", module.MINE.config)
    assert "mine" in PRUNERS
    assert pruner("none") is NONE  # a built-in kind is never replaced


def test_an_entry_point_that_is_no_pruner_is_refused(plugins):
    plugins(odd="tracekit.pruning:PRUNERS")
    with pytest.raises(ConfigError, match=r"entry point 'odd' .* must name a tracekit.pruning.Pruner"):
        pruner("odd")


def test_an_entry_point_that_cannot_be_loaded_is_one_line(plugins):
    plugins(gone="no_such_module.here:MINE")
    with pytest.raises(ConfigError, match=r"'gone' .* cannot be loaded .*No module named 'no_such_module'") as caught:
        pruner("gone")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_exports_are_there():
    assert all(hasattr(pruning, name) for name in pruning.__all__)
