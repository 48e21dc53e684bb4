import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracekit.camera import Camera

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
CAMERA = Camera(
    width=224, height=224, fx=200.0, fy=210.0, cx=112.0, cy=112.0, rotation=IDENTITY, translation=(0.1, -0.2, 0.3)
)


def literal_patch(camera, point):
    cam = [sum((point[i] - camera.translation[i]) * camera.rotation[i][axis] for i in range(3)) for axis in range(3)]
    if cam[2] <= 0:
        return -1
    u = 672 / camera.width * (camera.fx * cam[0] / cam[2] + camera.cx)
    v = 672 / camera.height * (camera.fy * cam[1] / cam[2] + camera.cy)
    if not (0 <= u < 672 and 0 <= v < 672):
        return -1
    return int(v // 42) * 16 + int(u // 42)


coordinate = st.integers(-40, 40).map(lambda n: n / 16 + 1 / 97)  # off the borders between patches


@given(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=50))
def test_projection_agrees_with_the_formula_point_by_point(points):
    found = CAMERA.patches(np.array(points))
    for point, patch in zip(points, found, strict=True):
        expected = literal_patch(CAMERA, point)
        if patch != expected:  # float32 rounding may move a point that lies on a border, and only such a point
            cam = np.array(point) - CAMERA.translation
            edge = 3 * np.array([CAMERA.fx * cam[0] / cam[2] + CAMERA.cx, CAMERA.fy * cam[1] / cam[2] + CAMERA.cy]) / 42
            assert np.abs(edge - np.round(edge)).min() < 1e-4


def test_a_point_behind_the_camera_or_beside_the_image_has_no_patch():
    behind, beside, centre = [0.1, -0.2, 0.0], [5.0, -0.2, 1.0], [0.1, -0.2, 1.3]
    assert CAMERA.patches(np.array([behind, beside, centre])).tolist() == [-1, -1, 8 * 16 + 8]


def test_a_wide_image_is_stretched_to_the_square():
    wide = Camera(1280, 720, 600.0, 600.0, 640.0, 360.0, IDENTITY, (0.0, 0.0, 0.0))
    quarter = math.nextafter(-640 / 2 / 600, 0)  # u = 320 of 1280, a quarter of the width
    assert wide.patches(np.array([[quarter + 1e-6, 0.0, 1.0]])).tolist() == [8 * 16 + 4]


def test_json_round_trip():
    assert Camera.from_json(CAMERA.to_json()) == CAMERA
