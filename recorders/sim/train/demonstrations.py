"""Demonstrations: the expert's answer at every frame of episodes that were pushed off course now and then.

The expert keeps no memory, so its answer is the right label in any state. Executing it with noise visits states from
which a policy has to find back, and the label there says how.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import mujoco
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

from recorders.sim.cloud import POINTS
from recorders.sim.environment import SCENE_VERSION, VIEW, Environment, episode_uid
from recorders.sim.expert import Expert
from recorders.sim.palette import PALETTE
from recorders.sim.processes import carried_out
from recorders.sim.sensor import FRONT, SegmentationClass
from recorders.sim.world import World
from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.errors import ConfigError, TraceError
from tracekit.layout import GRID, PATCHES_PER_VIEW
from tracekit.observation import Observation

__all__ = ["LANDMARKS", "Demonstration", "demonstration_path", "demonstrations_digest", "record_demonstrations"]

FORMAT = 1
LANDMARKS = ("goal", "target", "item")
"""Places that the auxiliary losses ask for: the expert's next pose, the named object, and what has to be moved."""

_LONGEST = 20
"""Key poses after which an episode is given up; more than a policy gets, because noise costs some."""

_NOISY_EPISODES, _NOISY_STEPS = 0.75, 0.4
_NOISE_METRES, _NOISE_ROTATION = 0.025, 0.12
_ITEM_RADIUS = 0.085
"""Pixels nearer to the item's origin than this, in metres, show the item and not the named object."""

