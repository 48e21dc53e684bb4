"""The release's module tree, recorded from outside: nothing of it changes, and what is recorded is what it computed."""

import hashlib
import lzma
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import recorders
from recorders.attach_layout import layout_of
from recorders.attach_passes import PassSeen, locate
from recorders.sites import find_sites
from replay import Replay
from tests.release_double import double as double_module
from tests.release_double import encoders
from tests.release_double.double import double_of
from tests.release_double.runs import fingerprint, make_inputs, observation_of, record
from tests.tracekit.model.release_files import IDS, release_policy
from tracekit import keys
from tracekit.capture import CaptureSpec
from tracekit.config import load_config
from tracekit.engine import Controller, StepOptions
from tracekit.errors import PolicyError, TraceError
from tracekit.layout import TokenLayout
from tracekit.model import load_release
from tracekit.policy import Precision, register_policy
from tracekit.records import recorded_draws, recorded_observation
from tracekit.store import Trace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def policy():
    return release_policy().freeze(Precision())


@pytest.fixture
def mla(policy):
    return double_of(policy, {"close box": IDS})


@pytest.fixture(scope="module")
def recorded(policy, tmp_path_factory):
    mla = double_of(policy, {"close box": IDS})
    path = tmp_path_factory.mktemp("release") / "trace.zarr"
    torch.manual_seed(3)
    actions = record(mla, policy, path, identity=policy.identity)
    return path, actions


@pytest.fixture(scope="module")
def episode(recorded):
    return Trace.open(recorded[0]).episode("only")


def test_recording_changes_no_bit_and_leaves_nothing_behind(policy, mla, recorded):
    before = fingerprint(mla)
    torch.manual_seed(3)
    alone = [mla.predict_action_diff(**make_inputs(seed)) for seed in (0, 1)]
    assert [a.tobytes() for a in alone] == [a.tobytes() for a in recorded[1]]
    assert fingerprint(mla) == before


def test_attached_model_is_restored_even_after_an_error(policy, mla, tmp_path, monkeypatch):
    before = fingerprint(mla)
    with (
        recorders.attach(mla, tmp_path / "t", action_spec=policy.action_spec) as recorder,
        recorder.episode("t", "close box") as episode,
    ):
        assert fingerprint(mla) != before
        with episode.step(observation_of(make_inputs())):
            mla.predict_action_diff(**make_inputs())
        monkeypatch.setattr(mla.vlm.final_layer, "mlp", None)
        with pytest.raises(TypeError, match="not callable"):
            mla.predict_action_diff(**make_inputs())
    assert {k: v for k, v in fingerprint(mla).items() if "final_layer" not in k} == {
        k: v for k, v in before.items() if "final_layer" not in k
    }
    assert len(Trace.open(tmp_path / "t").episodes) == 1


def test_layout_is_found_by_content(policy, episode):
    assert TokenLayout.from_json(episode.info.attributes["layout"]) == policy.layout(len(IDS) - 2)
    assert episode.read(keys.TEXT_IDS, 0).tolist() == IDS


def test_identity_and_execution_are_those_of_the_loaded_checkpoint(policy, recorded):
    attributes = Trace.open(recorded[0]).attributes
    assert attributes["kind"] == "full"
    assert attributes["policy"] == policy.identity.to_json()
    assert attributes["source"] == {"action_norm": "std"}
    assert attributes["execution"]["dtype"] == "float32"
    assert attributes["execution"]["reuse"]["kind"] == "none"


def test_arrays_are_those_that_our_own_model_records(policy, episode, tmp_path):
    controller = Controller(policy)
    inputs = make_inputs()
    with (
        recorders.Recorder(tmp_path / "ours", controller) as recorder,
        recorder.episode("t", "close box") as ours,
        ours.step(observation_of(inputs)) as step,
    ):
        step.action = controller.act(observation_of(inputs))
    [info] = Trace.open(tmp_path / "ours").episodes
    own = Trace.open(tmp_path / "ours").episode(info.id)
    extra = {keys.generator("torch"), keys.generator("numpy")}
    assert {*episode.keys()} - {*own.keys()} == extra
    assert {*own.keys()} <= {*episode.keys()}
    for key in own.keys():  # noqa: SIM118  # an episode is no dict
        assert episode.read(key, 0).shape == own.read(key, 0).shape, key
        assert episode.read(key, 0).dtype == own.read(key, 0).dtype, key


