"""Grids: which configurations they are, in what order, under what names; what is refused says why."""

import math

import pytest

from replay.sweep import Grid, Range, grid_names, grid_of, load_grid
from tracekit.config import load_config
from tracekit.errors import ConfigError


def grid(**table):
    return grid_of({"name": "g", **table}, "g.toml")


AXES = {"pruner": {"tau_2d": [0.05, 0.08], "k": [3, 5, 7]}}
CARTESIAN = grid(kind="cartesian", axes=AXES)


def test_a_cartesian_grid_is_every_combination_the_last_axis_fastest():
    assert len(CARTESIAN) == 6
    found = [config for _, config in CARTESIAN.configurations()]
    assert [(config.pruner.tau_2d, config.pruner.k) for config in found] == [
        (0.05, 3),
        (0.05, 5),
        (0.05, 7),
        (0.08, 3),
        (0.08, 5),
        (0.08, 7),
    ]
    assert [config.name for config in found][:2] == ["tau_2d=0.05 k=3", "tau_2d=0.05 k=5"]
    assert found[-1].digest == load_config("default").digest  # the point of the defaults is the default
    assert len({config.digest for config in found}) == 6


def test_one_at_a_time_starts_with_the_base():
    axes = {"pruner": {"tau_2d": [0.05, 0.1], "k": [3, 5]}}
    found = [config for _, config in grid(kind="one_at_a_time", axes=axes).configurations()]
    assert [config.name for config in found] == ["default", "tau_2d=0.05", "tau_2d=0.1", "k=3", "k=5"]
    assert found[0].digest == load_config("default").digest
    assert (found[3].pruner.tau_2d, found[3].pruner.k) == (0.08, 3)


def test_the_paper_s_figure_is_in_the_package():
    assert "fig7" in grid_names()
    fig7 = load_grid("fig7")
    configs = [config for _, config in fig7.configurations()]
    assert list(fig7.axes) == ["pruner.tau_2d", "pruner.tau_3d", "pruner.beta", "pruner.k"]
    assert configs[0].digest == load_config("default-prefix-kv").digest
    base = configs[0].pruner
    for config in configs[1:]:
        changed = [n for n in ("tau_2d", "tau_3d", "beta", "k") if getattr(config.pruner, n) != getattr(base, n)]
        assert len(changed) == 1, config.name
    assert len({config.digest for config in configs}) == len(configs) == 21


def test_the_ranking_s_configurations_differ_and_reuse_alike():
    configs = [config for _, config in load_grid("rank").configurations()]
    assert len({config.digest for config in configs}) == len(configs) >= 12
    assert {config.reuse for config in configs} == {load_config("default-prefix-kv").reuse}
    assert len({config.name for config in configs}) == len(configs)


def test_a_random_configuration_depends_on_its_number_alone():
    axes = {
        "pruner.beta": {"low": 0.5, "high": 0.9},
        "pruner.k": {"low": 2, "high": 4},
        "pruner.draw": ["step", "sticky"],
        "pruner.background_rate": {"low": 0.01, "high": 1.0, "log": True},
    }
    drawn = grid(kind="random", count=60, seed=3, axes=axes)
    few = grid(kind="random", count=10, seed=3, axes=axes)
    found = [config for _, config in drawn.configurations()]
    assert [config.digest for config in found[:10]] == [config.digest for _, config in few.configurations()]
    assert drawn.configuration(41).digest == found[41].digest
    assert {config.pruner.k for config in found} == {2, 3, 4}
    assert {config.pruner.draw for config in found} == {"step", "sticky"}
    assert all(0.5 <= config.pruner.beta <= 0.9 for config in found)
    assert sum(config.pruner.background_rate < 0.1 for config in found) > 15  # half of them, in the logarithm
    assert len({config.name for config in found}) == 60
    other = grid(kind="random", count=10, seed=4, axes=axes)
    assert other.configuration(0).digest != found[0].digest