_CODEC = Blosc("zstd", clevel=5, shuffle=Blosc.NOSHUFFLE)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode of T labelled frames; observation T + 1 is what the last action led to.

    `images`: T + 1 compressed frames, see `image`. `points`: (T + 1, 1024, 3) float32 m. `state`: (T, A) float64.
    `action`: (T, A) float64, the expert's clean answer. `landmarks`: (T, 3, 3) float32 m of `LANDMARKS`, NaN where the
    task has none. `patch_xyz`: (T, 256, 3) float32 m, mean place of what a patch shows, NaN where nothing was hit.
    `patch_pixels`: (T, 256, 2) uint8, pixels of the named object, and of other objects (stored, read by no loss).
    """

    task: str
    seed: int
    instruction: str
    success: bool
    images: tuple[bytes, ...]
    points: npt.NDArray[np.float32]
    state: npt.NDArray[np.float64]
    action: npt.NDArray[np.float64]
    landmarks: npt.NDArray[np.float32]
    patch_xyz: npt.NDArray[np.float32]
    patch_pixels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.action)

    def image(self, frame: int) -> npt.NDArray[np.uint8]:
        """(224, 224, 3) uint8 picture of observation `frame`, 0 ... T."""
        try:
            pixels = np.frombuffer(_CODEC.decode(self.images[frame]), np.uint8)
            return pixels.reshape(FRONT.height, FRONT.width, 3)
        except (RuntimeError, ValueError) as error:
            raise TraceError(
                f"{self.task}/{self.seed}.npz: picture {frame} is damaged ({error}); remove the file and run again"
            ) from error

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        lengths = [len(image) for image in self.images]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(
                    file,
                    version=np.array([FORMAT, SCENE_VERSION]),
                    success=np.array(self.success),
                    instruction=np.frombuffer(self.instruction.encode(), np.uint8),
                    images=np.frombuffer(b"".join(self.images), np.uint8),
                    image_ends=np.cumsum(lengths),
                    points=self.points,
                    state=self.state,
                    action=self.action,
                    landmarks=self.landmarks,
                    patch_xyz=self.patch_xyz,
                    patch_pixels=self.patch_pixels,
                )
            partial.rename(path)
        except OSError as error:
            raise TraceError(f"{path}: cannot be written ({error}); give --data a place with room") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Demonstration:
        """The episode in `path` (`<task>/<seed>.npz`); raises TraceError if it is damaged or of other scenes."""
        try:
            with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
                data = {key: file[key] for key in file.files}
            if data["version"].tolist() != [FORMAT, SCENE_VERSION]:
                raise TraceError(f"{path}: recorded by another version of the simulator; give --data another folder")
            ends = [0, *data["image_ends"].tolist()]
            stream = data["images"].tobytes()
            found = cls(
                task=path.parent.name,
                seed=int(path.stem),
                instruction=data["instruction"].tobytes().decode(),
                success=bool(data["success"]),
                images=tuple(stream[a:b] for a, b in pairwise(ends)),
                points=data["points"],
                state=data["state"],
                action=data["action"],
                landmarks=data["landmarks"],
                patch_xyz=data["patch_xyz"],
                patch_pixels=data["patch_pixels"],
            )
            found._refuse_damaged(ends[-1] == len(stream))
        except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, BadZipFile) as error:
            raise TraceError(f"{path}: not a demonstration ({error}); remove it and run the command again") from error
        return found

    def _refuse_damaged(self, whole: bool) -> None:
        steps, size = len(self), ActionSpec().size
        if not (whole and len(self.images) == len(self.points) == steps + 1 > 1):
            raise ValueError("pictures or clouds are missing")
        shapes = (
            (self.points, (steps + 1, POINTS, 3)),
            (self.state, (steps, size)),
            (self.action, (steps, size)),
            (self.landmarks, (steps, len(LANDMARKS), 3)),
            (self.patch_xyz, (steps, PATCHES_PER_VIEW, 3)),
            (self.patch_pixels, (steps, PATCHES_PER_VIEW, 2)),
        )
        if any(values.shape != shape for values, shape in shapes):
            raise ValueError("labels, clouds or states of other shapes")
        if not all(np.isfinite(values).all() for values in (self.points, self.state, self.action)):
            raise ValueError("holds values that are not finite")
        if not set(self.instruction.split()) & set(PALETTE):
            raise ValueError(f"instruction {self.instruction!r} names no colour")


def demonstration_path(folder: Path, task: str, seed: int) -> Path:
    """Where the demonstration of `seed` is kept."""
    return folder / task / f"{seed}.npz"


def record_demonstrations(
    folder: Path,
    plan: Sequence[tuple[str, int]],
    processes: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Record what of `plan`, pairs of task and seed, is not in `folder` yet; returns the number of new episodes.

    Each episode is a file of its own, so a stopped run loses the episode it was in and is taken up by the next.
    Raises ConfigError for an unusable number of processes and TraceError where a file cannot be written or a process
    was killed.
    """
    missing = [(task, seed) for task, seed in plan if not demonstration_path(folder, task, seed).exists()]
    again = "the same command goes on where it stopped, give it fewer --threads"
    for done, _ in enumerate(carried_out(partial(_Recording, folder), missing, processes, again)):
        if progress is not None:
            progress("recording demonstrations", done + 1, len(missing))
    return len(missing)


def demonstrations_digest(folder: Path, plan: Sequence[tuple[str, int]]) -> str:
    """SHA-256 (hex) over task, seed and content of the demonstrations of `plan`, in its order."""
    digest = hashlib.sha256()
    for task, seed in plan:
        digest.update(f"{task}:{seed}:".encode())
        digest.update(hashlib.sha256(demonstration_path(folder, task, seed).read_bytes()).digest())
    return digest.hexdigest()