def test_recorded_rows_are_those_of_eager_causal_attention(mla, recorded, episode, policy):
    """The same forward pass again, with attention as a matrix and its own causal mask."""
    eager = double_of(policy, {"close box": IDS}, attention="eager")
    fed, maps, prenorm = [], [], []
    llm = eager.vlm.llm_backbone.llm
    llm.model.register_forward_pre_hook(lambda _m, _a, kw: fed.append(kw["inputs_embeds"]), with_kwargs=True)
    llm.model.norm.register_forward_pre_hook(lambda _m, a: prenorm.append(a[0][0]))
    for layer in llm.model.layers:
        layer.self_attn.register_forward_hook(lambda _m, _a, out: maps.append(out[1][0]))
    recorders.restore_generators({"torch": episode.read(keys.generator("torch"), 0)})
    eager.predict_action_diff(**make_inputs())
    layout = TokenLayout.from_json(episode.info.attributes["layout"])
    layers, passes = len(llm.model.layers), policy.passes
    maps = torch.stack(maps).unflatten(0, (passes, layers)).numpy()
    assert np.allclose(maps.sum(-1), 1, atol=1e-5)
    assert not np.triu(maps[0, 0, 0], 1).any()
    columns = layout.visual_positions
    stored = episode.read(keys.ATTENTION, 0)[0]
    for index, group in enumerate(("text", "state", "action")):
        rows = layout.group_positions(group)
        expected = maps[0][:, :, rows][..., columns].mean(2)
        assert np.abs(stored[:, :, index] - expected).max() <= 1e-6, group
    rows = layout.group_positions("action")
    later = maps[1:][:, :, :, rows][..., columns].mean((2, 3))
    assert np.abs(episode.read(keys.ATTENTION_ACTION, 0) - later).max() <= 1e-6
    assert np.allclose(episode.read(keys.norms("prenorm"), 0)[0], prenorm[0].abs().sum(-1)[columns], rtol=1e-5)
    for index in range(passes):
        prefix = fed[index][0, : layout.prefix_length]
        digest = episode.read(keys.ROWS_DIGEST, 0)[index].tobytes()
        assert digest == hashlib.sha256(prefix.numpy().tobytes()).digest()


def test_generator_states_repeat_a_step_bit_for_bit(mla, recorded, episode):
    for index, seed in enumerate((0, 1)):
        states = {name: episode.read(keys.generator(name), index) for name in ("torch", "numpy")}
        torch.manual_seed(77)
        recorders.restore_generators(states)
        assert mla.predict_action_diff(**make_inputs(seed)).tobytes() == recorded[1][index].tobytes()
        computed = episode.read(keys.ACTION_SAMPLES, index)[-1]
        assert np.abs(computed - mla.unclipped.numpy()).max() <= 1e-5 * np.abs(computed).max()


def test_generators_survive_the_way_through_bytes():
    legacy = np.random.mtrand._rand  # the generator behind the module-level functions
    legacy.seed(4)
    legacy.standard_normal()
    torch.manual_seed(4)
    states = recorders.generator_states()
    drawn = [legacy.standard_normal(3).tolist(), torch.randn(3).tolist()]
    recorders.restore_generators(states)
    assert [legacy.standard_normal(3).tolist(), torch.randn(3).tolist()] == drawn
    with pytest.raises(TraceError, match="'cuda63' cannot be restored"):
        recorders.restore_generators({"cuda63": states["torch"]})