def test_listed_configurations_are_presets_files_and_tables(tmp_path):
    (tmp_path / "own.toml").write_text('name = "own"\n[pruner]\nkind = "naive"\nrate = 0.3\n')
    (tmp_path / "list.toml").write_text(
        'name = "list"\nkind = "listed"\n'
        'configurations = ["naive-50", "own.toml", {name = "t", pruner = {kind = "tri_stage", k = 3}}]\n'
    )
    listed = load_grid(tmp_path / "list.toml")
    assert [config.name for _, config in listed.configurations()] == ["naive-50", "own", "t"]
    assert listed.configuration(1).pruner.rate == 0.3
    assert listed.point(1) == {}


def test_a_base_is_a_file_beside_the_grid(tmp_path):
    (tmp_path / "own.toml").write_text('name = "own"\n[pruner]\nkind = "tri_stage"\nk = 4\n')
    (tmp_path / "grid.toml").write_text(
        'name = "g"\nkind = "cartesian"\nbase = "own.toml"\n[axes]\nreuse.fps = ["recorded", "pinned"]\n'
    )
    found = [config for _, config in load_grid(tmp_path / "grid.toml").configurations()]
    assert [(config.pruner.k, config.reuse.fps) for config in found] == [(4, "recorded"), (4, "pinned")]


def test_ranges():
    assert Range(0.0, 1.0, 5).values() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Range(1, 4, 4).values() == (1, 2, 3, 4)
    assert Range(1, 3, 9).values() == (1, 2, 3)
    assert Range(0.01, 1.0, 3, log=True).values() == pytest.approx((0.01, 0.1, 1.0))
    assert [Range(1, 3).at(share) for share in (0.0, 0.33, 0.34, 0.99)] == [1, 1, 2, 3]
    assert Range(1, 100, log=True).at(0.5) == 10
    assert grid(kind="cartesian", axes={"pruner.beta": {"low": 0.5, "high": 0.9, "count": 3}}).point(1) == {
        "pruner.beta": pytest.approx(0.7)
    }


def test_invalid_combinations_are_refused_or_left_out():
    axes = {"pruner.tau_2d": [0.05, 0.3], "pruner.tau_3d": [0.1, 0.4]}
    with pytest.raises(ConfigError, match=r"g.toml, tau_2d=0.3 tau_3d=0.1: .*lower tau_2d or raise tau_3d"):
        list(grid(kind="cartesian", axes=axes).configurations())
    found = list(grid(kind="cartesian", axes=axes, skip_invalid=True).configurations())
    assert [index for index, _ in found] == [0, 1, 3]


def test_names_stay_short_and_different():
    axes = {f"pruner.reduction.{key}": [value] for key, value in (("layers", "all"), ("feature", "postnorm"))}
    many = {"pruner.stages": [["s1", "s2"], ["s1", "s2", "s3"]], **axes, "pruner.object_3d_max": [0.1, 0.2]}
    many |= {"pruner.cluster_order": ["attention"], "pruner.robot_empty": ["keep_2d"], "pruner.window": ["recursive"]}
    names = [config.name for _, config in grid(kind="cartesian", axes=many).configurations()]
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 100


def test_a_grid_s_digest_tells_what_it_does():
    same = grid(kind="cartesian", axes=AXES)
    assert same.digest == CARTESIAN.digest
    swapped = grid(kind="cartesian", axes={"pruner": {"k": [3, 5, 7], "tau_2d": [0.05, 0.08]}})
    base = grid(kind="cartesian", base="default-prefix-kv", axes=AXES)
    assert len({CARTESIAN.digest, swapped.digest, base.digest}) == 3


def test_large_grids_take_no_memory():
    axis = {"low": 0.0, "high": 0.08, "count": 400}
    large = grid(kind="cartesian", axes={"pruner.tau_2d": axis, "pruner.object_3d_max": axis, "pruner.k": [3, 5]})
    assert len(large) == 320_000
    assert isinstance(large, Grid)
    assert len(large.digest) == 64
    assert large.configuration(319_999).pruner.k == 5
    assert math.isclose(large.configuration(319_999).pruner.tau_2d, 0.08)