class _Recording:
    """One process's part: an environment of every task that it has met."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environments: dict[str, Environment] = {}

    def __call__(self, job: tuple[str, int]) -> None:
        task, seed = job
        if task not in self._environments:
            self._environments[task] = Environment(task)
            self._environments[task].max_steps = _LONGEST
        _demonstrate(self._environments[task], seed).save(demonstration_path(self._folder, task, seed))


def _demonstrate(environment: Environment, seed: int) -> Demonstration:
    """The episode of `seed`, executed with noise that the seed determines."""
    observation = environment.reset(seed)
    expert = Expert(environment)
    rng = np.random.Generator(np.random.PCG64([seed, episode_uid(environment.task, seed)]))
    noisy = rng.random() < _NOISY_EPISODES
    frames: list[dict[str, npt.NDArray[Any]]] = []
    images, points = [_compressed(observation)], [_cloud(observation)]
    done = success = False
    while not done:
        action = expert.act()
        frames.append(_labels(environment, observation) | {"state": observation.state, "action": action})
        if noisy and rng.random() < _NOISY_STEPS:
            action = action.copy()
            action[:3] += rng.normal(0.0, _NOISE_METRES, 3)
            action[3:-1] += rng.normal(0.0, _NOISE_ROTATION, len(action) - 4)
        outcome = environment.step(action)
        observation, done, success = outcome.observation, outcome.done, outcome.success
        images.append(_compressed(observation))
        points.append(_cloud(observation))
    return Demonstration(
        task=environment.task,
        seed=seed,
        instruction=environment.instruction,
        success=success,
        images=tuple(images),
        points=np.stack(points),
        **{key: np.stack([frame[key] for frame in frames]) for key in frames[0]},
    )


def _labels(environment: Environment, observation: Observation) -> dict[str, npt.NDArray[Any]]:
    """What the auxiliary losses are told about one frame; see `Demonstration`."""
    world = environment.world
    item = _item(world)
    goal = environment.scenario.next_pose(world).point - world.base
    places = np.stack([goal, world.position("target") - world.base, item]).astype(np.float32)
    depth, classes = observation.depth[VIEW], observation.segmentation[VIEW]
    xyz = _unprojected(depth, environment.camera)
    moved = np.less(np.linalg.norm(xyz - item, axis=-1), _ITEM_RADIUS)  # nowhere without an item: its place is NaN
    named = np.equal(classes, SegmentationClass.TARGET) & ~moved
    others = np.equal(classes, SegmentationClass.OTHER)
    counts = np.stack([_cells(named).sum(1), _cells(others).sum(1)], axis=-1)
    hit: npt.NDArray[np.bool_] = _cells(np.greater(depth, 0))
    seen = hit.sum(1, keepdims=True)
    total = np.stack([np.where(hit, _cells(xyz[..., axis]), 0.0).sum(1) for axis in range(3)], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(seen > 0, total / seen, np.nan)
    return {"landmarks": places, "patch_xyz": mean.astype(np.float32), "patch_pixels": counts.astype(np.uint8)}


def _item(world: World) -> npt.NDArray[np.float64]:
    """(3,) place in the base frame of the loose thing that the task moves, NaN in tasks without one."""
    if mujoco.mj_name2id(world.model, mujoco.mjtObj.mjOBJ_BODY, "target_item") < 0:
        return np.full(3, np.nan)
    return world.position("target_item") - world.base


def _unprojected(depth: npt.NDArray[np.float32], camera: Camera) -> npt.NDArray[np.float64]:
    """(H, W, 3) metres in the base frame of every pixel centre at `depth` (H, W)."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(rows)], axis=-1)
    place: npt.NDArray[np.float64] = (rays * depth[..., None]) @ np.array(camera.rotation).T + camera.translation
    return place


def _cells(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(256, pixels per patch) of an (H, W) array, patches row-major."""
    height, width = pixels.shape
    cells = pixels.reshape(GRID, height // GRID, GRID, width // GRID).swapaxes(1, 2)
    return cells.reshape(PATCHES_PER_VIEW, -1)


def _compressed(observation: Observation) -> bytes:
    return bytes(_CODEC.encode(np.ascontiguousarray(observation.images[VIEW])))


def _cloud(observation: Observation) -> npt.NDArray[np.float32]:
    if observation.points is None:
        raise ConfigError("demonstrations need the sensor; make the environment with sensor=True")
    return observation.points
