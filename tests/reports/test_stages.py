"""Rows for S1, S1 + S2 and all of one tri-stage configuration."""

import dataclasses

import numpy as np
import pytest

from replay import Replay, SavedReplay
from reports import draw_masks
from reports.stages import has_stages, masks_by_stage, stage_sets
from tests.small import make_config
from tracekit.config import Configuration
from tracekit.engine import decision_shape
from tracekit.errors import TraceError
from tracekit.layout import TokenLayout
from tracekit.pruning import DecisionKey, decision_digest, reduce
from tracekit.pruning.tri_stage import decide, initial_state
from tracekit.store import Trace

MIDDLE = {"tau_2d": 0.3, "tau_3d": 0.5, "seed": 3}
NAMED = {
    "current": make_config("tri_stage", name="current", **MIDDLE),
    "tokens": make_config("tri_stage", "encoders", name="tokens", budget="hard_topk", rate=0.6, **MIDDLE),
    "random": make_config("tri_stage", name="random", unprojected_points="random", **MIDDLE),
    "naive": make_config("naive", name="naive"),
    "one": make_config("tri_stage", name="one", stages=["s1"]),
}


def lagged(feedback):
    table = make_config("tri_stage", name=f"lagged, {feedback}", **MIDDLE).to_json()
    observe = {"mode": "lagged", "feedback": feedback, "refresh_every": 3}
    return Configuration.from_table(table | {"observe": observe}, "lagged")


NAMED |= {f"lagged, {feedback}": lagged(feedback) for feedback in ("own", "recorded")}


@pytest.fixture(scope="module")
def result(small_trace):
    return Replay(small_trace).run(*NAMED.values())


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("staged") / "replay"
    result.save(path)
    return SavedReplay(path)


def rows(saved, small_trace, name):
    stored = dict(saved.episodes(name))["close_box-7"]
    return masks_by_stage(NAMED[name], stored, Trace.open(small_trace).episode("close_box-7"))


@pytest.mark.parametrize("name", [name for name in NAMED if name not in {"naive", "one"}])
def test_the_last_row_is_what_was_decided(result, saved, small_trace, name):
    found = rows(saved, small_trace, name)
    assert [row.label for row in found] == ["S1", "S1 + S2", "all"]
    steps = [step.result for step in result.episodes[name][0].steps]
    assert decision_digest(found[-1].decisions) == decision_digest([step.decision for step in steps])
    for index, step in enumerate(steps):
        n_2d = step.decision.keep_2d.size
        np.testing.assert_array_equal(found[-1].kept_3d[index], step.kept[-1, n_2d:])
        governed = step.kept[step.pruned_from :] if step.decision.pruned else step.kept
        assert found[-1].tokens[index].tolist() == [
            pytest.approx(governed[:, :n_2d].sum(1).mean()),
            pytest.approx(governed[:, n_2d:].sum(1).mean()),
        ]


def test_the_rows_before_are_the_stages_alone(result, saved, small_trace):
    recording = Trace.open(small_trace).episode("close_box-7")
    shape = decision_shape(TokenLayout.from_json(recording.info.attributes["layout"]))
    for row, stages in zip(
        rows(saved, small_trace, "current"), (("s1",), ("s1", "s2"), ("s1", "s2", "s3")), strict=True
    ):
        config = dataclasses.replace(NAMED["current"].pruner, stages=stages)
        state = initial_state(config, shape)
        for step, shown in enumerate(result.episodes["current"][0].steps, 1):
            scores = reduce(shown.result.observables, config.reduction, shape)
            decision, state = decide(scores, state, config, DecisionKey(3, recording.info.uid, step), shape)
            assert decision_digest([decision]) == decision_digest([row.decisions[step - 1]])
    first, both, everything = (row.decisions for row in rows(saved, small_trace, "current"))
    assert [decision.pruned for decision in first] == [True] * 4  # the cold start belongs to stage 3
    assert not everything[0].pruned
    assert all((decision.s2 == 3).all() for decision in first)
    assert any((one.keep_2d != other.keep_2d).any() for one, other in zip(first, both, strict=True))


def test_rows_are_of_the_stages_that_there_are():
    labels = {
        ("s1", "s3"): ["S1", "S1 + S3"],
        ("s2", "s3"): ["S2", "S2 + S3"],
        ("s1", "s2"): ["S1", "S1 + S2"],
        ("s2",): ["S2"],
        ("s3",): [],
    }
    for stages, expected in labels.items():
        config = make_config("tri_stage", stages=list(stages))
        assert [label for label, _ in stage_sets(config)] == expected


def test_the_picture_has_a_row_each(saved, tmp_path):
    def text(name, **options):
        return draw_masks(saved.path, tmp_path / f"{name}.svg", **options).read_text()

    alone = text("alone", configurations=["current"])
    assert all(f"<!-- {label} -->" in alone for label in ("S1", "S1 + S2", "all"))
    assert "<!-- close_box-7, current: " in alone
    plain = text("plain", configurations=["current"], stages=False)
    assert "<!-- S1 -->" not in plain
    assert "<!-- current -->" in plain
    two = text("two", configurations=["current", "tokens"], stages=True)
    assert all(f"<!-- {name}: S1 + S2 -->" in two for name in ("current", "tokens"))
    beside = text("beside", configurations=["current", "naive"])
    assert "S1 -->" not in beside


def test_what_has_no_stages_is_refused_or_drawn_plain(saved, small_trace, tmp_path):
    stored = dict(saved.episodes("naive"))["close_box-7"]
    assert not has_stages(NAMED["naive"], stored)
    for name in ("naive", "one"):
        with pytest.raises(TraceError, match=f"{name!r} cannot be shown stage by stage"):
            draw_masks(saved.path, tmp_path / "masks.png", configurations=[name], stages=True)
        draw_masks(saved.path, tmp_path / f"{name}.png", configurations=[name])
    assert not (tmp_path / "masks.png").exists()
