import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.philox import Modality, Purpose, action_noise, fps_starts, philox4x32, uniforms
from tracekit.pruning.base import DecisionKey

WORD = st.integers(0, 2**32 - 1)


def literal(counter, key):
    """Philox4x32-10 in plain integers, one block."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([0x00000000] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_known_answers(words, answer):
    """The three vectors that come with Random123: counter words, then key words."""
    out = philox4x32(np.array([words[:4]], np.uint32), np.array(words[4:], np.uint32))
    assert " ".join(f"{w:08x}" for w in out[0]) == answer


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=5), st.tuples(WORD, WORD))
def test_many_blocks_are_the_literal_block_each(counters, key):
    out = philox4x32(np.array(counters, np.uint32), np.array(key, np.uint32))
    assert out.tolist() == [literal(counter, key) for counter in counters]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 1000), st.integers(0, 65535))
def test_uniform_is_keyed_as_documented(seed, uid, step, index):
    word = literal((uid % 2**32, step, 2, 2 * 65536 + index), (seed % 2**32, seed >> 32))[0]
    drawn = uniforms(DecisionKey(seed, uid, step), Purpose.TOKENS, Modality.POINT, np.array([index]))
    assert drawn.tolist() == [(word >> 8) / 2**24]


def test_a_draw_does_not_depend_on_its_neighbours():
    key = DecisionKey(3, 7, 2)
    together = uniforms(key, Purpose.BACKGROUND, Modality.PATCH, np.arange(256))
    backwards = [uniforms(key, Purpose.BACKGROUND, Modality.PATCH, np.array([i]))[0] for i in reversed(range(256))]
    assert together.tolist() == backwards[::-1]


def test_action_noise_is_box_muller_of_the_documented_words():
    noise = action_noise(2**40 + 5, 3, (2, 3))
    assert noise.shape == (2, 3)
    assert noise.dtype == np.float32
    for index, value in enumerate(noise.ravel()):
        w0, w1, *_ = literal((5, 3, 3, index), (0, 0))
        u0, u1 = (w0 + 0.5) / 2**32, (w1 + 0.5) / 2**32
        assert value == pytest.approx(math.sqrt(-2 * math.log(u0)) * math.cos(2 * math.pi * u1), rel=1e-6)


def test_action_noise_is_standard_normal():
    noise = np.concatenate([action_noise(uid, 1, (1000,)) for uid in range(20)]).astype(np.float64)
    assert abs(noise.mean()) < 4 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=0.03)


def test_fps_starts_are_the_scaled_words():
    starts = fps_starts(9, 4, 8, (1024, 512))
    assert starts.shape == (8, 2)
    assert starts.dtype == np.int64
    for p in range(8):
        for stage, size in enumerate((1024, 512)):
            assert starts[p, stage] == literal((9, 4, 4, 2 * p + stage), (0, 0))[0] * size >> 32


def test_fps_starts_of_a_policy_without_points_are_empty():
    assert fps_starts(9, 4, 8, ()).shape == (8, 0)


def test_three_stages_have_no_key():
    with pytest.raises(ValueError, match="room for 2"):
        fps_starts(9, 4, 8, (4, 3, 2))


@pytest.mark.parametrize("index", [-1, 65536])
def test_an_index_of_another_modality_is_refused(index):
    with pytest.raises(ValueError, match="runs from 0 to 65535"):
        uniforms(DecisionKey(0, 1, 1), Purpose.TOKENS, Modality.IMAGE, np.array([0, index]))
