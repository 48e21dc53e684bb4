"""Every single flipped bit, in every type of file, is found by `verify` and never read silently."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tracekit.store.support import contents, leave_cut_off
from tracekit.errors import TraceError
from tracekit.store import Trace, repair, verify


def kind_of(name: str) -> str:
    """The file types that flips are spread over evenly, small metadata as well as large shards."""
    if name.startswith("journal/"):
        return "/".join(name.split("/")[:2])
    if name.endswith("zarr.json"):
        return "zarr.json of the root" if name == "zarr.json" else "zarr.json"
    return name.split("/", 2)[2]


def read_all(path: Path) -> dict[str, Any]:
    """Everything a reader can get out of a store."""
    trace = Trace.open(path)
    found: dict[str, Any] = {"attributes": trace.attributes, "episodes": trace.episodes, "nbytes": trace.nbytes}
    for info in trace.episodes:
        episode = trace.episode(info.id)
        for key in episode:
            found[f"{info.id}/{key}"] = (episode.spec(key), episode.read(key).tobytes(), episode.present(key).tobytes())
    return found


@pytest.mark.parametrize("flips", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_and_none_is_read(make_trace, flips):
    path = make_trace(3, 2)
    whole = contents(path)
    expected = read_all(path)
    kinds: dict[str, list[str]] = {}
    for name in sorted(whole):
        kinds.setdefault(kind_of(name), []).append(name)
    assert len(kinds) == 15
    draw = random.Random(7)
    refused = 0
    for number in range(flips):
        name = draw.choice(kinds[sorted(kinds)[number % len(kinds)]])
        offset, bit = draw.randrange(len(whole[name])), draw.randrange(8)
        if number < len(kinds) * 2:  # the edges of every type of file: its first and its last bit
            offset, bit = (0, 7) if number < len(kinds) else (len(whole[name]) - 1, 0)
        change(path / name, offset, whole[name][offset] ^ 1 << bit)
        where = f"{name}, byte {offset}, bit {bit}"
        assert not verify(path).clean, where
        try:
            assert read_all(path) == expected, where
        except TraceError:
            refused += 1
        change(path / name, offset, whole[name][offset])
    assert verify(path).clean
    assert refused > 0.4 * flips  # the others were in zarr metadata and indices, which this reader does not need


def change(path: Path, offset: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([byte]))


@pytest.mark.parametrize("flips", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_repair_after_any_flip_is_clean_and_keeps_what_was_not_hit(make_trace, tmp_path, flips):
    path = make_trace(3, 2)
    leave_cut_off(path, "cut", 4, 5)
    whole = contents(path)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    repair(copy)
    expected = read_all(copy)
    draw = random.Random(11)
    for _ in range(flips):
        shutil.rmtree(copy)
        shutil.copytree(path, copy)
        name = draw.choice(sorted(whole))
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(bytes(data))
        repair(copy)
        assert verify(copy).clean, name
        after = read_all(copy)
        hit = "cut" if "/cut" in name else name.split("/")[1] if "/c." in name else None
        untouched = {key for key in expected if "/" in key and key.partition("/")[0] != hit}
        assert {key: after.get(key) for key in untouched} == {key: expected[key] for key in untouched}, name
        for key in after.keys() - untouched - {"attributes", "episodes", "nbytes"}:
            assert expected[key][1].startswith(after[key][1]), (name, key)
