"""What the docs say was measured is what the committed files say, of the policies that ship."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from recorders.sim import Environment
from recorders.sim.environment import SCENE_VERSION
from reports.rank import rank
from tracekit.policy import load_policy
from tracekit.weights import packaged_policy

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "train-and-evaluate.md").read_text("utf-8")


def measured(name):
    return json.loads((DOCS / "measured" / name).read_text("utf-8"))


def rows(heading, page=PAGE):
    """Cells of the table under the row that begins with `heading`."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    cells = [line.strip("|").split("|") for line in lines[start + 2 : lines.index("", start)]]
    return {first.strip("` "): [cell.strip() for cell in rest] for first, *rest in cells}


def percent(entry):
    return f"{100 * entry['success_rate']:.0f} %"


def paired(entry):
    low, high = entry["paired"]["interval"]
    parts = (f"{100 * value:+.0f}" for value in (entry["paired"]["difference"], low, high))
    return "({}, {} to {})".format(*(re.sub(r"^\+0$", "0", part) for part in parts))


@pytest.mark.parametrize("name", ["controls.json", "naive.json", "auxiliary.json", "rank/evaluation.json"])
def test_what_was_measured_is_of_the_weights_that_ship(name):
    shipped = {
        policy: load_policy(str(packaged_policy(policy))).identity.weights_digest for policy in ("reference", "blind")
    }
    data = measured(name)
    if name == "auxiliary.json":
        assert data["packaged"]["weights_digest"] == shipped["reference"]
        return
    for entry in data["configurations"]:
        assert entry["policy"]["weights_digest"] == shipped["blind" if entry["name"] == "blind" else "reference"]


def test_the_table_of_controls_is_what_was_measured():
    data, found = measured("controls.json"), rows("| | close_box")
    assert set(found) == {entry["name"] for entry in data["configurations"]}
    for entry in data["configurations"]:
        assert found[entry["name"]] == [percent(entry["by_task"][task]) for task in data["tasks"]]


def test_the_tables_of_naive_pruning_are_what_was_measured():
    data, found, by_task = measured("naive.json"), rows("| dropped | of both"), rows("| dropped of both modalities |")
    entries = {entry["name"]: entry for entry in data["configurations"]}
    assert found["nothing"][0] == percent(entries["unpruned"])
    for rate in (25, 50, 75, 90):
        columns = [entries[f"naive-{modalities}-{rate}"] for modalities in ("both", "2d", "3d")]
        assert found[f"{rate} %"] == [f"{percent(entry)} {paired(entry)}" for entry in columns]
        assert by_task[f"{rate} %"] == [percent(columns[0]["by_task"][task]) for task in data["tasks"]]
    assert found["blind"][0] == f"{percent(entries['blind'])} {paired(entries['blind'])}"
    for name, entry in (("nothing", entries["unpruned"]), ("blind", entries["blind"])):
        assert by_task[name] == [percent(entry["by_task"][task]) for task in data["tasks"]]


def test_the_table_of_stage_1_is_what_was_measured():
    data, found = measured("auxiliary.json"), rows("| M^S1, 2D |")
    shares = [
        {row["task"]: f"{row['m_2d_s1']:.2f}" for row in data[run]["tasks"]}
        for run in ("without", "without_last", "with", "packaged")
    ]
    assert found == {task: [share[task] for share in shares] for task in shares[0]}


def test_the_bounds_that_make_tasks_measure_hold():
    """Controls far below, naive pruning felt: without these a success rate says nothing about a pruner."""
    by_name = {entry["name"]: entry["by_task"] for entry in measured("controls.json")["configurations"]}
    unpruned = {task: entry["success_rate"] for task, entry in by_name["unpruned"].items()}
    for task, rate in unpruned.items():
        below = {name: rate - by_name[name][task]["success_rate"] for name in by_name}
        assert rate >= (0.75 if task.startswith("close_") else 0.5)
        assert by_name["blind"][task]["success_rate"] <= 0.4
        assert by_name["no_visual"][task]["success_rate"] <= by_name["blind"][task]["success_rate"]
        assert (below["blind"] >= 0.4, below["no_image"] >= 0.25, below["no_points"] >= 0.15) == (True, True, True)
        assert below["wrong_instruction"] >= 0.4
    naive = {entry["name"]: entry for entry in measured("naive.json")["configurations"]}
    assert naive["naive-both-75"]["paired"]["difference"] <= -0.15
    assert measured("narrow/evaluation.json")["configurations"][0]["success_rate"] >= 0.9


def test_the_ranks_are_what_was_measured():
    ranking, page = measured("rank/ranking.json"), (DOCS / "sweep.md").read_text("utf-8")
    tau, low, high = (f"{value:.2f}" for value in (ranking["tau_b"], *ranking["interval"]))
    assert f"τ-b is {tau} ({low} to {high})" in page
    assert f"{tau} ({low} to {high})" in (DOCS.parent / "README.md").read_text("utf-8")
    expected = {one["name"]: [f"{one['deviation']:.3f}", percent(one)] for one in ranking["configurations"]}
    expected["blind`, a policy without eyes"] = ["", f"{100 * ranking['blind']:.0f} %"]
    assert rows("| configuration | deviation, offline", page) == expected
    found = rank(DOCS / "measured/rank/sweep.parquet", DOCS / "measured/rank/evaluation.json")
    assert found.to_json() == ranking


def test_the_narrow_scenes_were_measured_with_a_policy_that_could_learn_no_more():
    papers, results = measured("narrow/training.json"), measured("narrow/evaluation.json")
    (entry,) = results["configurations"]
    assert entry["policy"]["weights_digest"] == papers["weights_digest"]
    assert (papers["plan"]["blind"], papers["step"]) == (True, papers["plan"]["steps"])
    assert papers["scene_version"] == int(results["scenes"]["scene"]) == SCENE_VERSION
    lines = map(json.loads, (DOCS / "measured/narrow/curve.jsonl").read_text("utf-8").splitlines())
    noise = {line["step"]: line["held_out"]["noise"] for line in lines if "held_out" in line}
    assert noise[2000] == pytest.approx(noise[1250], rel=0.01)
    tasks = ("close_box_narrow", "close_laptop_narrow", "close_fridge_narrow")
    rates = [percent(entry["by_task"][task]) for task in tasks]
    assert "{} of boxes, {} of laptops and {} of fridges".format(*rates) in " ".join(PAGE.split())
    environment, left = Environment("close_fridge_narrow", sensor=False), []
    for seed in range(100):
        environment.reset(seed)
        left.append(float(environment.world.position("target")[1]))
    failed = {int(seed) for seed, won in entry["by_seed"]["close_fridge_narrow"].items() if not won}
    assert len(failed) == 15
    assert len(failed & set(np.argsort(left)[-25:].tolist())) == 12
