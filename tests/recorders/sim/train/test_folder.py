"""A run's folder: one training at a time, nothing half-written, one clear line for what is damaged."""

import json
import os
import signal
import threading

import pytest
import torch

from recorders.sim.train import folder as folders
from recorders.sim.train import run as running
from recorders.sim.train import train
from recorders.sim.train.folder import held_folder, read_state, replace_directory, write_state
from recorders.sim.train.interrupt import interrupts_wait
from tests.recorders.sim.train.test_run import curve, same_weights, tiny
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.model import load_policy_directory


@pytest.fixture(autouse=True)
def few_held_out_frames(monkeypatch):
    monkeypatch.setattr("recorders.sim.train.plan._HELD_OUT", 1)
    monkeypatch.setattr(running, "_HELD_OUT_FRAMES", 2)


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT as a terminal's program has it: what is started in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train_until(out, demonstrations, plan, step, then):
    """Train with `then` called once the run has taken `step` steps."""

    def progress(what, done, total):
        if what == "training steps" and done == step:
            then()

    return train(out, demonstrations, plan, policy=tiny(), progress=progress)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_every_step_that_was_taken(demonstrations, plan, tmp_path, number, monkeypatch):
    monkeypatch.setattr(running, "_HELD_OUT_EVERY", 100)
    previous = signal.signal(number, signal.default_int_handler)  # as the command line has both
    try:
        with pytest.raises(KeyboardInterrupt):
            train_until(tmp_path / "run", demonstrations, plan, 2, lambda: os.kill(os.getpid(), number))
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, previous)
    assert json.loads((tmp_path / "run" / "training.json").read_text())["step"] == 2
    train(tmp_path / "run", demonstrations, plan, policy=tiny())
    train(tmp_path / "whole", demonstrations, plan, policy=tiny())
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_the_second_interrupt_does_not_wait():
    with interrupts_wait() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_beside_the_main_thread_no_signal_is_touched():
    answers = []

    def body():
        with interrupts_wait() as interrupted:
            answers.append((interrupted(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert answers == [(False, signal.default_int_handler)]


def test_two_trainings_do_not_share_a_folder(plan, tmp_path):
    with held_folder(tmp_path / "run"), pytest.raises(ConfigError, match="another training is at work"):
        train(tmp_path / "run", tmp_path / "data", plan, policy=tiny())
    with held_folder(tmp_path / "run"):
        pass


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ".policy.12.partial-12").mkdir()
    (tmp_path / ".policy.12.partial-12" / "config.json").write_text("{}")
    (tmp_path / ".state.pt.12").write_bytes(b"half")
    (tmp_path / ".mine").write_text("kept")
    with held_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".mine"]


@pytest.mark.parametrize(
    "junk", [b"", b"notes of mine\n", b"\x80\x02K\x01.", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(60)]
)
def test_a_state_that_is_something_else_is_named_and_left(plan, tmp_path, junk):
    (tmp_path / "state.pt").write_bytes(junk)
    with pytest.raises(PolicyError, match=r"state.pt: not the state of a training \(.+\); give --out another"):
        train(tmp_path, tmp_path / "data", plan, policy=tiny())
    assert (tmp_path / "state.pt").read_bytes() == junk


def test_a_state_of_other_heads_is_named(demonstrations, plan, tmp_path):
    train(tmp_path, demonstrations, plan, policy=tiny(), hours=1e-9)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["trainer"]["heads"]["colour.weight"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(PolicyError, match=r"state.pt: does not fit what is trained \([^\n]*colour.weight[^\n]*\)"):
        train(tmp_path, demonstrations, plan, policy=tiny())


def test_a_curve_that_was_cut_off_goes_on_and_a_foreign_one_is_named(demonstrations, plan, tmp_path):
    train(tmp_path, demonstrations, plan, policy=tiny(), hours=1e-9)
    path = tmp_path / "curve.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "lo')
    folders.cut_curve(tmp_path, 1)
    assert path.read_bytes() == whole
    path.write_bytes(b"\xff\x00\n" + whole)
    with pytest.raises(TraceError, match=r"curve.jsonl: line 1 is no entry"):
        train(tmp_path, demonstrations, plan, policy=tiny())
    path.unlink()
    train(tmp_path, demonstrations, plan, policy=tiny())
    assert [entry["step"] for entry in curve(tmp_path)] == list(range(2, plan.steps + 1))


def test_a_full_disk_is_told_in_a_line_and_leaves_the_last_state(tmp_path, monkeypatch):
    parts = dict.fromkeys(folders._PARTS, 1)
    write_state(tmp_path, parts)

    def fails(_state, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:603]\n unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(TraceError, match=r"state.pt: cannot be written \(.*unexpected pos 64 vs 0\); make room"):
        write_state(tmp_path, parts)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert read_state(tmp_path) == parts


def test_a_directory_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="No such file"):
        replace_directory(tmp_path / "nowhere", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_run_that_was_killed_between_policy_and_papers_mends_them(demonstrations, plan, tmp_path):
    summary = train(tmp_path, demonstrations, plan, policy=tiny())
    (tmp_path / "training.json").write_text("{}")
    (tmp_path / "MODEL_CARD.md").unlink()
    assert train(tmp_path, demonstrations, plan, policy=tiny()).to_json() == summary.to_json()
    digest = load_policy_directory(tmp_path / "policy").identity.weights_digest
    assert json.loads((tmp_path / "training.json").read_text())["weights_digest"] == digest
    assert digest in (tmp_path / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "training.json", "policy"])
def test_a_folder_that_is_no_trainings_is_left_as_it_is(plan, tmp_path, name):
    out = tmp_path / "project"
    (out / name).mkdir(parents=True)
    (out / "curve.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds {name} and no state\.pt"):
        train(out, tmp_path / "data", plan, policy=tiny())
    assert sorted(path.name for path in out.iterdir()) == sorted([name, "curve.jsonl"])
    assert not (tmp_path / "data").exists()


def test_a_curve_of_something_else_is_left_as_it_is(demonstrations, plan, tmp_path):
    curve_file = tmp_path / "curve.jsonl"
    curve_file.write_text("x,y\n1,2\n")
    with pytest.raises(TraceError, match="line 1 is no entry"):
        train(tmp_path, demonstrations, plan, policy=tiny())
    assert curve_file.read_text() == "x,y\n1,2\n"
