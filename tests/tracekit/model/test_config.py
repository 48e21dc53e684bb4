import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.errors import PolicyError
from tracekit.model import MLAConfig, Normalisation, mla_7b, reference

from .conftest import tiny_config

SEVEN = Normalisation((-1.0,) * 7, (1.0,) * 7, (True,) * 7)


@pytest.mark.parametrize("config", [reference(), tiny_config(), mla_7b(SEVEN, SEVEN)], ids=lambda c: c.name)
def test_configurations_survive_json(config):
    assert MLAConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers = 0"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"heads": 5, "kv_heads": 5}, "5 heads do not divide hidden_size 32"),
        ({"kv_heads": 3}, "kv_heads = 3"),
        ({"image_heads": 7}, "image_heads = 7"),
        ({"point_width": 8}, "multiple of 3"),
        ({"points": 63}, "63 points"),
        ({"point_neighbours": 33}, "33 neighbours"),
        ({"ddim_steps": 101}, "ddim_steps = 101"),
        ({"state": SEVEN}, "7 state numbers"),
        ({"cameras": {"left": "rlbench_front"}}, "cameras name 'left'"),
        ({"cameras": {"front": "somewhere"}}, "cameras name 'somewhere'"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(PolicyError, match=message) as caught:
        tiny_config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("layers"), r"missing keys \['layers'\]"),
        (lambda d: d.update(widht=3), r"unknown keys \['widht'\]"),
        (lambda d: d.update(action_spec={"colour": 1}), "not an MLA configuration"),
        (lambda d: d.update(state=[1]), "not an MLA configuration"),
    ],
)
def test_damaged_json_is_refused(edit, message):
    data = tiny_config().to_json()
    edit(data)
    with pytest.raises(PolicyError, match=message):
        MLAConfig.from_json(data)


def test_statistics_of_unequal_lengths_are_refused():
    with pytest.raises(PolicyError, match="2, 1 and 1 entries"):
        Normalisation((0.0, 1.0), (1.0,), (True,))


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_normalising_undoes_restoring(values):
    statistics = Normalisation((-3.0, 0.1, 0.0), (2.0, 0.4, 1.0), (True, True, False))
    restored = statistics.restore(np.array(values))
    np.testing.assert_allclose(statistics.normalise(restored), values, atol=1e-6)


def test_normalising_clips_and_leaves_unmasked_numbers_alone():
    statistics = Normalisation((0.0, 0.0), (2.0, 2.0), (True, False))
    np.testing.assert_allclose(statistics.normalise(np.array([5.0, 0.25])), [1.0, 0.25])
    np.testing.assert_allclose(statistics.normalise(np.array([0.5, 0.25])), [-0.5, 0.25])
    np.testing.assert_allclose(statistics.restore(np.array([-0.5, 0.25])), [0.5, 0.25])


def test_reference_statistics_fit_the_simulator():
    config = reference()
    action = np.array([0.15, -0.15, 0.0, *(0.3,) * 6, 1.0])
    np.testing.assert_allclose(config.action.restore(config.action.normalise(action)), action, atol=1e-7)
    assert replace(config, name="other").action_size == 10
