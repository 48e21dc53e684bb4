"""Cameras that the public MLA release carries in its code, for observations that bring none of their own."""

from __future__ import annotations

from tracekit.camera import Camera

__all__ = ["CAMERAS"]

CAMERAS: dict[str, Camera] = {
    "rlbench_front": Camera(
        width=224,
        height=224,
        fx=-307.7174807,
        fy=-307.7174807,
        cx=112.0,
        cy=112.0,
        rotation=((0.0, -0.42261794, -0.90630794), (-1.0, 0.0, 0.0), (0.0, 0.90630794, -0.42261791)),
        translation=(1.35, 0.0, 1.58),
        epsilon=1e-6,
    ),
    # The intrinsics look like those of a 640 x 480 picture; the release scales them as 1280 x 720, which is kept.
    "franka_front": Camera(
        width=1280,
        height=720,
        fx=388.2638244628906,
        fy=387.84130859375,
        cx=328.3757019042969,
        cy=240.24295043945312,
        rotation=(
            (-0.01750229, 0.95018522, -0.31119403),
            (0.99984609, 0.01625676, -0.00659609),
            (-0.0012085, -0.31126158, -0.95032351),
        ),
        translation=(0.8545415959817313, 0.5748472977587156, 1.0411478820663598),
        epsilon=1e-6,
    ),
    "franka_right": Camera(
        width=640,
        height=480,
        fx=387.414794921875,
        fy=386.8714904785156,
        cx=319.47052001953125,
        cy=241.13287353515625,
        rotation=(
            (0.91300858, 0.26157042, -0.31304353),
            (0.39730357, -0.7442472, 0.53688545),
            (-0.09254842, -0.61455433, -0.78342694),
        ),
        translation=(0.8591219242556176, -0.5851783639922448, 0.7535876808722389),
        epsilon=1e-6,
    ),
}
"""Built-in cameras by name: `rlbench_front`, `franka_front`, `franka_right` (world frame of the release's data)."""
