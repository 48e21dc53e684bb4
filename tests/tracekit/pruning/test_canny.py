import hashlib

import numpy as np
import pytest

from tracekit.pruning.canny import edge_patches, edges, grey


def painting():
    """An image with curves, a disc and a chessboard, from integers alone."""
    y, x = np.mgrid[0:48, 0:64]
    disc = (x - 31) ** 2 + (y - 20) ** 2 < 200
    return np.stack([(x * y) % 251, disc * 180, (x // 8 + y // 8) % 2 * 90], -1).astype(np.uint8)


def test_equals_opencv_pixel_for_pixel():
    # Counted and hashed once from cv2.Canny(cv2.cvtColor(painting(), cv2.COLOR_RGB2GRAY), 100, 200) of OpenCV 5.0.0.
    found = edges(grey(painting()))
    assert found.sum() == 647
    assert hashlib.sha256(np.packbits(found).tobytes()).hexdigest() == (
        "d1277e42afe7d5cce0faa6b63d6e0b23e013c28bd2aedee5a916f181cd088465"
    )


def test_a_step_of_brightness_is_one_line_of_pixels():
    luma = np.zeros((32, 32), np.uint8)
    luma[:, 16:] = 100
    found = edges(luma)
    assert found.sum(1).tolist() == [1] * 32
    assert not edges(luma // 10).any()


def test_weak_pixels_count_only_beside_strong_ones():
    luma = np.zeros((40, 40), np.uint8)
    luma[:, 20:] = 30  # |gx| = 120: weak
    assert not edges(luma).any()
    luma[:5, 20:] = 80  # a strong stretch at the top pulls the whole line in
    assert edges(luma)[:, 18:22].any(1).sum() > 30


@pytest.mark.parametrize("size", [16, 224, 100])
def test_patches_tile_the_image(size):
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 2 :, size // 2 :] = 255
    patches = edge_patches(image).reshape(16, 16)
    assert patches[8:, 7:9].any(1).all()
    assert not patches[:6].any()
    assert not edge_patches(np.full((size, size, 3), 7, np.uint8)).any()
