"""Data that is whole in itself but not what was written there is found, and traces of other data have other digests."""

from __future__ import annotations

import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from tests.tracekit.store.support import record
from tracekit.errors import TraceError
from tracekit.store import ArraySpec, EpisodeInfo, Trace, TraceWriter, copy_trace, repair, verify
from tracekit.store.checksums import checksum_of
from tracekit.store.sealed import seal, unseal

SPEC = ArraySpec("float32", (4,), ("i",))
CHUNK = 4 * 4 + 4
SHARD = "episodes/e/{}/c.0.0"


def make(path: Path, seed: int = 0, **attributes: object) -> Path:
    """A trace of two arrays whose shards are of equal length, in one episode that says nothing of its numbers."""
    rng = np.random.default_rng(seed)
    with (
        TraceWriter.create(path, attributes) as writer,
        writer.episode(EpisodeInfo("e"), {"a": SPEC, "b": SPEC}) as episode,
    ):
        for _ in range(5):
            episode.append({"a": rng.random(4, np.float32), "b": rng.random(4, np.float32)})
    return path


def problems(path: Path) -> dict[str, str]:
    return {problem.path: problem.what for problem in verify(path).problems}


OTHER = "has other contents than were written"


def test_two_shards_of_a_store_swapped(tmp_path):
    path = make(tmp_path / "t")
    a, b = (path / SHARD.format(key) for key in "ab")
    first = a.read_bytes()
    assert google_crc32c.value(first) == google_crc32c.value(b.read_bytes())  # why CRC32C of a file is not enough
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)
    assert problems(path) == {SHARD.format("a"): OTHER, SHARD.format("b"): OTHER}


def test_a_chunk_exchanged_with_another_of_its_shard(tmp_path):
    path = make(tmp_path / "t")
    shard = path / SHARD.format("b")
    data = shard.read_bytes()
    chunks = [data[start : start + CHUNK] for start in range(0, 5 * CHUNK, CHUNK)]
    chunks[1], chunks[3] = chunks[3], chunks[1]
    shard.write_bytes(b"".join(chunks) + data[5 * CHUNK :])
    assert problems(path) == {SHARD.format("b"): OTHER}


def test_a_shard_an_episode_or_a_journal_of_another_store(tmp_path):
    other = make(tmp_path / "other", seed=1)
    every = {SHARD.format("a"): OTHER, SHARD.format("b"): OTHER, "episodes/e/zarr.json": OTHER}
    for name, found in (
        (SHARD.format("a"), {SHARD.format("a"): OTHER}),
        ("episodes", every),
        ("journal", every),
        ("journal/manifests/e@1.json", {"journal/manifests/e@1.json": "is damaged or missing"}),
    ):
        path = make(tmp_path / name.replace("/", "-"))
        if (path / name).is_dir():
            shutil.rmtree(path / name)
            shutil.copytree(other / name, path / name)
        else:
            shutil.copy(other / name, path / name)
        assert problems(path) == found


def with_number_changed(path: Path) -> None:
    """Add one to a number, and compute its chunk's CRC32C again: the shard is whole in itself."""
    shard = path / SHARD.format("a")
    data = bytearray(shard.read_bytes())
    row = np.frombuffer(data[CHUNK : 2 * CHUNK - 4], np.float32) + 1
    data[CHUNK : 2 * CHUNK] = row.tobytes() + google_crc32c.value(row.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data)


def with_checksums_forged(path: Path) -> None:
    """Compute manifest and journal again from the files as they are."""
    manifest, journal = path / "journal/manifests/e@1.json", path / "journal/commits.jsonl"
    said = unseal(manifest.read_bytes())
    found = {name: checksum_of((path / "episodes/e" / name).read_bytes()) for name in said["files"]}
    files = {name: [about.nbytes, about.crc32c] for name, about in found.items()}
    strong = {name: about.sha256 for name, about in found.items()}
    manifest.write_bytes(seal({**said, "files": files, "sha256": strong}))
    head, line = journal.read_bytes().splitlines(keepends=True)
    about = checksum_of(manifest.read_bytes())
    named = {"name": manifest.name, "size": about.nbytes, "crc32c": about.crc32c, "sha256": about.sha256}
    journal.write_bytes(head + seal({**unseal(line), "manifest": named}))


def test_a_number_changed_with_its_crc(tmp_path):
    path = make(tmp_path / "t")
    before = Trace.open(path).digest
    value = Trace.open(path).episode("e").read("a")
    with_number_changed(path)
    assert problems(path) == {SHARD.format("a"): OTHER}
    with_checksums_forged(path)
    assert not problems(path)
    assert (Trace.open(path).episode("e").read("a") != value).any()
    assert Trace.open(path).digest != before


def test_the_digest_depends_on_every_number_and_attribute_and_on_nothing_else(tmp_path):
    first = Trace.open(make(tmp_path / "first")).digest
    assert Trace.open(make(tmp_path / "again")).digest == first
    assert Trace.open(make(tmp_path / "data", seed=1)).digest != first
    assert Trace.open(make(tmp_path / "attributes", weights="x")).digest != first
    edits = {
        "one number": lambda _, key, array: array + (np.arange(len(array)) == 2)[:, None] * (key == "a"),
        "no number": lambda _, key, array: array,
    }
    digests = {}
    for name, edit in edits.items():
        copy_trace(tmp_path / "first", tmp_path / name, edit=lambda *a, edit=edit: edit(*a).astype(np.float32))
        digests[name] = Trace.open(tmp_path / name).digest
    assert digests["no number"] == first
    assert digests["one number"] != first
    shutil.copytree(tmp_path / "first", tmp_path / "elsewhere")
    assert Trace.open(tmp_path / "elsewhere").digest == first


def test_the_digest_of_what_version_1_0_recorded_depends_on_its_numbers(tmp_path):
    store = Path(__file__).parent / "data" / "v1.0.zarr"
    path = tmp_path / "t"
    shutil.copytree(store, path)
    before = Trace.open(path).digest
    shard = path / "episodes/ep-0/observables/attention/c.0.0.0.0"
    other = path / "episodes/ep-0/observables/attention/other"
    data = shard.read_bytes()
    size = 3 * 4 * 5 * 4 + 4
    shard.write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
    assert Trace.open(path).digest != before
    shard.rename(other)
    with pytest.raises(TraceError, match=r"c\.0\.0\.0\.0 cannot be read"):
        Trace.open(path).digest  # noqa: B018  (it reads)
    assert any("exchanged" in note for note in verify(store).notes)


def test_repair_does_not_take_another_stores_data_for_its_own(tmp_path):
    path, other = make(tmp_path / "t"), make(tmp_path / "other", seed=1)
    shutil.copy(other / SHARD.format("a"), path / SHARD.format("a"))
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).episodes == ()
    aside = path / "journal/set_aside/e/a/c.0.0"
    assert aside.read_bytes() == (other / SHARD.format("a")).read_bytes()


def test_the_manifest_has_a_sha256_of_every_file(tmp_path):
    with TraceWriter.create(tmp_path / "t", {}) as writer:
        record(writer, "e", 2)
    manifest = unseal((tmp_path / "t/journal/manifests/e@1.json").read_bytes())
    assert manifest["files"].keys() == manifest["sha256"].keys()
    assert {len(strong) for strong in manifest["sha256"].values()} == {64}
