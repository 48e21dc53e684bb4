"""One configuration, one file, one digest; and one clear line for whatever cannot be one."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.config import Configuration, ExecutionConfig, ObserveConfig, ReuseConfig, load_config, preset_names
from tracekit.errors import ConfigError
from tracekit.pruning import PRUNERS


def toml(table, path=()):
    """`table` as TOML: plain values first, then its tables. What is None is left out: TOML has no such value."""
    lines = [f"[{'.'.join(path)}]"] if path else []
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml(value, (*path, key))
    return lines


def written(folder, table, name="config.toml"):
    path = folder / name
    path.write_text("\n".join(toml(table)) + "\n", "utf-8")
    return path


def parse(**tables):
    return Configuration.from_table({"pruner": {"kind": "none"}, **tables}, "file.toml")


TRI_STAGE = {
    "kind": "tri_stage",
    "stages": ["s1", "s3"],
    "tau_2d": 0.1,
    "tau_3d": 0.3,
    "seed": 2**64 - 1,
    "reduction": {"groups": ["action"], "components": "layer", "layers": [0, 2]},
}


def test_a_file_is_read_into_every_part(tmp_path):
    path = written(
        tmp_path,
        {
            "name": "mine",
            "pruner": TRI_STAGE,
            "observe": {"mode": "lagged", "refresh_every": 4},
            "reuse": {"kind": "prefix_kv", "fps": "pinned"},
            "execution": {"dtype": "bfloat16", "threads": 3},
        },
    )
    config = load_config(path)
    assert config.name == "mine"
    assert config.kind == "tri_stage"
    assert config.pruner.stages == ("s1", "s3")
    assert config.pruner.tau_3d == 0.3
    assert config.pruner.reduction.layers == (0, 2)
    assert config.pruner.reduction.groups == ("action",)
    assert config.observe.mode == "lagged"
    assert config.observe.refresh_every == 4
    assert config.reuse == ReuseConfig("prefix_kv", "pinned")
    assert config.execution == ExecutionConfig("bfloat16", 3)
    assert load_config(str(path)) == config


def test_what_is_left_out_has_its_default():
    config = parse()
    assert config == Configuration()
    assert config.name == "none"
    assert parse(pruner={"kind": "naive"}).name == "naive"
    assert config.observe == ObserveConfig()
    assert config.reuse.kind == "none"
    assert config.execution.dtype == "float32"


@pytest.mark.parametrize("kind", PRUNERS)
def test_the_resolved_form_reads_back_as_the_same_configuration(kind, tmp_path):
    config = parse(pruner={"kind": kind}, reuse={"kind": "encoders", "fps": "pinned"}, name="α / β")
    again = load_config(written(tmp_path, config.to_json()))
    assert again == config
    assert again.digest == config.digest
    assert again.to_json() == config.to_json()


@given(
    st.floats(0, 0.5),
    st.floats(0.5, 1),
    st.integers(1, 50),
    st.sets(st.sampled_from(["s1", "s2", "s3"])),
    st.sampled_from(["none", "encoders", "prefix_kv"]),
    st.integers(1, 64),
)
def test_round_trips(tau_2d, tau_3d, k, stages, reuse, threads):
    config = parse(
        pruner={"kind": "tri_stage", "tau_2d": tau_2d, "tau_3d": tau_3d, "k": k, "stages": sorted(stages)},
        reuse={"kind": reuse, "fps": "pinned"},
        execution={"threads": threads},
    )
    again = Configuration.from_table(config.to_json(), "again")
    assert again == config
    assert again.digest == config.digest


def test_the_digest_is_of_the_meaning(tmp_path):
    table = {"pruner": TRI_STAGE, "reuse": {"kind": "prefix_kv", "fps": "pinned"}, "execution": {"threads": 2}}
    config = load_config(written(tmp_path, table))
    backwards = {key: dict(reversed(value.items())) for key, value in reversed(table.items())}
    assert load_config(written(tmp_path, backwards)).digest == config.digest
    assert load_config(written(tmp_path, {"name": "other", **table})).digest == config.digest
    spelled = {**table, "pruner": {**TRI_STAGE, "beta": 0.85, "budget": "none"}, "execution": {}}
    assert load_config(written(tmp_path, spelled)).digest == config.digest  # a default said or unsaid
    whole = {"pruner": {**TRI_STAGE, "tau_2d": 0, "tau_3d": 1}}
    fractions = {"pruner": {**TRI_STAGE, "tau_2d": 0.0, "tau_3d": 1.0}}
    assert load_config(written(tmp_path, whole)).digest == load_config(written(tmp_path, fractions)).digest
    assert len(config.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"pruner": {**TRI_STAGE, "tau_2d": 0.1000001}},
        {"pruner": {**TRI_STAGE, "reduction": {}}},
        {"pruner": {"kind": "naive"}},
        {"reuse": {"kind": "encoders", "fps": "pinned"}},
        {"reuse": {"fps": "pinned"}},
        {"execution": {"threads": 3}},
        {"execution": {"dtype": "bfloat16"}},
        {"observe": {"mode": "lagged"}},
    ],
    ids=str,
)
def test_everything_but_the_name_changes_the_digest(change):
    assert parse(**{"pruner": TRI_STAGE, **change}).digest != parse(pruner=TRI_STAGE).digest


def test_digests_stay_what_they_were():
    """Results are filed under them: an option that is added must not rename what was computed without it."""
    known = {"default": "0b5efc4376d29ceb", "default-prefix-kv": "53196a8cea9e4a8a", "fastv": "39943919e8f45e2b"}
    known |= {"naive-50": "dbfe52ad8b3ed775", "none": "a0e17663c0a0edf5", "vla-pruner": "a8902b28510c5261"}
    assert {name: load_config(name).digest[:16] for name in known} == known


def test_presets_all_load():
    assert {"default", "default-prefix-kv", "naive-50", "none"} <= set(preset_names())
    configs = {name: load_config(name) for name in preset_names()}
    for name, config in configs.items():
        assert config.name == name
        assert Configuration.from_table(config.to_json(), name) == config
    assert len({config.digest for config in configs.values()}) == len(configs)
    assert configs["default"].pruner == PRUNERS["tri_stage"].config()
    assert configs["default-prefix-kv"].pruner == configs["default"].pruner
    assert configs["naive-50"].pruner.rate == 0.5


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"prunner": {}}, r"prunner: unknown key; did you mean 'pruner'\? known: execution, name, observe, pruner"),
        ({"pruner": {"kind": "tri_stage", "tau2d": 0.1}}, r"pruner\.tau2d: unknown key; did you mean 'tau_2d'\?"),
        (
            {"pruner": {"kind": "tri_stage", "reduction": {"group": []}}},
            r"pruner\.reduction\.group: unknown key; did you mean 'groups'\?",
        ),
        ({"reuse": {"kinds": "none"}}, r"reuse\.kinds: unknown key; did you mean 'kind'\?"),
        ({"execution": {"thread": 1}}, r"execution\.thread: unknown key; did you mean 'threads'\?"),
        ({"pruner": {"kind": "tri_stage"}, "observe": {"mod": 1}}, r"observe\.mod: unknown key; did you mean 'mode'\?"),
        ({"pruner": {"kind": "naive", "tau_2d": 0.1}}, r"pruner\.tau_2d: unknown key"),
        ({"pruner": {}}, r"pruner\.kind is missing"),
        ({"pruner": {"kind": "tristage"}}, r"pruner\.kind = 'tristage': no such pruner; did you mean 'tri_stage'\?"),
        ({"pruner": {"kind": 1}}, r"pruner\.kind = 1: no such pruner"),
        ({"pruner": {"kind": ["naive"]}}, r"pruner\.kind = \['naive'\]: no such pruner"),
        ({"pruner": 3}, r"pruner = 3: must be a table"),
        ({"reuse": "none"}, r"reuse = 'none': must be a table"),
        ({"name": 5}, r"name = 5: give 1 to 100 printable characters"),
        ({"name": ""}, r"name = '': give 1 to 100 printable characters"),
        ({"execution": {"threads": "2"}}, r"execution\.threads = '2': give an integer"),
        ({"execution": {"threads": 2.0}}, r"execution\.threads = 2\.0: give an integer"),
        ({"execution": {"threads": True}}, r"execution\.threads = True: give an integer"),
        ({"execution": {"threads": 0}}, r"execution\.threads = 0: must lie in"),
        ({"execution": {"dtype": "float16"}}, r"execution\.dtype = 'float16': choose one of 'float32', 'bfloat16'"),
        ({"reuse": {"kind": True}}, r"reuse\.kind = True: choose one of"),
        ({"pruner": {"kind": "naive", "rate": "half"}}, r"pruner\.rate = 'half': give a number"),
        ({"pruner": {"kind": "naive", "rate": 1.0}}, r"pruner\.rate = 1\.0: must lie in \[0, 1\)"),
        ({"pruner": {"kind": "naive", "rate": math.nan}}, r"pruner\.rate = nan"),
        ({"pruner": {"kind": "naive", "paired": 1}}, r"pruner\.paired = 1: give true or false"),
        ({"pruner": {"kind": "naive", "seed": -1}}, r"pruner\.seed = -1"),
        ({"pruner": {"kind": "naive", "seed": 2**64}}, r"pruner\.seed"),
        ({"pruner": {"kind": "tri_stage", "stages": "s1"}}, r"pruner\.stages = 's1': give a list"),
        ({"pruner": {"kind": "tri_stage", "stages": ["s1", "s4"]}}, r"pruner\.stages\[1\] = 's4': choose one of"),
        ({"pruner": {"kind": "tri_stage", "reduction": 1}}, r"pruner\.reduction = 1: give a table"),
        ({"pruner": {"kind": "tri_stage", "tau_2d": 1.2}}, r"pruner\.tau_2d = 1\.2: must lie in \[0, 1\]"),
        ({"pruner": {"kind": "tri_stage", "tau_2d": math.nan}}, r"pruner\.tau_2d = nan"),
        ({"pruner": {"kind": "tri_stage", "tau_2d": 0.3}}, r"pruner\.tau_2d = 0\.3 > pruner\.tau_3d = 0\.2"),
        ({"reuse": {"kind": "encoders"}}, r'reuse\.kind = "encoders" needs reuse\.fps = "pinned"'),
        ({"reuse": {"kind": "prefix_kv", "fps": "recorded"}}, r'needs reuse\.fps = "pinned"'),
        ({"pruner": {"kind": "naive"}, "observe": {}}, r"\[observe\] has no meaning for pruner 'naive'"),
        ({"pruner": {"kind": "none"}, "observe": {"mode": "current"}}, r"\[observe\] has no meaning for pruner 'none'"),
        ({"pruner": {"kind": "tri_stage", "budget": "hard_topk"}}, r'needs reuse\.fps = "pinned"'),
        (
            {"pruner": {"kind": "tri_stage", "reduction": {"correspondence": "index"}}},
            r'needs reuse\.fps = "pinned"',
        ),
        (
            {
                "pruner": {
                    "kind": "tri_stage",
                    "reduction": {"passes": "mean", "groups": ["action"], "components": "layer"},
                }
            },
            r'pruner\.reduction\.passes = "mean" needs unpruned later passes',
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_used_is_refused_in_one_line(table, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse(**table)
    message = str(caught.value)
    assert message.startswith("file.toml: ")
    assert "\n" not in message


def test_files_that_are_no_configuration(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[pruner\nkind = 1")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for source, words in (
        (tmp_path / "missing.toml", "no such file or preset; presets: default, "),
        (tmp_path, "no such file or preset"),
        ("naive-51", "naive-50"),
        (broken, "not valid TOML"),
        (binary, "UTF-8"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(source)
        assert "\n" not in str(caught.value)


def test_parts_are_checked_however_they_are_made():
    with pytest.raises(ConfigError, match="pinned"):
        ReuseConfig(kind="prefix_kv")
    with pytest.raises(ConfigError, match="threads"):
        ExecutionConfig(threads=0)
    with pytest.raises(ConfigError, match="pinned"):
        replace(parse(pruner=TRI_STAGE), pruner=PRUNERS["tri_stage"].config(budget="hard_topk"))
    assert all(field.init for field in fields(Configuration))


def test_files_that_are_no_configuration_are_refused_in_one_line(tmp_path):
    deep, huge = tmp_path / "deep.toml", tmp_path / "huge.toml"
    deep.write_text("a = " + "[" * 3000 + "]" * 3000)
    huge.write_text('[pruner]\nkind = "tri_stage"\ntau_2d = ' + "9" * 400)
    marked = tmp_path / "marked.toml"
    marked.write_text('\ufeff[pruner]\nkind = "none"', "utf-8")
    for source, words in ((deep, "nested too deeply"), (huge, "digits"), ("x" * 5000, "cannot be read|no such file")):
        with pytest.raises(ConfigError, match=words) as refusal:
            load_config(source)
        assert "\n" not in str(refusal.value)
    assert load_config(marked).kind == "none"  # a byte-order mark is no statement
