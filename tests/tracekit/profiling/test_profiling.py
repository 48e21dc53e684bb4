"""Stages, the clock, and the one module that emits NVTX."""

import re
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracekit.profiling.clock as clock_module
from tracekit.profiling import STAGES, NvtxEmitter, Stage, StageClock, pack_payload, unpack_payload

ROOT = Path(clock_module.__file__).parents[2]


def test_stages_are_in_order_of_execution():
    assert get_args(Stage) == STAGES
    assert STAGES == (
        "encode",
        "observe",
        "stage3",
        "stage1",
        "stage2",
        "fuse",
        "compact",
        "prefill",
        "denoise",
        "decode",
    )


class Time:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1_000
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)


def test_the_clock_adds_up_per_stage_and_pass(monkeypatch):
    hand = Time(monkeypatch)
    clock = StageClock(passes=2)
    for stage, denoise_pass, nanoseconds in (("encode", 0, 5), ("denoise", 1, 7), ("denoise", 1, 2), ("denoise", 0, 1)):
        with clock.stage(stage, denoise_pass):
            hand.now += nanoseconds
    hand.now += 100  # between stages
    assert clock.times_ns.shape == (len(STAGES), 2)
    assert clock.times_ns.dtype == np.int64
    assert clock.times_ns[STAGES.index("encode")].tolist() == [5, 0]
    assert clock.times_ns[STAGES.index("denoise")].tolist() == [1, 9]
    assert clock.stage_ns("denoise") == 10
    assert clock.total_ns() == 15
    assert clock.elapsed_ns() == 115


def test_time_can_be_charged_to_another_stage_and_the_sum_stays(monkeypatch):
    hand = Time(monkeypatch)
    clock = StageClock(passes=1)
    with clock.stage("prefill"):
        hand.now += 10
    clock.move("prefill", "observe", 0, 4)
    assert clock.stage_ns("prefill") == 6
    assert clock.stage_ns("observe") == 4
    assert clock.total_ns() == 10


def test_a_stage_that_fails_is_closed_and_counted(monkeypatch):
    hand, opened = Time(monkeypatch), []

    class Emitter:
        def push(self, stage, payload):
            opened.append((stage, payload))

        def pop(self):
            opened.append("closed")

    monkeypatch.setattr(clock_module, "_emitter", Emitter)
    clock = StageClock(passes=1, payload=9)

    def fail():
        with clock.stage("fuse"):
            hand.now += 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert opened == [("fuse", 9), "closed"]
    assert clock.stage_ns("fuse") == 3


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**24 - 1), st.integers(0, 2**24 - 1))
def test_payloads_hold_configuration_episode_and_step(configuration, episode, step):
    payload = pack_payload(configuration, episode, step)
    assert 0 <= payload < 2**64
    assert unpack_payload(payload) == (configuration, episode, step)


def test_a_wide_episode_uid_stays_in_its_bits():
    payload = pack_payload(3, 2**64 - 1, 5)
    assert payload < 2**64
    assert unpack_payload(payload) == (3, 2**24 - 1, 5)


class Domain:
    """Stands for an attached profiler and writes down what it is told."""

    def __init__(self):
        self.told, self.made = [], 0

    def get_registered_string(self, text):
        return f"registered {text}"

    def get_category_id(self, name):
        return f"category {name}"

    def get_event_attributes(self, message, category):
        self.made += 1
        return type("Attributes", (), {"message": message, "category": category, "payload": None})()

    def push_range(self, attributes):
        self.told.append((attributes.message, attributes.category, attributes.payload))

    def pop_range(self):
        self.told.append("pop")


def test_ranges_are_named_after_stages_and_carry_the_payload(monkeypatch):
    import nvtx

    domain, names = Domain(), []
    monkeypatch.setattr(nvtx, "get_domain", lambda name: names.append(name) or domain)
    emitter = NvtxEmitter()
    emitter.push("stage1", 7)
    emitter.pop()
    emitter.push("stage1", 8)
    emitter.pop()
    assert names == ["tracekit"]
    assert domain.made == len(STAGES)  # attributes are made once and used again
    assert domain.told == [
        ("registered stage1", "category stage1", 7),
        "pop",
        ("registered stage1", "category stage1", 8),
        "pop",
    ]


def test_without_a_profiler_ranges_cost_nothing_and_do_nothing():
    emitter = NvtxEmitter()
    emitter.push("encode", 1)
    emitter.pop()


def test_one_module_emits_nvtx():
    packages = ("tracekit", "recorders", "replay", "reports")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    naming = [file for file in files if re.search(r"^\s*(import|from) nvtx\b", file.read_text("utf-8"), re.MULTILINE)]
    assert [file.relative_to(ROOT).as_posix() for file in naming] == ["tracekit/profiling/nvtx_emitter.py"]
