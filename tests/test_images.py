"""Value ranges, grids and files."""

import ast
import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from imgsynth import images as images_module
from imgsynth.images import from_uint8, grid, save_gif, save_png, to_uint8

ALL_8 = torch.arange(256).to(torch.uint8)
ALL_16 = torch.arange(65536).to(torch.uint16)


def _ramp(channels, height=5, width=7):
    """A uint8 image whose values all differ, as far as there are enough."""
    count = channels * height * width
    return (torch.arange(count) % 256).to(torch.uint8).reshape(channels, height, width)


def test_whole_numbers_become_the_nearest_floats():
    exact = 2 * np.arange(256, dtype=np.float64) / 255 - 1
    assert np.array_equal(from_uint8(ALL_8).numpy(), exact.astype(np.float32))
    exact = 2 * np.arange(65536, dtype=np.longdouble) / 65535 - 1
    assert np.array_equal(from_uint8(ALL_16).numpy(), exact.astype(np.float32))


def test_the_ends_of_both_ranges_are_minus_one_and_one():
    for values in (ALL_8, ALL_16):
        assert from_uint8(values)[[0, -1]].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_256_values_survive_the_round_trip(dtype):
    assert from_uint8(ALL_8, dtype).dtype == dtype
    assert torch.equal(to_uint8(from_uint8(ALL_8, dtype)), ALL_8)


def test_all_65536_values_survive_the_round_trip():
    back = ((from_uint8(ALL_16) + 1) * 32767.5).round().to(torch.int64)
    assert torch.equal(back, torch.arange(65536))


def test_values_are_rounded_to_the_nearest_and_clamped():
    levels = torch.tensor([-9.0, -0.4, 0.4, 0.6, 127.4, 254.6, 300.0])
    assert to_uint8(levels / 127.5 - 1).tolist() == [0, 0, 0, 1, 127, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_counted(bad):
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, 0, :3] = bad
    with pytest.raises(ValueError, match="3 of 32 values are NaN or infinite"):
        to_uint8(images)


def test_conversion_refuses_what_is_already_converted():
    with pytest.raises(ValueError, match=r"takes floats in .*, got torch\.uint8"):
        to_uint8(ALL_8)
    with pytest.raises(ValueError, match=r"takes uint8 or uint16, got torch\.float32"):
        from_uint8(torch.zeros(3))
    with pytest.raises(ValueError, match=r"makes a float type, got dtype=torch\.int64"):
        from_uint8(ALL_8, torch.int64)


def test_conversion_leaves_its_input_alone():
    images = torch.full((1, 1, 2, 2), 3.0)
    numbers = ALL_8.clone()
    to_uint8(images)
    from_uint8(numbers)
    assert (images == 3).all()
    assert torch.equal(numbers, ALL_8)


def test_a_grid_agrees_with_torchvisions():
    make_grid = pytest.importorskip("torchvision.utils").make_grid
    images = torch.rand(7, 3, 5, 6)
    ours = grid(images, columns=3, padding=2, value=0.25, scale=1)
    assert torch.equal(ours, make_grid(images, nrow=3, padding=2, pad_value=0.25))


def test_a_grid_reads_like_text_and_repeats_pixels():
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 1, 2) / 4
    b = -0.5
    expected = [
        [b, b, b, b, b, b, b, b, b, b, b],
        [b, 0.0, 0.0, 0.0, 0.0, b, 0.25, 0.25, 0.25, 0.25, b],
        [b, 0.0, 0.0, 0.0, 0.0, b, 0.25, 0.25, 0.25, 0.25, b],
        [b, b, b, b, b, b, b, b, b, b, b],
        [b, 0.5, 0.5, 0.5, 0.5, b, b, b, b, b, b],
        [b, 0.5, 0.5, 0.5, 0.5, b, b, b, b, b, b],
        [b, b, b, b, b, b, b, b, b, b, b],
    ]
    assert grid(images, columns=2, padding=1, scale=2)[0].tolist() == expected


@pytest.mark.parametrize(
    ("shape", "columns", "size"),
    [
        ((9, 1, 8, 8), None, (3 * 50 + 2, 3 * 50 + 2)),  # 8 -> 48
        ((10, 1, 28, 28), None, (3 * 58 + 2, 4 * 58 + 2)),  # 28 -> 56
        ((4, 1, 64, 64), 4, (66 + 2, 4 * 66 + 2)),  # large enough
        ((1, 1, 128, 128), None, (132, 132)),
    ],
)
def test_small_images_are_enlarged_until_they_can_be_seen(shape, columns, size):
    assert grid(torch.zeros(shape), columns=columns).shape == (1, *size)