def test_trace_replays_through_our_model_of_the_same_weights(policy, recorded, episode):
    controller = Controller(policy, options=StepOptions(encoded="rows"))
    controller.reset(5)
    for index in range(2):
        result = controller.step(recorded_observation(episode, index, {}), recorded_draws(episode, index))
        ours, theirs = result.samples, episode.read(keys.ACTION_SAMPLES, index)
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        for encoded, patch, centres in zip(
            result.encoded,
            episode.read(keys.POINT_PATCH, index),
            episode.read(keys.POINT_CENTRES, index),
            strict=True,
        ):
            assert np.array_equal(encoded.patch, patch)
            assert np.array_equal(encoded.centres, centres)
        rows = episode.read(keys.ROWS, index)[0]
        assert np.abs(result.encoded[0].rows - rows).max() <= 1e-5 * np.abs(rows).max()


@pytest.mark.slow
def test_trace_replays_by_name(policy, recorded):
    register_policy(policy.identity.name, lambda _precision: policy)
    result = Replay(recorded[0]).run(load_config("none"), load_config("default"))
    unpruned = result.summaries[0]
    assert unpruned.deviation["translation_mm"] < 0.1
    assert result.summaries[1].rates.kept_2d < 256


def test_captures_less_where_asked(policy, mla, tmp_path):
    record(mla, policy, tmp_path / "t", seeds=(0,), capture=CaptureSpec.minimal())
    episode = Trace.open(tmp_path / "t").episode("only")
    assert keys.ATTENTION in episode
    assert keys.ATTENTION_ACTION not in episode
    assert keys.ROWS not in episode


def test_own_identity_names_the_weights_without_what_feeds_no_action(policy, mla, tmp_path):
    mla.vlm.generation_manager = nn.Linear(2, 2)
    record(mla, policy, tmp_path / "t", seeds=(0,), name="theirs")
    found = Trace.open(tmp_path / "t").attributes["policy"]
    assert found["name"] == "theirs"
    assert found["weights_digest"] == policy.identity.weights_digest


def test_sites_are_found_wherever_they_lie(mla):
    moved = nn.Module()
    moved.wrapper = nn.ModuleDict({"inner": mla})
    moved.predict_action_diff = lambda: None
    sites = find_sites(moved)
    assert sites.backbone == "wrapper.inner.vlm.llm_backbone.llm.model"
    assert sites.forward == "wrapper.inner.vlm.forward"
    assert len(sites.fps) == 2

    class Plain:
        def __init__(self):
            self.vlm = mla.vlm

        def predict_action_diff(self):
            pass

    assert find_sites(Plain()) == find_sites(mla)


def test_sites_can_be_given(mla, policy, tmp_path):
    two = nn.Module()
    two.one, two.other = mla, double_of(policy, {"close box": IDS})
    with pytest.raises(PolicyError, match="several"):
        find_sites(two)
    record(mla, policy, tmp_path / "t", seeds=(0,), sites={"fps": (), "point": "vlm.projector_3d"})
    assert Trace.open(tmp_path / "t").episode("only").read(keys.FPS_STARTS, 0).shape == (policy.passes, 0)


def test_several_views_and_unknown_rows_are_laid_out():
    random = torch.Generator().manual_seed(0)
    part = {name: torch.randn(size, 8, generator=random) for name, size in (("a", 256), ("b", 256), ("w", 3), ("x", 2))}
    strange = torch.ones(2, 8)
    zero = torch.zeros(1, 8)
    rows = torch.cat([part["w"][:1], part["a"], zero, part["b"], strange, part["w"][1:2], part["x"], part["w"][2:]])
    seen = PassSeen(0, torch.zeros(2, 7), 0, rows=rows)
    seen.blocks = {"image": [part["a"], part["b"]], "text": [part["w"]], "action": [part["x"]]}
    assert [tuple(span) for span in layout_of(seen, ("front", "wrist")).to_json()] == [
        ("bos", 0, 1),
        ("image.front", 1, 257),
        ("tactile", 257, 258),
        ("image.wrist", 258, 514),
        ("other.514", 514, 516),
        ("text", 516, 517),
        ("action", 517, 519),
        ("tail", 519, 520),
    ]
    seen.blocks["proprio"] = [torch.full((1, 8), 5.0)]
    with pytest.raises(PolicyError, match="the 1 rows of 'proprio' are not among the 520"):
        layout_of(seen, ("front", "wrist"))