TAUS = ("tau_2d", "tau_3d")
REFUSED = {
    "an unknown key": ({"kind": "cartesian", "axis": {}}, "axis: unknown key; did you mean 'axes'?"),
    "no kind": ({}, "kind is missing"),
    "another kind": ({"kind": "cartesion", "axes": {"pruner.k": [3]}}, "choose one of 'cartesian'"),
    "no axes": ({"kind": "cartesian"}, "axes is empty"),
    "an unknown axis": ({"kind": "cartesian", "axes": {"pruner.tau2d": [0.1]}}, "no such key; did you mean 'tau_2d'?"),
    "a table as an axis": ({"kind": "cartesian", "axes": {"pruner.reduction": [1]}}, "is a table; give one of its"),
    "an axis that is no list": ({"kind": "cartesian", "axes": {"pruner.k": 3}}, "give a list of values"),
    "a value twice": ({"kind": "cartesian", "axes": {"pruner.k": [3, 3]}}, "a value is there twice"),
    "a range without count": ({"kind": "cartesian", "axes": {"pruner.beta": {"low": 0.1, "high": 0.2}}}, "with count"),
    "a range backwards": ({"kind": "random", "count": 1, "axes": {"pruner.beta": {"low": 0.2, "high": 0.1}}}, "below"),
    "a logarithm of 0": (
        {"kind": "random", "count": 1, "axes": {"pruner.beta": {"low": 0.0, "high": 0.1, "log": True}}},
        "above 0",
    ),
    "random without count": ({"kind": "random", "axes": {"pruner.k": [3]}}, "say how many"),
    "a count elsewhere": ({"kind": "cartesian", "count": 3, "axes": {"pruner.k": [3]}}, "count has no meaning"),
    "a list elsewhere": ({"kind": "cartesian", "configurations": ["none"]}, "configurations has no meaning"),
    "an empty list": ({"kind": "listed"}, "configurations is empty"),
    "a base of a list": ({"kind": "listed", "base": "none", "configurations": ["none"]}, "base has no meaning"),
    "an unknown preset": ({"kind": "listed", "configurations": ["naive-51"]}, "presets: default"),
    "a path as a name": ({"name": "a/b", "kind": "listed", "configurations": ["none"]}, "can be a file's"),
    "two dots as a name": ({"name": "..", "kind": "listed", "configurations": ["none"]}, "can be a file's"),
    "a long name": ({"name": "n" * 101, "kind": "listed", "configurations": ["none"]}, "at most 100 bytes"),
    "a name twice": ({"kind": "listed", "configurations": ["none", "none"]}, "'none' is there twice"),
    "a negative seed": ({"kind": "random", "seed": -1, "count": 1, "axes": {"pruner.k": [3]}}, "non-negative"),
    "half a range": ({"kind": "cartesian", "axes": {"pruner.k": {"low": 3, "count": 4}}}, "both low and high"),
    "an endless range": (
        {"kind": "cartesian", "axes": {"pruner.k": {"low": 1, "high": 10**21, "count": 4}}},
        "both within ±1e+15",
    ),
    "a slip of the finger": (
        {"kind": "cartesian", "axes": {"pruner.beta": {"low": 0.1, "high": 0.9, "count": 10**12}}},
        "at most 100000 values",
    ),
    "too many": (
        {"kind": "cartesian", "axes": {f"pruner.{n}": {"low": 0.1, "high": 0.2, "count": 9999} for n in TAUS}},
        "at most 10000000",
    ),
    "too many draws": ({"kind": "random", "count": 10**9, "axes": {"pruner.k": [3]}}, "at most 10000000"),
    "a number as a table": ({"kind": "listed", "configurations": [3]}, "neither a preset"),
}


@pytest.mark.parametrize(("table", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(table, words):
    with pytest.raises(ConfigError) as caught:
        grid(**table)
    assert words in str(caught.value)
    assert str(caught.value).startswith("g.toml: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_toml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file or grid; grids: fig7, naive, rank"):
        load_grid(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("[axes\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_grid(tmp_path / "broken.toml")
