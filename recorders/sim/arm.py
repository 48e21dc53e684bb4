"""The PiPER arm: kinematics of its published Denavit-Hartenberg table, simple shapes, position servos, two jaws."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from recorders.sim.geometry import Vector

__all__ = ["ACTUATORS", "ARM_JOINTS", "HAND", "HOME", "JAW_JOINTS", "JAW_TRAVEL", "JOINT_RANGES", "TCP", "add_arm"]

ARM_JOINTS = tuple(f"joint{index}" for index in range(1, 7))
JAW_JOINTS = ("joint7", "joint8")
ACTUATORS = ARM_JOINTS + JAW_JOINTS
HAND = "link6"
"""Name of the body that carries the jaws."""

TCP = "tcp"
"""Name of the site at the tool centre point, between the finger pads."""

HOME: Vector = np.array([0.0, 1.1, -1.1, 0.0, 0.9, 0.0])
"""Joint angles at rest, radians: folded above the table, tool half forward and half down."""

JAW_TRAVEL = 0.035
"""Travel of one jaw in metres; both move, so the opening is twice as much."""

JOINT_RANGES: Vector = np.array(
    [(-2.618, 2.618), (0.0, 3.14), (-2.967, 0.0), (-1.745, 1.745), (-1.22, 1.22), (-2.0944, 2.0944)]
)
"""(6, 2) joint limits in radians, from the arm's data sheet."""

# alpha, a, theta offset, d of the modified convention (metres, radians): the maker's table, its 2 degree offset applied
_DENAVIT_HARTENBERG = (
    (0.0, 0.0, 0.0, 0.123),
    (-math.pi / 2, 0.0, math.radians(-172.22), 0.0),
    (0.0, 0.28503, math.radians(-102.78), 0.0),
    (math.pi / 2, -0.02198, 0.0, 0.25075),
    (-math.pi / 2, 0.0, 0.0, 0.0),
    (math.pi / 2, 0.0, 0.0, 0.091),
)
_MASSES = (0.71, 1.17, 0.5, 0.38, 0.383, 0.1)
# position gain, velocity gain, largest torque: a stiff, well damped industrial servo
_SERVOS = ((1500, 90, 60), (1500, 90, 60), (1200, 70, 60), (300, 12, 20), (300, 12, 20), (150, 6, 12))
_JAW_SERVO = (600, 25, 30)

_WHITE, _GREY, _BLACK = (0.86, 0.87, 0.90, 1.0), (0.33, 0.34, 0.38, 1.0), (0.11, 0.11, 0.12, 1.0)
_BOX, _CYLINDER, _CAPSULE = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE
_FLANGE_TO_PADS = 0.065
_TCP_OFFSET = 0.130

# neighbours (and next neighbours) in the chain whose simple shapes overlap by design
_NO_CONTACT = (
    ("robot", "link1"),
    ("robot", "link2"),
    ("link1", "link2"),
    ("link1", "link3"),
    ("link2", "link4"),
    ("link3", "link5"),
    ("link4", "link6"),
    ("link5", "jaw_left"),
    ("link5", "jaw_right"),
    ("jaw_left", "jaw_right"),
)


