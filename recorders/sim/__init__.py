"""A tabletop simulator that needs no graphics stack: PiPER arm, ray-cast RGB-D sensor, language-told tasks, experts.

Physics is MuJoCo's; pictures come from its ray caster, so that no OpenGL library is ever loaded.
"""

from recorders.sim import _headless  # noqa: F401  (must come before the first import of mujoco)
from recorders.sim.environment import Environment, StepOutcome, episode_uid
from recorders.sim.expert import Expert, expert_success
from recorders.sim.tasks import TASKS

__all__ = ["TASKS", "Environment", "Expert", "StepOutcome", "episode_uid", "expert_success"]
