"""Rates, speedups and digests of hand-made steps, where every figure can be worked out in the head."""

import hashlib
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.accuracy import EpisodeReplay, StepReplay
from replay.source import RecordedStep
from replay.summary import actions_digest, rates, speedup, summarise
from replay.timing import VariantTiming
from tests.small import make_config
from tracekit.actions import ActionSpec
from tracekit.engine import PassRecord, StepDraws, StepResult
from tracekit.layout import TokenLayout
from tracekit.observation import Observation
from tracekit.profiling import STAGES
from tracekit.pruning import Decision, decision_digest

N_2D, N_3D, PASSES = 256, 4, 4
LAYOUT = TokenLayout.of_lengths(
    ("bos", 1), ("point", N_3D), ("image.front", N_2D), ("text", 2), ("timestep", 1), ("action", 2), ("tail", 1)
)
SPEC = ActionSpec()
OBSERVATION = Observation(images={}, points=None, state=np.zeros(10), instruction="close the box")
LEVEL = np.array([0.0, 0, 0, 1, 0, 0, 0, 0, 1, 0])


def moved(x):
    """Two level poses, `x` metres along the first axis."""
    return np.stack([LEVEL, LEVEL]) + np.eye(10)[0] * x


def step(kept_2d=N_2D, kept_3d=N_3D, pruned_from=PASSES, *, value=0.0, recorded=0.0, digests=None, encoded=(0, 1)):
    """A step that keeps the first `kept_2d` and `kept_3d` (a number, or one per pass) tokens from `pruned_from` on."""
    kept = np.ones((PASSES, N_2D + N_3D), bool)
    for index in range(pruned_from, PASSES):
        points = kept_3d[index - pruned_from] if isinstance(kept_3d, tuple) else kept_3d
        kept[index, kept_2d:N_2D] = False
        kept[index, N_2D + points :] = False
    pruned = pruned_from < PASSES
    samples = np.full((PASSES, 2, 10), value, np.float32)
    result = StepResult(
        action=moved(value),
        samples=samples,
        kept=kept,
        decision=Decision(kept[-1, :N_2D], None, keep_3d_tokens=kept[-1, N_2D:], pruned=pruned),
        pruned_from=pruned_from,
        layout=LAYOUT,
        text_ids=np.zeros(2, np.int64),
        memory=None,
        times_ns=np.zeros((len(STAGES), PASSES), np.int64),
        wall_ns=1,
        encoded=tuple(PassRecord(None, None, None, bytes([index] * 32)) for index in encoded),
    )
    missing = dict.fromkeys(field.name for field in fields(RecordedStep))  # None: the trace lacks it
    source = RecordedStep(
        **missing
        | {
            "index": 0,
            "observation": OBSERVATION,
            "draws": StepDraws(np.zeros((2, 10), np.float32), np.zeros((PASSES, 2), np.int64)),
        }
        | ({} if recorded is None else {"unclipped": np.full((2, 10), recorded, np.float32), "action": moved(recorded)})
        | ({} if digests is None else {"rows_digest": np.array([[index] * 32 for index in digests], np.uint8)})
    )
    return StepReplay(source, result, None)


def test_rates_are_of_the_tokens_of_pruned_passes():
    found = rates([step(), step(64, 1, pruned_from=1), step(128, 3, pruned_from=1)])
    assert found.kept_2d == (64 + 128) / 2
    assert found.kept_3d == (1 + 3) / 2
    assert found.rate_2d == 1 - 96 / 256
    assert found.rate_3d == 0.5
    passes = 3 * PASSES * (N_2D + N_3D)  # cold start and observed passes count as unpruned token-passes
    pruned = 3 * (192 + 3) + 3 * (128 + 1)
    assert found.effective_rate == pytest.approx(pruned / passes, rel=1e-15)


def test_points_are_averaged_over_the_pruned_passes_of_a_step():
    found = rates([step(256, (1, 2, 3), pruned_from=1)])
    assert found.kept_3d == 2
    assert found.rate_2d == 0
    assert found.effective_rate == pytest.approx((3 + 2 + 1) / (PASSES * 260), rel=1e-15)


def test_without_a_pruned_step_everything_was_kept():
    found = rates([step(), step()])
    assert asdict(found) == {"kept_2d": 256, "kept_3d": 4, "rate_2d": 0, "rate_3d": 0, "effective_rate": 0}


def test_pruning_from_the_first_pass_on():
    found = rates([step(192, 3, pruned_from=0)])
    assert (found.rate_2d, found.rate_3d, found.effective_rate) == (0.25, 0.25, 0.25)


def test_a_policy_without_points_has_no_3d_rate():
    layout = TokenLayout.of_lengths(("bos", 1), ("image.front", 4), ("text", 1), ("action", 1))
    whole = step(2, 0, pruned_from=1)
    kept = np.ones((PASSES, 4), bool)
    kept[1:, 2:] = False
    result = replace(whole.result, layout=layout, kept=kept)
    found = rates([StepReplay(whole.recorded, result, None)])
    assert (found.kept_2d, found.rate_2d, found.kept_3d, found.rate_3d) == (2, 0.5, 0, 0)


def summary(steps, config=None, execution=None, unpruned=None, **timing):
    config = config or make_config()
    table = config.to_json()
    execution = {"reuse": table["reuse"], **table["execution"]} if execution is None else execution
    episodes = [EpisodeReplay("a", tuple(steps[:1])), EpisodeReplay("b", tuple(steps[1:]))]
    reference = [EpisodeReplay("a", tuple(unpruned or steps))]
    return summarise(
        config, episodes, reference, SPEC, execution, timing.get("timing"), timing.get("factors")
    ).to_json()


