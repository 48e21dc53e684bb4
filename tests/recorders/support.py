"""Recording a few steps, and looking at what became of them."""

from recorders import Recorder
from recorders.sim import episode_uid
from tests.small import make_config
from tracekit.engine import Controller
from tracekit.store import Trace

EPISODE = "close_box-7"
UID = episode_uid("close_box", 7)


def act(policy, config, observations, uid=UID):
    controller = Controller(policy, config)
    controller.reset(uid)
    return [controller.step(observation) for observation in observations]


def record(path, policy, observations, name=EPISODE, capture=None, **recorder):
    """The results of the recorded steps, and what the controller gave back for execution."""
    controller = Controller(policy, recorder.pop("config", make_config()))
    results, actions = [], []
    with (
        Recorder(path, controller, capture, **recorder) as recording,
        recording.episode(
            "close_box", observations[0].instruction, seed=7, uid=UID, episode_id=name, cameras=observations[0].cameras
        ) as episode,
    ):
        for observation in observations:
            with episode.step(observation, "reach") as step:
                step.action = controller.act(observation)
            results.append(controller.last)
            actions.append(step.action)
    return results, actions


def ids(path):
    return [info.id for info in Trace.open(path).episodes]


def one_episode(recording, controller, observations, name, **episode):
    """Record the observations as one episode."""
    with recording.episode("close_box", observations[0].instruction, episode_id=name, **episode) as running:
        for observation in observations:
            with running.step(observation):
                controller.act(observation)
