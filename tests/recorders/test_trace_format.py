"""The table of `docs/trace-format.md` is the one in the code, and every array that is recorded is as it says."""

import re
from pathlib import Path

import pytest

from recorders import CaptureSpec
from tests.recorders.support import record
from tests.small import make_config
from tracekit import keys
from tracekit.errors import TraceError
from tracekit.quantities import ACTION_FRAME, QUANTITIES, quantity_of
from tracekit.store import Trace

PAGE = Path(__file__).parents[2] / "docs" / "trace-format.md"
SYMBOL = re.compile(r"<(\w+)>")


def table():
    """Pattern of keys -> (shape, dtype, unit, frame, LeRobot key) of the page."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    return {SYMBOL.sub("*", key.strip("`")): cells for key, *cells in lines}


def test_the_page_shows_the_table_of_the_code():
    shown = {
        key: (unit, {"F": ACTION_FRAME}.get(frame, frame), None if name == "–" else SYMBOL.sub("*", name.strip("`")))
        for key, (_, _, unit, frame, name) in table().items()
    }
    assert shown == {key: (one.unit, one.frame, one.lerobot) for key, one in QUANTITIES.items()}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, small_policy, observations):
    """Everything that can be captured, and what a pruned run leaves."""
    folder = tmp_path_factory.mktemp("format")
    for name, options in (
        ("full", {"capture": CaptureSpec.full()}),
        ("pruned", {"config": make_config("tri_stage")}),
    ):
        record(folder / name, small_policy, observations, **options)
    return [Trace.open(folder / name).episode("close_box-7") for name in ("full", "pruned")]


def test_every_stored_array_states_its_unit_frame_and_lerobot_key(recordings):
    page, seen = table(), set()
    for episode in recordings:
        for key in episode:
            pattern = next(one for one in QUANTITIES if re.fullmatch(one.replace("*", ".*"), key))
            spec, (shape, dtype, *_) = episode.spec(key), page[pattern]
            quantity = quantity_of(key)
            seen.add(pattern)
            frame = {ACTION_FRAME: "base", "camera": f"camera {key.rpartition('/')[2]}"}.get(
                quantity.frame, quantity.frame
            )
            assert spec.unit == quantity.unit, key
            assert spec.attributes["frame"] == frame, key
            assert spec.attributes.get("lerobot") == quantity.lerobot, key
            if dtype != "as it is":
                assert spec.dtype in dtype.split(", "), key
                assert ", ".join(spec.axes) in re.findall(r"\(([^)]*)\)", shape), key
    never = {keys.generator("*"), keys.pruner_state("length")}  # of foreign policies; of states that grow
    assert seen >= set(QUANTITIES) - never


def test_actions_say_which_way_they_count(recordings):
    for key, translation in ((keys.ACTION_EXECUTED, "delta"), (keys.ACTION_POLICY, "delta"), (keys.STATE, "absolute")):
        about = recordings[0].spec(key).attributes
        assert about["gripper"] == "0 closed, 1 open"
        assert (about["translation"], about["rotation"], about["rotation_form"]) == (translation, "absolute", "rot6d")


def test_the_time_stamps_of_a_step_are_in_order(recordings):
    episode = recordings[0]
    began, acted = episode.read(keys.STEP_START_NS), episode.read(keys.ACTION_TIME_NS)
    assert (began < acted).all()
    assert acted[0] < began[1]
    assert (acted - began >= episode.read(keys.WALL_NS)).all()
    clock = episode.info.attributes["clock"]
    assert clock["monotonic_ns"] <= began[0]
    assert clock["unix_ns"] > 1e18


def test_an_array_that_nobody_described_is_refused():
    with pytest.raises(TraceError, match="'observation/smell' has no unit"):
        quantity_of("observation/smell")
