"""Two saved replays: equal, different from a step on, or not comparable."""

import pytest

from replay import Replay
from replay.results import REPLAY_FORMAT
from reports import diff_replays
from tests.small import make_config
from tracekit import keys
from tracekit.errors import TraceError
from tracekit.store import Trace, TraceWriter, copy_trace
from tracekit.store.copying import copy_episode

UNPRUNED, HALF = make_config(), make_config("naive", name="half")


@pytest.fixture(scope="module")
def folder(small_trace, tmp_path_factory):
    """Saved replays by name: `one` and `again` of the same, `alone` of one episode, `other` of one configuration."""
    folder = tmp_path_factory.mktemp("replays")
    replaying = Replay(small_trace)
    replaying.run(UNPRUNED, HALF).save(folder / "one")
    replaying.run(UNPRUNED).save(folder / "other")
    replaying.run(UNPRUNED, make_config("naive", name="half", seed=1)).save(folder / "seeded")
    replaying.run(UNPRUNED, HALF).save(folder / "again")
    Replay(small_trace, episodes=["close_laptop-3"]).run(UNPRUNED, HALF).save(folder / "alone")
    return folder


def changed(folder, name, edit):
    """A copy of `one` as if it had come out otherwise; `edit(configuration, episode, key, array)`."""
    whole = Trace.open(folder / "one", format=REPLAY_FORMAT)
    with TraceWriter.create(folder / name, whole.attributes, format=REPLAY_FORMAT) as writer:
        for info in whole.episodes:
            about = info.attributes

            def touch(_id, key, array, about=about):
                return edit(about["configuration"], about["episode"], key, array)

            copy_episode(whole.episode(info.id), writer, None, touch)
    return folder / name


def test_equal_replays_are_equal(folder):
    found = diff_replays(folder / "one", folder / "again")
    assert found.equal
    data = found.to_json()
    assert data.items() >= {"equal": True, "tolerable": True, "environments_differ": False}.items()
    assert (data["configurations"], data["first_difference"]) == (["none", "half"], [])
    assert data["differences"]["half"]["flips"] == dict.fromkeys(("tie", "upstream", "logic", "real", "consequence"), 0)


def test_the_first_step_that_differs_is_named(folder):
    def edit(configuration, episode, key, array):
        if (configuration, key) == ("half", "action/samples"):
            array[{"close_box-7": 3, "close_laptop-3": 0}[episode], -1, 0, 0] += 1e-6
        return array

    found = diff_replays(folder / "one", changed(folder, "action", edit))
    assert not found.equal
    assert found.to_json()["first_difference"] == [
        {
            "configuration": "half",
            "episode": "close_box-7",
            "step": 3,
            "decisions_differ": False,
            "actions_differ": True,
        }
    ]


def test_masks_and_actions_are_told_apart(folder):
    def edit(configuration, episode, key, array):
        if (configuration, episode, key) == ("none", "close_laptop-3", "digest/decision"):
            array[1] ^= 255
        return array

    (first,) = diff_replays(folder / "one", changed(folder, "mask", edit)).first
    assert (first.configuration, first.episode, first.step) == ("none", "close_laptop-3", 1)
    assert first.decisions
    assert not first.actions


def test_timings_and_earlier_samples_are_no_difference(folder):
    def edit(_configuration, _episode, key, array):
        return array + 1 if key.startswith("timing/") else array

    assert diff_replays(folder / "one", changed(folder, "time", edit)).equal


def test_another_seed_is_a_difference_of_masks(folder):
    """A configuration of the same name may have changed: that is what a comparison is for."""
    (first,) = diff_replays(folder / "one", folder / "seeded").first
    assert (first.configuration, first.episode, first.step, first.decisions, first.actions) == (
        "half",
        "close_box-7",
        0,
        True,
        True,
    )


def test_what_cannot_be_compared_is_refused(folder, small_trace, tmp_path):
    with pytest.raises(TraceError, match="different configurations"):
        diff_replays(folder / "one", folder / "other")
    with pytest.raises(TraceError, match="different episodes"):
        diff_replays(folder / "one", folder / "alone")
    copy_trace(small_trace, tmp_path / "trace", drop=lambda key: key == keys.ROWS)
    Replay(tmp_path / "trace", episodes=["close_laptop-3"]).run(UNPRUNED).save(tmp_path / "replay")
    with pytest.raises(TraceError, match="different traces"):
        diff_replays(folder / "one", tmp_path / "replay")
    for path in (small_trace, tmp_path / "nowhere", tmp_path):
        with pytest.raises(TraceError):
            diff_replays(folder / "one", path)