def test_a_grid_keeps_no_graph_and_its_type():
    result = grid(torch.zeros(2, 1, 8, 8, dtype=torch.float64, requires_grad=True))
    assert not result.requires_grad
    assert result.dtype == torch.float64


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (1, 8, 8), (2, 1, 0, 8)])
def test_a_grid_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="at least one image as"):
        grid(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"columns": 0}, {"padding": -1}, {"scale": 0}])
def test_a_grid_of_impossible_measures_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        grid(torch.zeros(2, 1, 8, 8), **options)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_a_png_holds_the_very_pixels(tmp_path, channels, mode):
    image = _ramp(channels)
    for number, version in enumerate((image, from_uint8(image))):
        save_png(tmp_path / f"{number}.png", version)
        with Image.open(tmp_path / f"{number}.png") as read:
            assert (read.mode, read.size, read.format) == (mode, (7, 5), "PNG")
            array = np.asarray(read).reshape(5, 7, channels)
        assert np.array_equal(array, image.permute(1, 2, 0).numpy())


def test_a_png_says_where_it_comes_from(tmp_path):
    text = {"checkpoint": "abc", "seed": "0", "Title": "Ziffern für später, 数字"}
    save_png(tmp_path / "a.png", _ramp(1), text)
    with Image.open(tmp_path / "a.png") as read:
        assert dict(read.text) == text


def test_the_same_image_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, _ramp(3), {"seed": "0"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path):
    save_png(str(tmp_path / "new" / "folder" / "a.png"), _ramp(1))
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["a.png"]


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, _ramp(1))
    before = path.read_bytes()

    def save(self, file, **options):
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        save_png(path, _ramp(3))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("shape", [(5, 8, 8), (0, 8, 8), (8, 8), (2, 1, 8, 8)])
def test_an_image_with_no_colours_to_show_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=r"1 \(gray\).* 3 \(RGB\).*choose the channels"):
        save_png(tmp_path / "a.png", torch.zeros(shape))
    assert not list(tmp_path.iterdir())


def _frames(path):
    with Image.open(path) as read:
        loop = read.info.get("loop")
        frames = [(f.convert("RGB"), f.info["duration"]) for f in ImageSequence.Iterator(read)]
    return [np.asarray(f) for f, _ in frames], [d for _, d in frames], loop


def test_a_gray_gif_shows_every_gray_in_time_and_loops(tmp_path):
    tensors = [_ramp(1, 16, 16), 255 - _ramp(1, 16, 16), _ramp(1, 16, 16)]
    save_png(tmp_path / "1.png", tensors[1])
    save_gif(tmp_path / "a.gif", [tensors[0], tmp_path / "1.png", tensors[2]], 0.1, hold=1.5)
    arrays, durations, loop = _frames(tmp_path / "a.gif")
    assert durations == [100, 100, 1600]
    assert loop == 0
    for array, tensor in zip(arrays, tensors, strict=True):
        assert np.array_equal(array, tensor[0, :, :, None].numpy().repeat(3, 2))


def test_a_coloured_gif_comes_close(tmp_path):
    rows = torch.linspace(-1, 1, 24)
    image = torch.stack([rows.expand(24, 24), rows[:, None].expand(24, 24), torch.zeros(24, 24)])
    frames = [image, -image]
    save_gif(tmp_path / "a.gif", frames)
    arrays, _, _ = _frames(tmp_path / "a.gif")
    for array, frame in zip(arrays, frames, strict=True):
        expected = to_uint8(frame).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(array.astype(int) - expected).mean() < 8


def test_one_frame_is_a_gif_too(tmp_path):
    save_gif(tmp_path / "a.gif", [_ramp(3)])
    with Image.open(tmp_path / "a.gif") as read:
        assert read.n_frames == 1
        assert read.size == (7, 5)


def test_frames_of_two_sizes_are_named(tmp_path):
    with pytest.raises(ValueError, match="frame 2 has 7x6 pixels, the first 7x5"):
        save_gif(tmp_path / "a.gif", [_ramp(1, 5, 7), _ramp(1, 6, 7)])
    assert not list(tmp_path.iterdir())


def test_no_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        save_gif(tmp_path / "a.gif", [])


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.1, -1.0), (float("nan"), 0.0)])
def test_impossible_times_are_refused(tmp_path, times):
    with pytest.raises(ValueError, match="seconds_per_frame must be"):
        save_gif(tmp_path / "a.gif", [_ramp(1)], *times)


def test_images_need_no_more_than_torch_and_pillow():
    tree = ast.parse(Path(images_module.__file__).read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    ours = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert ours == {"torch", "PIL"}
