"""Unusable input: exit code 2 and one line that says what, where and what to do; never a traceback, nothing written."""

import numpy as np
import pytest

from tests.small import make_policy
from tracekit.actions import ActionSpec
from tracekit.model import save_policy
from tracekit.store import Trace


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, small_trace):
    """Paths that a user could give by mistake."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("not a trace")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    save_policy(make_policy(seed=2), folder / "weights")
    save_policy(make_policy(action_spec=ActionSpec(frame="tool")), folder / "tool")
    tables = {
        "good": '[pruner]\nkind = "naive"\n[execution]\nthreads = 1\n',
        "unknown-key": '[pruner]\nkind = "tri_stage"\ntau2d = 0.1\n',
        "out-of-range": '[pruner]\nkind = "tri_stage"\ntau_2d = 1.5\n',
        "crossed": '[pruner]\nkind = "tri_stage"\ntau_2d = 0.3\n',
        "unpinned": '[pruner]\nkind = "none"\n[reuse]\nkind = "prefix_kv"\n',
        "broken": "[pruner\n",
        "layer": '[pruner]\nkind = "tri_stage"\n[pruner.reduction]\nlayers = [99]\n[execution]\nthreads = 1\n',
        "digits": f'[pruner]\nkind = "naive"\nseed = {"1" * 6000}\n',
        "multiline": 'name = """a\nb"""\n[pruner]\nkind = "naiv"\n',
    }
    for name, text in tables.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


REFUSED = {
    "missing path": ("info {inputs}/nowhere", "nowhere"),
    "not a trace": ("info {inputs}/note.txt", "note.txt"),
    "another format": ("info {inputs}/arrays.npz", "arrays.npz"),
    "an empty folder": ("info {inputs}/empty", "empty"),
    "replay of nothing": ("replay {inputs}/nowhere --config none", "nowhere"),
    "replay of a folder": ("replay {inputs}/empty --config none", "empty"),
    "unknown preset": ("replay {trace} --config naive-51", "presets: default"),
    "unknown key": ("replay {trace} --config {inputs}/unknown-key.toml", "did you mean 'tau_2d'?"),
    "τ out of range": ("replay {trace} --config {inputs}/out-of-range.toml", "must lie in [0, 1]"),
    "τ crossed": ("replay {trace} --config {inputs}/crossed.toml", "lower tau_2d or raise tau_3d"),
    "reuse without pinning": ("replay {trace} --config {inputs}/unpinned.toml", 'needs reuse.fps = "pinned"'),
    "broken TOML": ("replay {trace} --config {inputs}/broken.toml", "not valid TOML"),
    "a name of two lines": ("replay {trace} --config {inputs}/multiline.toml", "did you mean 'naive'?"),
    "the same file twice": ("replay {trace} --config {inputs}/good.toml --config {inputs}/good.toml", "'naive'"),
    "wrong weights": ("replay {trace} --config none --policy {inputs}/weights", "weights"),
    "no policy": ("replay {trace} --config none --policy {inputs}/empty", "no policy here"),
    "unknown policy": ("replay {trace} --config none --policy smal", "small"),
    "unknown episode": ("replay {trace} --config none --episodes close_box-8", "it has: close_box-7, close_laptop-3"),
    "existing output": ("replay {trace} --config none --out {inputs}/note.txt", "exists already"),
    "output below a file": ("replay {trace} --config none --out {inputs}/note.txt/replay", "note.txt"),
    "missing option": ("replay {trace}", "--config"),
    "missing argument": ("info", "TRACE"),
    "unknown option": ("info {trace} --jsn", "--jsn"),
    "unknown verb": ("replya {trace}", "replya"),
    "unknown task": ("record sim --task close_bok --out {new} --policy small", "close_box"),
    "no task": ("record sim --out {new}", "--task"),
    "no output": ("record sim --task close_box", "--out"),
    "a task twice": ("record sim --task close_box,close_box --out {new} --policy small", "twice"),
    "no episodes": ("record sim --task close_box --episodes 0 --out {new} --policy small", "--episodes 0"),
    "more episodes than memory": (
        "record sim --task close_box --episodes 99999999999 --out {new} --policy small",
        "--episodes 99999999999: give 1 to 100000",
    ),
    "an empty task": ("record sim --task close_box, --out {new} --policy small", "separate names by single commas"),
    "another arm's actions": ("record sim --task close_box --out {new} --policy {inputs}/tool", "in frame 'tool'"),
    "other weights on append": (
        "record sim --task close_box --seed 9 --out {trace} --policy {inputs}/weights",
        "policy.weights_digest is",
    ),
    "another capture on append": (
        "record sim --task close_box --seed 9 --out {trace} --policy small --capture minimal",
        "capture.",
    ),
    "recording inside a trace": (
        "record sim --task close_box --out {trace}/sub.zarr --policy small",
        "lies inside a store",
    ),
    "a layer that is not there": ("replay {trace} --config {inputs}/layer.toml", "pruner.reduction"),
    "a number of thousands of digits": ("replay {trace} --config {inputs}/digits.toml", "not usable"),
    "a negative seed": ("record sim --task close_box --seed -1 --out {new} --policy small", "seed"),
    "a seed that is no number": ("record sim --task close_box --seed x --out {new}", "--seed"),
    "recording with no policy": ("record sim --task close_box --out {new} --policy smal", "no policy 'smal'"),
    "recording into a file": ("record sim --task close_box --out {inputs}/note.txt --policy small", "note.txt"),
    "recording into a folder": ("record sim --task close_box --out {inputs}/empty --policy small", "empty"),
    "recording an episode twice": (
        "record sim --task close_laptop --seed 3 --out {trace} --policy small",
        "'close_laptop-3' is already there",
    ),
    "diff with a trace": ("diff {trace} {trace}", "tracekit.replay"),
    "diff with nothing": ("diff {inputs}/nowhere {inputs}/empty", "nowhere"),
    "masks of a trace": ("report masks {trace} --out {new}.png", "tracekit.replay"),
    "no such report": ("report mask {trace}", "mask"),
}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_and_nothing_written(run, inputs, small_trace, tmp_path, case):
    command, words = REFUSED[case]
    before = contents(inputs), contents(small_trace)
    places = {"inputs": inputs, "trace": small_trace, "new": tmp_path / "new"}
    ran = run(*(part.format(**places) for part in command.split()))
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("tracekit: ")
    assert "Traceback" not in ran.err
    assert words in ran.err
    assert (contents(inputs), contents(small_trace)) == before
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_told_in_one_line(run, small_trace, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trace, "open", interrupted)
    ran = run("info", small_trace)
    assert (ran.status, ran.out) == (130, "")
    assert ran.err == "tracekit: interrupted; what was written is kept, finished episodes and the steps recorded\n"


@pytest.fixture(scope="module")
def saved(small_trace, inputs, tmp_path_factory):
    from replay import Replay

    path = tmp_path_factory.mktemp("saved") / "replay"
    Replay(small_trace, episodes=["close_laptop-3"]).run(inputs / "good.toml").save(path)
    return path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report masks {saved} --out {new}.gif", ".png"),
        ("report masks {saved} --out {new}/masks.png", "does not exist"),
        ("report masks {saved} --out {new}.png --config half", "it has: naive"),
        ("report masks {saved} --out {new}.png --episode close_box-7", "close_box-7"),
        ("report masks {saved} --out {new}.png --trace {new}", "new"),
        ("report masks {saved} --out {folder}", "folder.png"),
        ("replay {saved} --config none", "tracekit.replay"),
        ("info {saved}", "tracekit.replay"),
    ],
)
def test_refusals_of_saved_replays(run, saved, tmp_path, command, words):
    (tmp_path / "folder.png").mkdir()
    places = {"saved": saved, "new": tmp_path / "new", "folder": tmp_path / "folder.png"}
    ran = run(*(part.format(**places) for part in command.split()))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert words in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
