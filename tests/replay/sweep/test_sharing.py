"""Configurations that go through an episode together: what none of them changes is computed once, bit for bit."""

from collections import Counter

import pytest

from replay.source import TraceSource
from replay.sweep.forward import _OneStep, _replayed
from tests.small import make_config, make_policy
from tracekit.config import Configuration
from tracekit.engine.sharing import SharingForward


def changed(config: Configuration, **tables) -> Configuration:
    return Configuration.from_table({**config.to_json(), **tables}, "changed")


TRI = make_config("tri_stage", "prefix_kv", background_rate=0.5)
CONFIGS = [
    make_config("tri_stage", background_rate=0.5, reduction={"groups": ["text"]}),  # sees less than the next one
    make_config("tri_stage", background_rate=0.5),
    make_config("tri_stage", "encoders", background_rate=0.9, reduction={"correspondence": "nearest"}),
    make_config("tri_stage", fps="pinned", background_rate=0.9),
    TRI,
    changed(TRI, reuse={"kind": "prefix_kv", "fps": "pinned", "kv": "drop"}),
    changed(TRI, execution={"threads": 1, "drop": "mask"}),
    changed(TRI, observe={"mode": "lagged", "refresh_every": 2}),
    changed(TRI, observe={"mode": "lagged", "feedback": "recorded", "refresh_every": 3}),
    changed(make_config("tri_stage", background_rate=0.5), observe={"mode": "lagged", "refresh_every": 2}),
    make_config("tri_stage", "mask", fps="recorded", background_rate=0.5),
    make_config("naive", "prefix_kv", rate=0.3),
    make_config("fastv", fps="pinned", layer=1, rate=0.5),
    make_config("fastv", "prefix_kv", layer=1, rate=0.5),
    make_config("none", "skip_frame", fps="recorded"),
    make_config("none", "prefix_kv"),
    make_config("none"),
]
BY_DIGEST = {config.digest: config for config in CONFIGS}


@pytest.fixture(scope="module")
def policy():
    """One in which tokens can be dropped behind block 1."""
    return make_policy(layers=3)


@pytest.fixture(scope="module")
def together(policy, small_trace, inputs):
    """Replays configurations together."""
    return lambda configs: _replayed(_OneStep(policy), configs, TraceSource(small_trace), inputs[0])


@pytest.fixture(scope="module")
def alone(together):
    """The same with every pass computed for every configuration."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SharingForward, "predict", lambda self, *args: self._forward.predict(*args))
        return together(BY_DIGEST)


@pytest.mark.parametrize("backwards", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bits_are_those_of_a_replay_alone(together, alone, backwards):
    order = list(BY_DIGEST)[::-1] if backwards else list(BY_DIGEST)
    found = together({digest: BY_DIGEST[digest] for digest in order})
    for digest, config in BY_DIGEST.items():
        for one, other in zip(alone[digest].steps, found[digest].steps, strict=True):
            where = config.to_json(), one.recorded.number
            assert one.result.samples.tobytes() == other.result.samples.tobytes(), where
            assert (one.result.kept == other.result.kept).all(), where
            assert one.result.pruned_from == other.result.pruned_from, where


def test_a_pass_over_all_tokens_is_computed_once(together, policy, inputs, monkeypatch):
    rows, own = Counter(), type(policy).forward

    def counting(self, states, *args, **options):
        rows[len(states)] += 1
        return own(self, states, *args, **options)

    monkeypatch.setattr(type(policy), "forward", counting)
    layout, steps, passes = inputs[0].layout, len(inputs[0].episode), policy.passes
    for reuse, whole, times in (
        ("none", layout.length, steps * passes),
        ("prefix_kv", layout.prefix_length, steps + steps - 1),  # the unpruned one goes on from a cache of its own
    ):
        rows.clear()
        rates = [make_config("tri_stage", reuse, background_rate=rate) for rate in (0.2, 0.5, 0.9)]
        together({config.digest: config for config in [*rates, make_config("none", reuse)]})
        assert rows[whole] == times