def test_matches_need_every_step_and_the_same_execution():
    same = [step(value=0.5, recorded=0.5), step(value=0.25, recorded=0.25)]
    other = [same[0], step(value=0.25, recorded=np.nextafter(np.float32(0.25), np.float32(1)))]
    assert summary(same)["matches_recording"] is True
    assert summary(other)["matches_recording"] is False
    assert summary([same[0], step(recorded=None)])["matches_recording"] is None
    assert summary(same, execution={"reuse": {"kind": "encoders"}})["matches_recording"] is None


def test_minus_zero_is_not_zero_where_bits_are_claimed():
    assert summary([step(value=-0.0, recorded=0.0)])["matches_recording"] is False


def test_encodings_match_pass_by_pass():
    good = step(digests=(0, 1, 2, 3))
    assert summary([good, good])["encode_matches"] is True
    assert summary([good, step(digests=(0, 2, 2, 3))])["encode_matches"] is False
    assert summary([good, step()])["encode_matches"] is None
    once = step(digests=(0, 1, 2, 3), encoded=(0,))
    assert summary([once])["encode_matches"] is True


def test_a_deviation_that_cannot_be_known_is_null():
    known = summary([step(value=0.5, recorded=0.25), step(value=0.5, recorded=0.5)])
    assert known["deviation"]["translation_mm"] == pytest.approx(125)
    assert known["deviation"]["unclipped_relative"] == pytest.approx(0.5)
    unknown = summary([step(recorded=0.25), step(recorded=None)])
    assert set(unknown["deviation"].values()) == {None}
    assert list(unknown["deviation"]) == list(known["deviation"])


def test_the_unpruned_run_has_a_deviation_of_its_own():
    row = summary([step(value=0.5, recorded=0.25)], unpruned=[step(value=0.25, recorded=0.25)])
    assert row["deviation"]["translation_mm"] == pytest.approx(250)
    assert row["deviation_unpruned"]["translation_mm"] == 0


def test_digests_cover_every_step_in_order():
    first, second = step(value=1.0), step(64, 2, pruned_from=1, value=2.0)
    expected = np.full((2, 10), 1, "<f4").tobytes() + np.full((2, 10), 2, "<f4").tobytes()
    assert actions_digest([first, second]) == hashlib.sha256(expected).hexdigest()
    assert actions_digest([second, first]) != actions_digest([first, second])
    row = summary([first, second])
    assert row["actions_digest"] == hashlib.sha256(expected).hexdigest()
    assert row["decisions_digest"] == decision_digest([first.result.decision, second.result.decision])


def timing(*wall, stages=None):
    parts = np.zeros((len(wall), len(STAGES))) if stages is None else np.asarray(stages, float)
    return VariantTiming(np.array(wall, float), parts)


def test_speedup_is_made_of_ratios_of_medians_so_that_one_slow_round_changes_nothing():
    full, encoders, reuse = timing(80, 81, 800), timing(40, 400, 39), timing(200, 20, 20)
    found = speedup(timing(9, 10, 100), full, encoders, reuse)
    assert found.to_json() == {"total": 8.1, "encoders": 81 / 40, "reuse": 2, "pruning": 2}


def test_reuse_across_steps_is_a_factor_of_its_own():
    found = speedup(timing(5), timing(80), timing(80), timing(80), every_step=timing(20))
    assert found.to_json() == {"total": 16, "encoders": 1, "reuse": 1, "pruning": 4, "skipping": 4}


def test_a_token_dropped_behind_a_block_was_there_for_the_blocks_before():
    whole = step(192, 3, pruned_from=0)
    inside = replace(whole, result=replace(whole.result, whole_share=0.5))
    assert rates([inside]).effective_rate == rates([whole]).effective_rate / 2
    assert rates([inside]).rate_2d == rates([whole]).rate_2d


WALL = st.floats(1, 1000)


@given(st.lists(st.tuples(WALL, WALL, WALL, WALL), min_size=1, max_size=7))
def test_the_factors_multiply_to_the_total(rounds):
    own, full, encoders, reuse = (timing(*column) for column in zip(*rounds, strict=True))
    found = speedup(own, full, encoders, reuse)
    assert math.isclose(found.total, found.encoders * found.reuse * found.pruning, rel_tol=1e-12)


def test_times_are_in_the_object_or_null():
    assert summary([step()])["step_ms"] is None
    assert summary([step()])["stages_ms"] is None
    stages = np.zeros((3, len(STAGES)))
    for column, name in enumerate(STAGES):
        stages[:, column] = {
            "encode": 4,
            "observe": 1,
            "stage3": 0.25,
            "stage1": 0.25,
            "stage2": 0.25,
            "fuse": 0.25,
        }.get(name, 0)
    own = timing(10, 12, 11, stages=stages)
    row = summary([step()], timing=own, factors=speedup(own, own, own, own))
    assert row["step_ms"] == {"median": 11, "spread": 2}
    assert row["decision_ms"] == 1
    assert row["observe_ms"] == 1
    assert row["stages_ms"]["encode"] == 4
    assert row["stages_ms"]["other"] == pytest.approx(11 - 6)
    assert row["speedup"] == {"total": 1, "encoders": 1, "reuse": 1, "pruning": 1}
