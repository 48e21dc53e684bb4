"""What is written is what is read, by this package and by plain zarr."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.tracekit.store.support import SCHEMA, check_episode, expected, record, step_of
from tracekit.errors import TraceError, TracekitError
from tracekit.store import ArraySpec, EpisodeInfo, Trace, TraceWriter, copy_trace, with_measured_codec
from tracekit.store.bfloat16 import from_bits, to_bits

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def test_all_kinds_of_arrays_come_back_bit_for_bit(make_trace):
    trace = Trace.open(make_trace(20, 1, 0))
    for seed, steps in enumerate((20, 1, 0)):
        check_episode(trace, f"ep-{seed}", steps, seed)


def test_journal_lists_episodes_in_committed_order(make_trace):
    path = make_trace(3, 2)
    with TraceWriter.append(path, {}) as writer:
        record(writer, "another", 4, 2)
    trace = Trace.open(path)
    assert [(info.id, info.steps, info.success) for info in trace.episodes] == [
        ("ep-0", 3, True),
        ("ep-1", 2, False),
        ("another", 4, True),
    ]
    first = trace.episodes[0]
    assert (first.task, first.instruction, first.uid) == ("close_box", "close the box", 2**63)
    assert first.attributes == {"seed": 0}
    assert trace.attributes == {"policy": {"name": "mla", "widths": [1, 2]}}
    on_disk = [f.stat().st_size for f in (path / "episodes").rglob("*") if f.is_file() and f.parent.name != "episodes"]
    assert trace.nbytes == sum(on_disk)


def test_one_step_reads_as_its_row_of_all_steps(make_trace):
    episode = Trace.open(make_trace(5)).episode("ep-0")
    for key in episode:
        whole = episode.read(key)
        for step in np.flatnonzero(episode.present(key)):
            row = episode.read(key, int(step))
            np.testing.assert_array_equal(row, whole[step])
            assert row.dtype == whole.dtype
            assert isinstance(row, np.ndarray)


def test_what_read_returns_belongs_to_the_caller(make_trace):
    episode = Trace.open(make_trace(3)).episode("ep-0")
    for key in ("timing/wall", "observables/attention"):
        episode.read(key)[...] = 0
        np.testing.assert_array_equal(episode.read(key), expected(key, 3, 0))


def test_absent_steps_of_optional_arrays(make_trace):
    episode = Trace.open(make_trace(4)).episode("ep-0")
    np.testing.assert_array_equal(episode.present("depth"), [False, True, False, True])
    np.testing.assert_array_equal(episode.present("timing/load"), [True] * 4)
    assert np.isnan(episode.read("depth")[::2]).all()
    assert "never" not in episode
    with pytest.raises(TraceError, match="step 2 of episode 'ep-0' has no 'depth'"):
        episode.read("depth", 2)


def test_specification_comes_back(make_trace):
    episode = Trace.open(make_trace(4)).episode("ep-0")
    for key in episode:
        assert episode.spec(key) == SCHEMA[key]


def test_plain_zarr_reads_the_same_and_warns_of_nothing(make_trace):
    path = make_trace(6)
    episode = Trace.open(path).episode("ep-0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        members = dict(group.members(max_depth=None))
    assert group.attrs["format"] == "tracekit.trace"
    assert group.attrs["version"] == "1.1"
    seen = set()
    for name, array in members.items():
        key = name.removeprefix("episodes/ep-0/")
        if isinstance(array, zarr.Array) and key in episode:
            seen.add(key)
            np.testing.assert_array_equal(array[...], episode.read(key))
            np.testing.assert_array_equal(array[-1:], episode.read(key)[-1:])
            spec = episode.spec(key)
            assert array.metadata.dimension_names[1:] == spec.axes
            assert array.attrs["unit"] == spec.unit
    table = members["episodes/ep-0/scalars/float64"]
    for column, about in enumerate(table.attrs["columns"]):
        seen.add(about["key"])
        np.testing.assert_array_equal(table[:, column], episode.read(about["key"]))
    assert seen == set(episode.keys()) - {"timing/wall"}
    assert members["episodes/ep-0"].attrs["success"] is True


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_dtype_shape_and_codec(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    codec = data.draw(st.sampled_from([None, "zstd", "zstd1"]))
    optional = data.draw(st.booleans())
    steps = data.draw(st.lists(st.none() | hnp.arrays(dtype, shape), max_size=5))
    if not optional:
        steps = [step for step in steps if step is not None]
    spec = ArraySpec(dtype, shape, tuple(f"a{i}" for i in range(len(shape))), optional=optional, codec=codec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.zarr"
        with TraceWriter.create(path, {}) as writer, writer.episode(EpisodeInfo("e"), {"a/b": spec}) as episode:
            for step in steps:
                layout = data.draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray, np.asarray]))
                episode.append({} if step is None else {"a/b": layout(step).reshape(shape)})
        read = Trace.open(path).episode("e")
        if all(step is None for step in steps) and optional:
            assert "a/b" not in read
            return
        filled = [np.full(shape, spec.fill, dtype) if step is None else step for step in steps]
        np.testing.assert_array_equal(
            read.read("a/b"), np.array(filled, dtype).reshape(len(filled), *shape), strict=True
        )
        if shape and 0 not in shape:
            plain = zarr.open_array(path / "episodes/e/a/b", mode="r")
            np.testing.assert_array_equal(plain[...], read.read("a/b"))


def test_nan_and_infinities_are_values_like_others(tmp_path):
    bits = np.array([0x7FF8000000000001, 0x7FF0000000000000, 0xFFF0000000000000, 0x8000000000000000], np.uint64)
    values = bits.view(np.float64)
    schema = {
        "a": ArraySpec("float64", (4,), ("x",)),
        "b": ArraySpec("float64"),
        "c": ArraySpec("float32", codec="zstd", optional=True),
    }
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
        episode.append({"a": values, "b": float("nan"), "c": float("-inf")})
    read = Trace.open(tmp_path / "t").episode("e")
    np.testing.assert_array_equal(read.read("a", 0).view(np.uint64), bits)
    assert np.isnan(read.read("b", 0))
    assert read.read("c", 0) == -np.inf


def test_bfloat16_tensors_are_kept_as_bits(tmp_path):
    tensor = torch.randn(3, 4, dtype=torch.bfloat16)
    tensor[0, 0] = float("nan")
    schema = {"h": ArraySpec("bfloat16", (3, 4), ("a", "b"))}
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
        episode.append({"h": to_bits(tensor)})
    read = Trace.open(tmp_path / "t").episode("e")
    assert read.spec("h").dtype == "bfloat16"
    assert torch.equal(from_bits(read.read("h", 0)).view(torch.int16), tensor.view(torch.int16))
    document = json.loads((tmp_path / "t/episodes/e/h/zarr.json").read_bytes())
    assert (document["data_type"], document["attributes"]["dtype"]) == ("uint16", "bfloat16")
    with pytest.raises(TracekitError, match="bfloat16"):
        to_bits(torch.zeros(2))
    with pytest.raises(TracekitError, match="uint16"):
        from_bits(np.zeros(2, np.float32))


def test_appended_arrays_may_be_reused_by_the_caller(tmp_path):
    buffer = np.zeros(3, np.float32)
    schema = {"a": ArraySpec("float32", (3,), ("x",))}
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
        for step in range(20):
            buffer[:] = step
            episode.append({"a": buffer})
    np.testing.assert_array_equal(Trace.open(tmp_path / "t").episode("e").read("a")[:, 0], np.arange(20))


def test_copy_drops_edits_and_keeps_the_rest(make_trace, tmp_path):
    source = make_trace(5, 4)

    def edit(episode_id, key, array):
        if key == "observables/attention":
            return array[..., :2].astype(np.float64)
        return array + (episode_id == "ep-1") if key == "timing/wall" else array

    copy_trace(
        source,
        tmp_path / "copy",
        drop=lambda key: key in {"depth", "timing/load"} or key.startswith("streams/"),
        edit=edit,
    )
    trace = Trace.open(tmp_path / "copy")
    original = Trace.open(source)
    assert [(i.id, i.steps, i.success, i.attributes) for i in trace.episodes] == [
        (i.id, i.steps, i.success, i.attributes) for i in original.episodes
    ]
    for name in ("ep-0", "ep-1"):
        old, new = original.episode(name), trace.episode(name)
        gone = {"depth", "timing/load", "streams/arm/value", "streams/arm/time_ns"}
        assert set(old.keys()) - set(new.keys()) == gone
        for key in new:
            np.testing.assert_array_equal(new.read(key), edit(name, key, old.read(key)), strict=True)


def test_other_formats_use_the_same_store(tmp_path):
    with TraceWriter.create(tmp_path / "r", {}, format="tracekit.replay") as writer:
        record(writer, "e", 2)
    check_episode(Trace.open(tmp_path / "r", format="tracekit.replay"), "e", 2, 0)
    with pytest.raises(TraceError, match=r"is a tracekit\.replay store, not a tracekit\.trace one"):
        Trace.open(tmp_path / "r")
    with TraceWriter.append(tmp_path / "r", {}, format="tracekit.replay") as writer:
        record(writer, "f", 1)
    assert len(Trace.open(tmp_path / "r", format="tracekit.replay").episodes) == 2


def test_streams_keep_their_own_order_even_when_the_clock_goes_back(tmp_path):
    schema = {
        "streams/imu/time_ns": ArraySpec("int64", unit="ns"),
        "streams/imu/value": ArraySpec("float32", (2,), ("axis",)),
    }
    times = np.array([50, 40, 40, 2, -7])
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
        episode.append_stream("imu", times[:2], values[:2])
        episode.append({})
        episode.append_stream("imu", times[2:], values[2:])
        with pytest.raises(TraceError, match="1 times, 2 values"):
            episode.append_stream("imu", times[:1], values[:2])
        with pytest.raises(TraceError, match="no stream 'arm'"):
            episode.append_stream("arm", times, values)
    read = Trace.open(tmp_path / "t").episode("e")
    np.testing.assert_array_equal(read.read("streams/imu/time_ns"), times)
    np.testing.assert_array_equal(read.read("streams/imu/value"), values)
    assert read.info.steps == 1


def test_step_helper_differs_between_steps():
    assert (step_of(0, 0)["observation/images/front"] != step_of(0, 1)["observation/images/front"]).any()


@pytest.mark.parametrize(
    ("row", "codec"),
    [
        (np.zeros((64, 64, 3), np.uint8), "zstd1"),
        (np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), None),
        (np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), None),
        (np.zeros(100, np.uint8), None),  # too small to matter
    ],
)
def test_a_codec_is_taken_where_it_pays(row, codec):
    spec = ArraySpec(str(row.dtype), row.shape, tuple("abc"[: row.ndim]))
    assert with_measured_codec(spec, row) == replace(spec, codec=codec)
