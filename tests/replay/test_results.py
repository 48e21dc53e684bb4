"""Saved replays: everything a report needs is in them, and a broken one is no input for a comparison."""

import json

import numpy as np
import pytest

from replay import Replay, SavedReplay
from replay.results import REPLAY_FORMAT, check_target
from tests.small import make_config
from tracekit.engine import decision_shape
from tracekit.errors import TraceError
from tracekit.pruning import decision_digest, reduce
from tracekit.store import Trace, TraceWriter
from tracekit.store.copying import copy_episode

CONFIGS = (make_config("naive", name="half / 50 %"), make_config("tri_stage", name="half - 50 %"))


@pytest.fixture(scope="module")
def result(small_trace):
    return Replay(small_trace).run(*CONFIGS)


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "replay"
    result.save(path)
    return path


def test_a_saved_replay_says_what_was_printed(result, saved):
    opened, data = SavedReplay(saved), result.to_json()
    assert list(opened.configurations) == ["half / 50 %", "half - 50 %"]  # names are free text
    for row in data["configurations"]:
        assert opened.configurations[row["name"]] == row
    for key in ("trace_digest", "episodes", "steps", "open_loop", "fingerprint"):
        assert opened.manifest[key] == data[key]
    assert opened.manifest["tables"]["half / 50 %"] == CONFIGS[0].to_json()
    assert len(opened.manifest["versions"]["sources"]) == 16
    assert opened.manifest["environment_differs"] == []


def test_its_arrays_are_those_of_the_replay(result, saved):
    opened = SavedReplay(saved)
    for config in CONFIGS:
        stored = opened.episodes(config.name)
        assert [name for name, _ in stored] == ["close_box-7", "close_laptop-3"]
        for (_, episode), replayed in zip(stored, result.episodes[config.name], strict=True):
            for index, step in enumerate(replayed.steps):
                decision = step.result.decision
                expected = {
                    "action/samples": step.result.samples,
                    "action/policy": step.result.action,
                    "decision/kept": step.result.kept,
                    "decision/mask_2d": decision.keep_2d,
                    "decision/pruned_from": step.result.pruned_from,
                    "timing/stages_ns": step.result.times_ns,
                }
                if config.kind == "tri_stage":
                    expected |= {
                        "decision/mask_3d": decision.keep_3d_patches,
                        "decision/s1": decision.s1,
                        "decision/s2": decision.s2,
                        "decision/cluster": decision.cluster,
                        "decision/conflict": decision.conflict,
                        "margin/tau_2d": decision.margins["tau_2d"],
                        "indicator/m_3d_s1": decision.indicators["m_3d_s1"],
                        "seen/points": reduce(
                            step.result.observables, config.pruner.reduction, decision_shape(step.result.layout)
                        ).points,
                        "seen/observed": np.ones(256, bool),
                    }
                for key, value in expected.items():
                    np.testing.assert_array_equal(episode.read(key, index), value, err_msg=key)


def test_digests_are_per_step(result, saved):
    for config in CONFIGS:
        steps = [(e.id, index, step) for e in result.episodes[config.name] for index, step in enumerate(e.steps)]
        for found, (episode, index, step) in zip(SavedReplay(saved).digests(config.name), steps, strict=True):
            assert (found.episode, found.step) == (episode, index)
            assert found.decision.hex() == decision_digest([step.result.decision])
            assert found.action == step.result.unclipped.tobytes()


def test_the_trace_is_found_again_wherever_both_were_moved_to(small_trace, saved):
    opened = SavedReplay(saved)
    assert not opened.manifest["trace"].startswith("/")
    assert Trace.open(opened.trace_path).digest == Trace.open(small_trace).digest


def test_saving_over_something_is_refused(result, saved, tmp_path):
    before = sorted(str(path) for path in saved.rglob("*"))
    with pytest.raises(TraceError, match="exists already"):
        result.save(saved)
    assert sorted(str(path) for path in saved.rglob("*")) == before
    (tmp_path / "file").write_text("a note")
    with pytest.raises(TraceError, match="exists already"):
        result.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a note"


def test_a_replay_that_was_cut_off_while_saving_is_refused(saved, tmp_path):
    whole = Trace.open(saved, format=REPLAY_FORMAT)
    with TraceWriter.create(tmp_path / "cut", whole.attributes, format=REPLAY_FORMAT) as writer:
        for info in whole.episodes[:-1]:
            copy_episode(whole.episode(info.id), writer, None, None)
    opened = SavedReplay(tmp_path / "cut")
    assert len(opened.episodes("half / 50 %")) == 2
    with pytest.raises(TraceError, match=r"not saved to its end.*close_laptop-3"):
        opened.episodes("half - 50 %")


def test_what_is_asked_for_in_vain_is_named(saved, small_trace):
    with pytest.raises(TraceError, match=r"no configuration 'half'; it has: half / 50 %, half - 50 %"):
        SavedReplay(saved).episodes("half")
    with pytest.raises(TraceError, match=r"tracekit\.replay"):
        SavedReplay(small_trace)
    with pytest.raises(TraceError, match=r"tracekit\.trace"):
        Trace.open(saved)


def test_numbers_that_are_not_known_are_null_and_never_nan(saved):
    text = json.dumps(dict(SavedReplay(saved).manifest), allow_nan=False)
    rows = {row["name"]: row for row in json.loads(text)["configurations"]}
    assert rows["half / 50 %"]["step_ms"] is None
    assert rows["half / 50 %"]["speedup"] is None


def test_no_place_is_taken_that_a_replay_cannot_have(small_trace, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for path, words in (
        (small_trace / "inside", "inside a store"),
        (tmp_path / "dangling", "exists already"),
        (tmp_path / "file" / "replay", "nothing can be made|no usable path"),
        (tmp_path / ("x" * 300), "no usable path"),
    ):
        with pytest.raises(TraceError, match=words):
            check_target(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_save_that_fails_leaves_nothing(result, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replay.results._save_episode", full)
    with pytest.raises(TraceError, match="No space left"):
        result.save(tmp_path / "replay")
    assert list(tmp_path.iterdir()) == []
