"""Tells MuJoCo, before it is first imported, that no OpenGL is wanted; a value set by the user is honoured."""

import os

__all__ = ["MUJOCO_GL"]

MUJOCO_GL: str = os.environ.setdefault("MUJOCO_GL", "disable")
"""The graphics backend MuJoCo is told to use. The sensor never needs one."""