def test_blocks_are_located_bit_for_bit():
    rows = torch.arange(12.0).view(6, 2)
    assert locate(rows, rows[2:4]) == 2
    assert locate(rows, rows[[2, 4]]) is None
    assert locate(rows, rows[:0]) is None
    twice = torch.cat([rows, rows])
    assert locate(twice, rows, torch.arange(12) < 6) == 6


def test_the_page_runs_word_by_word(mla, policy, tmp_path, monkeypatch):
    """docs/record-the-release.md, with the release's stand-in for the release."""
    monkeypatch.chdir(tmp_path)
    inputs = make_inputs()
    text = (ROOT / "docs" / "record-the-release.md").read_text("utf-8")
    register_policy("runs/close_box", lambda _precision: policy)
    namespace = {
        "mla": mla,
        "image": inputs["image"],
        "cloud": inputs["pointcloud"],
        "state": inputs["cur_robot_state"],
    }
    blocks = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "record-the-release.md", "exec"), namespace)


@pytest.fixture(scope="session")
def golden_run(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "run"
    shutil.copytree(golden / "mla_tiny", folder)
    (folder / "checkpoints").mkdir()
    [packed] = folder.glob("*.pt.xz")
    (folder / "checkpoints" / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


def test_the_stand_in_computes_what_the_release_computed(golden_run, tmp_path, monkeypatch):
    """And its recording holds it: against numbers of the unmodified release."""
    given = np.load(golden_run / "golden.npz")
    policy, _ = load_release(golden_run)
    ids = given["text_ids"].tolist()
    mla = double_of(policy, {"close box": ids})
    starts = iter(given["fps_start_indices"].ravel().tolist())
    monkeypatch.setattr(encoders, "start_index", lambda _count: next(starts))
    monkeypatch.setattr(double_module, "initial_noise", lambda *_: torch.from_numpy(given["noisy_action"][0]))
    inputs = {
        "image": given["image"],
        "pointcloud": given["point_cloud"][0],
        "instruction": "close box",
        "cur_robot_state": given["state"],
    }
    with (
        recorders.attach(mla, tmp_path / "t", action_spec=policy.action_spec) as recorder,
        recorder.episode("close_box", "close box", episode_id="only") as episode,
        episode.step(observation_of(inputs)),
    ):
        action = mla.predict_action_diff(**inputs)
    found = Trace.open(tmp_path / "t").episode("only")

    def error(ours, theirs):
        return np.abs(ours.reshape(theirs.shape) - theirs).max() / np.abs(theirs).max()

    layout = TokenLayout.from_json(found.info.attributes["layout"])
    assert error(action, given["action"]) <= 1e-4
    assert error(found.read(keys.ACTION_SAMPLES, 0)[-1], given["action_unclipped"]) <= 1e-4
    assert error(found.read(keys.ACTION_SAMPLES, 0)[:-1], given["noisy_action"][1:, 0]) <= 1e-4
    assert np.array_equal(found.read(keys.FPS_STARTS, 0), given["fps_start_indices"])
    assert error(found.read(keys.ROWS, 0)[0], given["inputs_embeds"][0, : layout.prefix_length]) <= 1e-5
    assert error(found.read(keys.POINT_CENTRES, 0), given["point_centres"]) <= 1e-5
    cells, valid = given["patch_row_col_step0"], given["patch_valid_step0"]
    assert np.array_equal(found.read(keys.POINT_PATCH, 0)[0], np.where(valid, cells[:, 0] * 16 + cells[:, 1], -1))
    maps, rows = given["attention_rows_step0"], given["attention_row_positions"]
    for index, group in enumerate(("text", "state", "action")):
        wanted = np.isin(rows, layout.group_positions(group))
        expected = maps[:, :, wanted][..., layout.visual_positions].mean(2)
        assert error(found.read(keys.ATTENTION, 0)[0][:, :, index], expected) <= 1e-5
    prenorm = np.abs(given["last_layer_prenorm_step0"]).sum(-1)[layout.visual_positions]
    assert error(found.read(keys.norms("prenorm"), 0)[0], prenorm) <= 1e-5
