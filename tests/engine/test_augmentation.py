"Crops, mirrors and the order of an epoch."
import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_teach.engine.augmentation import crop_and_flip, draw_specs, random_crops
from finetune_teach.engine.loaders import ImageLoader
from finetune_teach.engine.random_state import seeded


def test_flips_are_exact_and_half():
    x = torch.randint(0, 256, (400, 3, 5, 5), dtype=torch.uint8)
    y = torch.zeros(400, dtype=torch.long)
    loader = ImageLoader(x, y, 400, flip=True, mean=(0, 0, 0), std=(1 / 255,) * 3)
    kept = x.clone()
    torch.manual_seed(0)
    spec = next(loader.specs())
    out = loader.load(spec).round()
    wanted = torch.where(spec.flip[:, None, None, None], x.flip(-1), x).float()
    assert (out == wanted).all()
    assert (x == kept).all()  # the set itself is not mirrored
    flips = torch.cat([spec.flip for _ in range(50) for spec in loader.specs()])
    assert .48 < flips.float().mean() < .52


def test_crop_is_the_part_it_says():
    ramp = torch.linspace(0, 1, 64).expand(2, 3, 64, 64).clone()  # brighter to the right
    crop = torch.tensor([[.25, 0, .5, .5]] * 2)
    x = crop_and_flip(ramp, crop, torch.tensor([False, True]))
    assert abs(x[0, 0, 0, 0] - .25) < .02 and abs(x[0, 0, 0, -1] - .75) < .02
    assert torch.allclose(x[1], x[0].flip(-1), atol=1e-5)
    lower = torch.tensor([[0, .5, .5, .5]] * 2)
    down = crop_and_flip(ramp.transpose(2, 3), lower, torch.tensor([False] * 2))
    assert abs(down[0, 0, 0, 0] - .5) < .02 and abs(down[0, 0, -1, 0] - 1) < .02


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.booleans(), st.floats(0.01, 1), st.integers(0, 99))
def test_an_epoch_has_each_picture_once(n, batch_size, shuffle, flip, min_scale, seed):
    with seeded(seed):
        specs = list(draw_specs(n, math.ceil(n / batch_size), shuffle, flip, min_scale))
    index = torch.cat([spec.index for spec in specs]).tolist()
    assert sorted(index) == list(range(n)) and (shuffle or index == list(range(n)))
    sizes = [len(spec.index) for spec in specs]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    for spec in specs:
        assert len(spec.flip) == len(spec.index) and (flip or not spec.flip.any())
        assert (spec.crop is None) == (min_scale == 1)
        assert spec.crop is None or spec.crop.shape == (len(spec.index), 4)


@given(st.integers(1, 200), st.floats(1e-12, 1, exclude_max=True), st.integers(0, 10**6))
@example(100, 1e-45, 0)
def test_random_crops_lie_inside_and_keep_what_they_promise(n, min_scale, seed):
    with seeded(seed):
        left, top, width, height = random_crops(n, min_scale).unbind(1)
    for at, side in (left, width), (top, height):
        assert (at >= 0).all() and (side > 0).all() and (at + side <= 1 + 1e-6).all()
    assert (width * height >= min_scale * (1 - 1e-5)).all() and (width * height <= 1).all()
    ratio = width / height
    assert (ratio >= 3 / 4 - 1e-4).all() and (ratio <= 4 / 3 + 1e-4).all()
