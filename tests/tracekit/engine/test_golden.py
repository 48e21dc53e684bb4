"""The engine on the release's own checkpoint, against the numbers that the release computed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.small import make_config
from tests.tracekit.engine.support import relative
from tracekit.capture import GROUPS, CaptureSpec
from tracekit.config import Configuration
from tracekit.engine import Controller, StepDraws, StepOptions
from tracekit.model import IdTable, load_release
from tracekit.observation import Observation
from tracekit.policy import Precision
from tracekit.pruning import PRUNERS, Decision


@pytest.fixture(scope="module")
def release(golden):
    """(policy, arrays, observation, draws) of the golden folder."""
    folder = golden / "mla_tiny"
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    instruction = json.loads((folder / "golden.json").read_text())["instruction"]
    policy, _ = load_release(folder)
    policy.tokenizer = IdTable({instruction: arrays["text_ids"].tolist()}, int(arrays["text_ids"][-1]))
    policy.freeze(Precision())
    observation = Observation({"front": arrays["image"]}, arrays["point_cloud"][0], arrays["state"], instruction)
    draws = StepDraws(arrays["noisy_action"][0, 0], arrays["fps_start_indices"])
    return policy, arrays, observation, draws


def step(release, config, options=None):
    policy, _, observation, draws = release
    controller = Controller(policy, config, options)
    controller.reset(0)
    return controller.step(observation, draws)


@pytest.fixture(scope="module")
def result(release):
    return step(release, make_config(), StepOptions(CaptureSpec.default()))


def test_a_control_step_is_the_releases(release, result):
    arrays = release[1]
    assert relative(result.unclipped, arrays["action_unclipped"][0]) < 1e-4
    assert relative(result.action, arrays["action"]) < 1e-4
    for index in range(7):  # the sample after pass i is the noisy action of pass i + 1
        assert relative(result.samples[index], arrays["noisy_action"][index + 1, 0]) < 1e-4


def test_observables_are_the_releases(release, result):
    arrays = release[1]
    visual, layout = result.layout.visual_positions, result.layout
    rows = list(arrays["attention_row_positions"])
    for index, group in enumerate(GROUPS):
        wanted = [rows.index(position) for position in layout.group_positions(group)]
        expected = arrays["attention_rows_step0"][:, :, wanted].mean(2)[..., visual]
        np.testing.assert_allclose(result.observables.attention[:, :, index], expected, rtol=0, atol=1e-6)
    expected = np.abs(arrays["last_layer_prenorm_step0"][visual]).sum(-1)
    np.testing.assert_allclose(result.observables.norms["prenorm"], expected, rtol=1e-5)
    expected = np.abs(arrays["hidden_states_step0"][-1][visual]).sum(-1)
    np.testing.assert_allclose(result.observables.norms["postnorm"], expected, rtol=1e-5)
    valid, cell = arrays["patch_valid_step0"], arrays["patch_row_col_step0"]
    patch = np.where(valid, 16 * cell[:, 0] + cell[:, 1], -1)
    np.testing.assert_array_equal(result.observables.patch, patch)


class FirstPassIsOver(Exception):
    pass


def test_dropped_rows_give_the_releases_pruned_noise(release, monkeypatch):
    """The release's own mask of pass 0, put in the place of a decision."""
    policy, arrays, observation, _ = release
    layout, keep, noises = policy.tokenize(observation).layout, arrays["pruned_keep"], []
    visual, read_noise = keep[layout.visual_positions], policy.read_noise
    assert (~keep).sum() == (~visual).sum() > 0  # everything that the release dropped is a visual token

    def decide(_seen, state, _config, _key, shape, **_):
        return Decision(visual[: shape.n_2d], None, keep_3d_tokens=visual[shape.n_2d :]), state

    def read(hidden):
        noises.append(read_noise(hidden))
        raise FirstPassIsOver

    rule = replace(PRUNERS["naive"], decide=decide)
    monkeypatch.setattr(Configuration, "method", property(lambda _config: rule))
    monkeypatch.setattr(policy, "read_noise", read, raising=False)
    with pytest.raises(FirstPassIsOver):
        step(release, make_config("naive"))
    assert relative(noises[0].numpy(), arrays["pruned_predicted_noise_original_positions"][0]) < 1e-4
    assert relative(noises[0].numpy(), arrays["pruned_predicted_noise_compressed_positions"][0]) > 1e-2
