"""What ends an episode early loses none of its steps: exceptions, Ctrl-C, once or twice, and what the writer raises."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tracekit
from recorders import Recorder
from recorders.handover import Handover
from replay import Replay
from tests.recorders.support import EPISODE, UID, ids, one_episode, record
from tests.small import make_config
from tracekit import keys
from tracekit.engine import Controller
from tracekit.errors import TraceError
from tracekit.store import EpisodeWriter, Trace, repair, verify


class Collision(Exception):
    """Of the user's loop."""


def interrupted(path, policy, observations, error, success=None, steps=None):
    """Record a step on each observation, or on the first `steps`; then the loop raises `error`, if there is one."""
    controller = Controller(policy, make_config())
    with (
        Recorder(path, controller) as recorder,
        recorder.episode("close_box", observations[0].instruction, uid=UID, episode_id=EPISODE) as episode,
    ):
        for observation in observations[:steps]:
            with episode.step(observation) as step:
                step.action = controller.act(observation)
        episode.success = success
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), Collision("the arm met the\ntable")])
def test_the_steps_before_it_are_a_truncated_episode(tmp_path, small_policy, observations, error):
    path, whole = tmp_path / "trace", tmp_path / "whole"
    with pytest.raises(type(error)):
        interrupted(path, small_policy, observations * 2, error)
    record(whole, small_policy, observations * 2)
    assert verify(path).clean
    found, expected = Trace.open(path).episode(EPISODE), Trace.open(whole).episode(EPISODE)
    assert (found.info.steps, found.info.truncated, found.info.success) == (4, True, None)
    assert not expected.info.truncated
    for key in (keys.ATTENTION, keys.ACTION_EXECUTED, keys.image("front"), keys.STEP_NUMBER):
        assert found.read(key).tobytes() == expected.read(key).tobytes()
    assert found.info.attributes["steps_taken"] == 4
    assert (
        found.info.attributes["ended_by"]
        == {
            "KeyboardInterrupt": "KeyboardInterrupt:",
            "SystemExit": "SystemExit: 3",
            "Collision": "Collision: the arm met the table",
        }[type(error).__name__]
    )
    assert Replay(path, policy="small").run(make_config()).summaries[0].matches_recording


@pytest.mark.parametrize(("given", "stored"), [(True, True), (False, None), (None, None)])
def test_only_a_success_that_was_seen_is_one(tmp_path, small_policy, observations, given, stored):
    with pytest.raises(Collision):
        interrupted(tmp_path / "trace", small_policy, observations[:1], Collision(), given)
    assert Trace.open(tmp_path / "trace").episode(EPISODE).info.success is stored


def test_recording_goes_on_after_it(tmp_path, small_policy, observations):
    """The step that failed is not there, the one before is; its id is taken."""
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    blind = replace(observations[1], points=None)
    with Recorder(path, controller) as recorder:
        one_episode(recorder, controller, observations[:1], "whole")
        with pytest.raises(TraceError, match="point cloud of the observation is missing"):
            one_episode(recorder, controller, [observations[0], blind], "broken")
        with pytest.raises(TraceError, match="'broken' is already there"):
            one_episode(recorder, controller, observations, "broken")
        one_episode(recorder, controller, observations, "again")
    assert [(info.id, info.steps, info.truncated) for info in Trace.open(path).episodes] == [
        ("whole", 1, False),
        ("broken", 1, True),
        ("again", 2, False),
    ]


def test_before_the_first_step_there_is_no_episode_and_its_id_is_free(tmp_path, small_policy, observations):
    path = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, small_policy, observations, KeyboardInterrupt(), steps=0)
    assert ids(path) == []
    record(path, small_policy, observations)
    assert ids(path) == [EPISODE]


@pytest.fixture
def ctrl_c_while_steps_are_written(monkeypatch):
    """The writer is held at the first step; Ctrl-C reaches the loop when it begins to wait for it."""
    append, close = EpisodeWriter.append, Handover.close
    began, release = threading.Event(), threading.Event()
    calls = []

    def held(writer, step):
        began.set()
        assert release.wait(30)
        append(writer, step)

    def closing(handover):
        calls.append(handover)
        assert began.wait(30)
        if len(calls) == 1:
            raise KeyboardInterrupt
        threading.Timer(0.1, release.set).start()
        close(handover)

    monkeypatch.setattr(EpisodeWriter, "append", held)
    monkeypatch.setattr(Handover, "close", closing)


