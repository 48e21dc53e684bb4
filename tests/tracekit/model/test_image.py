import numpy as np
import torch

from tracekit.model.image import MEAN, STD, ImagePosition, ImageTower, LocalAttention, pixels_of


def test_pixels_are_normalised_per_channel():
    image = np.zeros((224, 224, 3), np.uint8)
    image[..., 0] = 255
    pixels = pixels_of(image)
    assert pixels.shape == (3, 672, 672)
    assert pixels.dtype == torch.float32
    expected = [(1 - MEAN[0]) / STD[0], -MEAN[1] / STD[1], -MEAN[2] / STD[2]]
    for channel, value in zip(pixels, expected, strict=True):
        torch.testing.assert_close(channel, torch.full((672, 672), value))


def test_pixels_of_a_wide_image_are_stretched():
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, 48:] = 255
    red = pixels_of(image)[0]
    assert red[:, :300].max() < red[:, 372:].min()


def test_local_attention_is_the_cell_by_cell_equation():
    generator = torch.Generator().manual_seed(0)
    attention = LocalAttention(16, 8)
    for parameter in attention.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    cells = torch.randn(5, 9, 16, generator=generator)
    with torch.no_grad():
        found = attention(cells)
        for cell, token in zip(cells, found, strict=True):
            average = cell.mean(0)
            query, both = attention.q(average), attention.kv(cell)
            keys, values = both[:, :16], both[:, 16:]
            mixed = []
            for head in range(8):
                part = slice(2 * head, 2 * head + 2)
                weights = torch.softmax(torch.stack([query[part] @ key[part] * 16**-0.5 for key in keys]), 0)
                mixed.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
            torch.testing.assert_close(token, average + attention.proj(torch.cat(mixed)), rtol=1e-4, atol=1e-5)


def test_a_token_sees_its_own_patch_only():
    torch.manual_seed(0)
    tower = ImageTower(16, 8)
    pixels = torch.randn(1, 3, 672, 672)
    changed = pixels.clone()
    changed[0, :, 42 * 3 + 5, 42 * 7 + 40] += 1
    with torch.no_grad():
        differs = (tower(pixels) != tower(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [16 * 3 + 7]


def test_position_code_tells_rows_from_columns():
    code = ImagePosition(8).code
    assert code.shape == (256, 32)
    assert len({tuple(row) for row in code.tolist()}) == 256
    half = code.shape[1] // 2
    assert torch.equal(code[16 * 2 + 5, :half], code[16 * 2 + 9, :half])
    assert torch.equal(code[16 * 2 + 5, half:], code[16 * 8 + 5, half:])
    assert torch.equal(code[16 * 2 + 5, :half], code[16 * 5 + 2, half:])