def add_arm(spec: mujoco.MjSpec, height: float = 0.0) -> None:
    """Adds the arm, its base `height` metres above the origin of `spec`.

    Its root body is `robot`, whose frame is the base frame; there is one position servo per joint, and the site `tcp`.

    Servo order is `ACTUATORS`. The links are compensated for gravity, as the real controller does.
    """
    base = spec.worldbody.add_body(name="robot", pos=[0, 0, height])
    base.add_geom(type=_CYLINDER, size=[0.055, 0.04, 0], pos=[0, 0, 0.04], rgba=_GREY)
    parent = base
    for index, (alpha, length, offset, distance) in enumerate(_DENAVIT_HARTENBERG):
        turn = np.empty(4)
        mujoco.mju_mulQuat(
            turn,
            np.array([math.cos(alpha / 2), math.sin(alpha / 2), 0.0, 0.0]),
            np.array([math.cos(offset / 2), 0.0, 0.0, math.sin(offset / 2)]),
        )
        body = parent.add_body(
            name=f"link{index + 1}",
            pos=[length, -math.sin(alpha) * distance, math.cos(alpha) * distance],
            quat=turn,
            gravcomp=1.0,
            explicitinertial=True,
            ipos=[0, 0, 0],
            iquat=[1, 0, 0, 0],
            mass=_MASSES[index],
            inertia=[0.002, 0.002, 0.002],
        )
        low, high = JOINT_RANGES[index]
        body.add_joint(name=ARM_JOINTS[index], axis=[0, 0, 1], range=[low, high], armature=0.05, damping=0.5)
        _add_link_shape(body, index)
        parent = body
    _add_gripper(parent)
    for name, (stiffness, damping, force) in zip(ACTUATORS, (*_SERVOS, _JAW_SERVO, _JAW_SERVO), strict=True):
        actuator = spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcerange=[-force, force]
        )
        actuator.set_to_position(kp=stiffness, kv=damping)
    # one gear train moves both jaws: neither can be pushed aside while the other stays
    gears = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=JAW_JOINTS[0],
        name2=JAW_JOINTS[1],
        solref=[0.004, 1.0],
        solimp=[0.99, 0.999, 0.001, 0.5, 2],
    )
    gears.data[:5] = [0.0, 1.0, 0.0, 0.0, 0.0]  # polynomial: joint8 goes as joint7
    for first, second in _NO_CONTACT:
        spec.add_exclude(bodyname1=first, bodyname2=second)


def _add_link_shape(body: mujoco.MjsBody, index: int) -> None:
    match index:
        case 0:
            body.add_geom(type=_CYLINDER, size=[0.045, 0.045, 0], pos=[0, 0, -0.03], rgba=_WHITE)
        case 1:
            body.add_geom(type=_CAPSULE, size=[0.034, 0, 0], fromto=[0, 0, 0, 0.285, 0, 0], rgba=_WHITE)
            body.add_geom(type=_CYLINDER, size=[0.042, 0.05, 0], rgba=_GREY)
        case 2:
            body.add_geom(type=_CYLINDER, size=[0.036, 0.045, 0], rgba=_GREY)
            body.add_geom(type=_CAPSULE, size=[0.030, 0, 0], fromto=[-0.022, 0, 0, -0.022, -0.19, 0], rgba=_WHITE)
        case 3:
            body.add_geom(type=_CYLINDER, size=[0.030, 0.030, 0], pos=[0, 0, -0.02], rgba=_WHITE)
        case 4:
            body.add_geom(type=_CYLINDER, size=[0.028, 0.028, 0], rgba=_GREY)
        case _:
            body.add_geom(type=_CYLINDER, size=[0.027, 0.022, 0], pos=[0, 0, -0.02], rgba=_WHITE)


def _add_gripper(flange: mujoco.MjsBody) -> None:
    flange.add_geom(type=_BOX, size=[0.026, 0.042, 0.028], pos=[0, 0, 0.033], rgba=_WHITE)
    flange.add_site(name=TCP, pos=[0, 0, _TCP_OFFSET], size=[0.004, 0.004, 0.004], group=5)
    for name, joint, side in (("jaw_left", JAW_JOINTS[0], 1.0), ("jaw_right", JAW_JOINTS[1], -1.0)):
        jaw = flange.add_body(name=name, pos=[0, 0.001 * side, _FLANGE_TO_PADS], gravcomp=1.0)
        jaw.add_joint(
            name=joint,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, side, 0],
            range=[0, JAW_TRAVEL],
            armature=0.02,
            damping=5.0,
            solref_limit=[0.004, 1.0],
            solimp_limit=[0.99, 0.999, 0.001, 0.5, 2],
        )
        # a flat pad that ends in a rounded tip: flat to hold things, round to push a lid without digging in
        jaw.add_geom(
            type=_BOX,
            size=[0.012, 0.006, 0.034],
            pos=[0, 0.006 * side, 0.034],
            mass=0.025,
            rgba=_BLACK,
            condim=4,
            friction=[1.5, 0.02, 0.001],
        )
        jaw.add_geom(
            type=_CAPSULE,
            size=[0.006, 0, 0],
            fromto=[-0.006, 0.006 * side, 0.068, 0.006, 0.006 * side, 0.068],
            mass=0.005,
            rgba=_BLACK,
            condim=4,
            friction=[1.5, 0.02, 0.001],
        )