@pytest.mark.usefixtures("ctrl_c_while_steps_are_written")
def test_the_second_interrupt_leaves_what_is_written_to_repair(tmp_path, small_policy, observations):
    path = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, small_policy, observations * 2, KeyboardInterrupt())
    assert ids(path) == []
    assert repair(path).actions == (f"episode {EPISODE!r}: was cut off; its first 1 steps are kept, marked truncated",)
    assert verify(path).clean
    assert Trace.open(path).episode(EPISODE).info.truncated


@pytest.mark.usefixtures("ctrl_c_while_steps_are_written")
def test_an_interrupt_while_the_last_steps_are_written_loses_nothing(tmp_path, small_policy, observations):
    path = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, small_policy, observations * 2, None, success=False)
    info = Trace.open(path).episode(EPISODE).info
    assert (info.steps, info.truncated, info.success) == (4, False, False)
    assert "ended_by" not in info.attributes


@pytest.mark.parametrize("error", [None, Collision()])
def test_an_interrupted_commit_is_left_to_repair(tmp_path, small_policy, observations, monkeypatch, error):
    def stop(*_args):
        raise KeyboardInterrupt

    path = tmp_path / "trace"
    monkeypatch.setattr("tracekit.store.episode_writer.commit", stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, small_policy, observations, error)
    monkeypatch.undo()
    assert len(repair(path).actions) == 1
    assert verify(path).clean
    assert Trace.open(path).episode(EPISODE).info.steps == 2


def test_what_the_writer_raises_ends_the_episode_behind_its_last_good_step(
    tmp_path, small_policy, observations, monkeypatch
):
    append = EpisodeWriter.append

    def choosy(writer, step):
        if writer.steps == 2:
            raise TraceError("the third step does not fit")
        append(writer, step)

    monkeypatch.setattr(EpisodeWriter, "append", choosy)
    with pytest.raises(TraceError, match="the third step does not fit"):
        interrupted(tmp_path / "trace", small_policy, observations * 2, None, success=False)
    info = Trace.open(tmp_path / "trace").episode(EPISODE).info
    assert (info.steps, info.truncated, info.success) == (2, True, None)
    assert info.attributes["ended_by"] == "TraceError: the third step does not fit"


def test_a_disk_that_refuses_leaves_the_episode_to_repair(tmp_path, small_policy, observations, monkeypatch):
    append_row = EpisodeWriter._append_row

    def full(writer, name, spec, row):
        if writer.steps == 2:
            raise OSError(28, "No space left on device")
        return append_row(writer, name, spec, row)

    path = tmp_path / "trace"
    monkeypatch.setattr(EpisodeWriter, "_append_row", full)
    with pytest.raises(TraceError, match="No space left on device; what came before is kept"):
        interrupted(path, small_policy, observations * 2, None)
    monkeypatch.undo()
    assert ids(path) == []
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).episode(EPISODE).info.steps == 2


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_loses_no_step(tmp_path):
    """`tracekit record sim` for many episodes, interrupted in the middle of the second one."""
    path, log = tmp_path / "box.zarr", tmp_path / "box.zarr" / "journal" / "running" / "close_box-8.jsonl"
    command = ("record", "sim", "--task", "close_box", "--episodes", "90", "--seed", "7", "--capture", "minimal")
    code = "from tracekit.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command, "--out", str(path), "--json"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tracekit.__file__).parents[1])},
    )
    try:
        until = time.monotonic() + 240
        while not log.is_file() or log.read_bytes().count(b"\n") < 2:  # the header, and a step
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        written = log.read_bytes().count(b"\n") - 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "tracekit: interrupted; what was written is kept, finished episodes and the steps recorded\n"
    assert verify(path).clean
    first, second = Trace.open(path).episodes
    assert (first.id, first.truncated, second.id, second.truncated) == ("close_box-7", False, "close_box-8", True)
    assert second.steps >= written
    assert second.attributes["ended_by"] == "KeyboardInterrupt:"
