"""Every verb of the spine: exit codes, documented keys, and the two outputs saying the same."""

import json
import subprocess
import sys

import pytest

from tests.small import make_config, make_policy
from tracekit.model import save_policy
from tracekit.store import Trace

EPISODE = "close_laptop-3"  # the shorter one
REPLAY_KEYS = {
    "name",
    "digest",
    "kept_2d",
    "kept_3d",
    "rate_2d",
    "rate_3d",
    "effective_rate",
    "decision_ms",
    "step_ms",
    "speedup",
    "deviation",
    "deviation_unpruned",
    "encode_matches",
    "matches_recording",
    "decisions_digest",
    "actions_digest",
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Configuration files of one thread, by name."""
    folder = tmp_path_factory.mktemp("configs")
    tables = {
        "none": 'kind = "none"',
        "half": 'kind = "naive"\nrate = 0.5',
        "tri": 'kind = "tri_stage"\n[reuse]\nkind = "prefix_kv"\nfps = "pinned"',
    }
    for name, table in tables.items():
        (folder / name).write_text(f'name = "{name}"\n[execution]\nthreads = 1\n[pruner]\n{table}\n')
    return {name: folder / name for name in tables}


@pytest.fixture(scope="module")
def saved(small_trace, configs, tmp_path_factory):
    """Two saved replays of one episode, alike, and a third with other masks."""
    from replay import Replay

    folder = tmp_path_factory.mktemp("saved")
    replaying = Replay(small_trace, episodes=[EPISODE])
    for name in ("one", "again"):
        replaying.run(configs["none"], configs["half"]).save(folder / name)
    replaying.run(configs["none"], make_config("naive", name="half", seed=4)).save(folder / "other")
    return folder


def test_info(run, small_trace, small_policy):
    ran = run("info", small_trace, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data.keys() >= {
        "format",
        "format_version",
        "kind",
        "episodes",
        "policy",
        "execution",
        "capture",
        "bytes",
    }
    assert ran.data["format"] == "tracekit.trace"
    assert ran.data["kind"] == "full"
    assert (
        ran.data["episodes"][0].items()
        >= {
            "id": "close_box-7",
            "task": "close_box",
            "instruction": Trace.open(small_trace).episodes[0].instruction,
            "seed": 7,
            "steps": 4,
            "success": None,
        }.items()
    )
    assert (
        ran.data["policy"].items()
        >= {
            "name": "small",
            "parameters": small_policy.identity.parameters,
            "weights_digest": small_policy.identity.weights_digest,
        }.items()
    )
    assert ran.data["execution"]["threads"] == 1
    assert ran.data["capture"]["name"] == "default"
    assert ran.data["bytes"] == Trace.open(small_trace).nbytes > 0
    text = run("info", small_trace)
    assert text.status == 0
    for word in ("close_box-7", EPISODE, "full trace", "small", "random, untrained", "expert"):
        assert word in text.out


def test_record_sim_then_append(run, tmp_path):
    trace = tmp_path / "trace"
    ran = run("record", "sim", "--task", "close_box", "--seed", 4, "--out", trace, "--policy", "small", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data.keys() >= {"trace", "episodes", "seconds", "bytes", "driver", "policy_trained"}
    (episode,) = ran.data["episodes"]
    assert set(episode) == {"id", "task", "instruction", "seed", "steps", "success"}
    assert (episode["id"], episode["success"]) == ("close_box-4", True)
    again = run("record", "sim", "--task", "close_box", "--seed", 4, "--out", trace, "--policy", "small")
    assert again.status == 2
    assert "'close_box-4' is already there" in again.err
    other = run("record", "sim", "--task", "close_box", "--seed", 5, "--out", trace)
    assert other.status == 2
    assert "policy.config_digest is" in other.err
    assert [info.id for info in Trace.open(trace).episodes] == ["close_box-4"]


def test_replay(run, small_trace, configs, tmp_path):
    options = ("--config", configs["none"], "--config", configs["half"], "--episodes", EPISODE, "--no-timing")
    ran = run("replay", small_trace, *options, "--json")
    assert (ran.status, ran.err) == (0, "")
    rows = ran.data["configurations"]
    assert [row["name"] for row in rows] == ["none", "half"]
    for row in rows:
        assert row.keys() >= REPLAY_KEYS
        assert row["speedup"] is None
        assert row["deviation"].keys() == row["deviation_unpruned"].keys()
    assert rows[0]["matches_recording"] is True
    assert rows[1]["kept_2d"] == rows[1]["kept_3d"] == 128
    out = tmp_path / "replay"
    text = run("replay", small_trace, *options, "--out", out)
    assert text.status == 0
    for word in ("half", "128 / 128", "Open-loop", f"Saved in {out}"):
        assert word in " ".join(text.out.split())
    again = run("replay", small_trace, *options, "--out", out)
    assert (again.status, again.out) == (2, "")
    assert "exists already" in again.err


def test_replay_with_timing(run, small_trace, configs):
    ran = run("replay", small_trace, "--config", configs["tri"], "--episodes", EPISODE, "--json")
    (row,) = ran.data["configurations"]
    assert row.keys() >= REPLAY_KEYS
    assert set(row["step_ms"]) == {"median", "spread"}
    assert set(row["speedup"]) == {"total", "encoders", "reuse", "pruning"}
    assert row["decision_ms"] > 0
    assert row["matches_recording"] is None


def test_a_preset_is_named_on_the_command_line(run, small_trace):
    options = ("--episodes", EPISODE, "--no-timing", "--json")
    (row,) = run("replay", small_trace, "--config", "naive-50", *options).data["configurations"]
    assert (row["name"], row["kept_2d"]) == ("naive-50", 128)


def test_diff(run, saved):
    equal = run("diff", saved / "one", saved / "again")
    assert (equal.status, equal.out, equal.err) == (0, "equal: none, half\n", "")
    data = run("diff", saved / "one", saved / "again", "--json").data
    assert (data["equal"], data["tolerable"]) == (True, True)
    assert (data["configurations"], data["first_difference"]) == (["none", "half"], [])
    different = run("diff", saved / "one", saved / "other")
    assert different.status == 1
    lines = different.out.splitlines()
    assert lines[0] == f"half: decisions and actions differ first in episode {EPISODE}, step 1"
    assert lines[1].startswith("half: masks of ")
    assert " logic, 0 real" in lines[1]
    assert lines[-1] == "The configurations themselves differ: half."
    assert run("diff", saved / "one", saved / "other", "--tolerant").status == 1
    assert run("diff", saved / "one", saved / "again", "--tolerant").status == 0
    data = run("diff", saved / "one", saved / "other", "--json")
    assert data.status == 1
    assert data.data["equal"] is False
    assert data.data["first_difference"] == [
        {
            "configuration": "half",
            "episode": EPISODE,
            "step": 0,
            "decisions_differ": True,
            "actions_differ": True,
        }
    ]


def test_report_masks(run, saved, tmp_path):
    picture = tmp_path / "masks.png"
    ran = run("report", "masks", saved / "one", "--config", "half", "--out", picture, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data == {"written": str(picture)}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Wrote {picture}" in run("report", "masks", saved / "one", "--out", picture).out.replace("\n", "")


def test_names_are_text_and_not_markup(run, small_trace, tmp_path):
    file = tmp_path / "odd.toml"
    file.write_text('name = "a[/b] [red]c $\\\\frac$"\n[execution]\nthreads = 1\n[pruner]\nkind = "naive"\n')
    out = tmp_path / "[replay]"
    options = ("--config", file, "--episodes", EPISODE, "--no-timing", "--out", out)
    ran = run("replay", small_trace, *options)
    assert (ran.status, ran.err) == (0, "")
    assert r"a[/b] [red]c $\frac$" in ran.out
    assert "[replay]" in ran.out
    assert "a[/b] [red]c" in run("diff", out, out).out
    assert run("report", "masks", out, "--out", tmp_path / "[x].png").status == 0


def test_the_command_works_in_a_process_of_its_own(small_trace, tmp_path, configs):
    """As a user types it: another process, a policy from a directory, results equal to those in this process."""
    from replay import Replay

    policy = tmp_path / "policy"
    save_policy(make_policy(), policy)
    command = [sys.executable, "-c", "from tracekit.cli import main; main()"]
    options = [
        "--config",
        str(configs["half"]),
        "--policy",
        str(policy),
        "--episodes",
        EPISODE,
        "--no-timing",
        "--json",
    ]
    done = subprocess.run([*command, "replay", str(small_trace), *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)["configurations"]
    here = Replay(small_trace, episodes=[EPISODE]).run(configs["half"]).to_json()["configurations"][0]
    assert row["actions_digest"] == here["actions_digest"]
    assert row["decisions_digest"] == here["decisions_digest"]
    missing = subprocess.run([*command, "info", str(tmp_path / "nowhere")], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stdout == ""
    assert missing.stderr.count("\n") == 1
    assert "nowhere" in missing.stderr


def test_help_names_every_verb(run):
    ran = run("--help")
    assert ran.status == 0
    for verb in ("record", "info", "replay", "diff", "report"):
        assert f" {verb} " in ran.out
    assert "sim" in run("record", "--help").out
    assert "masks" in run("report", "--help").out


def test_replay_with_a_check(run, small_trace, configs, tmp_path):
    from replay import SavedReplay

    options = ("--config", configs["none"], "--config", configs["half"], "--episodes", EPISODE, "--no-timing")
    ran = run("replay", small_trace, *options, "--check", "--json", "--out", tmp_path / "replay")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data["check"]["passed"] is True
    assert ran.data["check"]["repeated"] == ran.data["check"]["batched"] == ["none", "half"]
    assert SavedReplay(tmp_path / "replay").manifest["check"] == ran.data["check"]
    assert run("replay", small_trace, *options, "--json").data["check"] is None
    text = " ".join(run("replay", small_trace, *options, "--check").out.split())
    for word in ("Checked: a second run", "batches of 1000", "Environment: ", "threads 1."):
        assert word in text
    assert run("verify", tmp_path / "replay").status == 0


def test_a_failed_check_is_a_failed_gate(run, small_trace, configs, monkeypatch):
    from replay import Check

    failed = Check(("none",), (), (), ("none, episode e, step 1: another action in the second run",))
    monkeypatch.setattr("replay.check_replay", lambda *_, **__: failed)
    ran = run("replay", small_trace, "--config", configs["none"], "--episodes", EPISODE, "--no-timing", "--check")
    assert ran.status == 1
    assert "The check failed" in ran.out
