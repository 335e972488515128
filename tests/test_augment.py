"""Batched augmentation does what torchvision does one image at a time, and draws fairly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tuner.augment import (
    augment_batch,
    blend,
    cutmix_share,
    cutout,
    mixup_share,
    normalize,
    random_crop,
    random_flip,
)
from tuner.config import Augment

EVERYTHING = Augment(crop=2, flip=True, cutout=3, mixup=0.4, cutmix=1.0)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def some_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=seeded())


def augmented(
    images: Tensor, augment: Augment = EVERYTHING, num_classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    channels = images.shape[1]
    return augment_batch(
        images,
        torch.arange(len(images)) % num_classes,
        settings=augment,
        num_classes=num_classes,
        mean=torch.linspace(0.4, 0.6, channels).view(1, -1, 1, 1),
        std=torch.linspace(0.2, 0.3, channels).view(1, -1, 1, 1),
        generator=seeded(seed),
    )


@pytest.mark.parametrize(("shape", "padding"), [((3, 9, 9), 4), ((3, 9, 6), 2), ((1, 5, 8), 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_are_torchvisions_and_every_offset_is_equally_likely(
    shape: tuple[int, ...], padding: int, dtype: torch.dtype
) -> None:
    image = some_images(*shape).to(dtype)
    padded = tv.pad(image, [padding] * 4, padding_mode="reflect")
    offsets = range(2 * padding + 1)
    expected = torch.stack([tv.crop(padded, y, x, *shape[1:]) for y in offsets for x in offsets])

    crops = random_crop(image.expand(4000, *shape), padding, seeded())

    matches = (crops.flatten(1)[:, None] == expected.flatten(1)).all(dim=2)
    assert matches.sum(dim=1).eq(1).all()
    assert stats.chisquare(matches.sum(dim=0)).pvalue > 0.001
    assert crops.dtype == dtype


def test_each_image_of_a_batch_is_cropped_from_itself() -> None:
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 3, 6, 6)
    assert torch.equal(random_crop(images, 4, seeded()), images)


def test_a_crop_needs_padding_smaller_than_the_image() -> None:
    with pytest.raises(ValueError, match=r"8 pixels of reflect padding .* got 8x9; lower crop"):
        random_crop(some_images(2, 3, 8, 9), 8, seeded())


def test_half_of_the_images_are_mirrored_and_the_others_left_as_they_are() -> None:
    images = some_images(4000, 3, 2, 5)
    flipped = random_flip(images, seeded())
    is_mirrored = (flipped == tv.horizontal_flip(images)).flatten(1).all(dim=1)
    is_kept = (flipped == images).flatten(1).all(dim=1)
    assert (is_mirrored ^ is_kept).all()
    assert stats.binomtest(int(is_mirrored.sum()), len(images)).pvalue > 0.001


def test_normalizing_is_torchvisions() -> None:
    images, mean, std = some_images(4, 3, 5, 7), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), mean, std)
    as_channels = [torch.tensor(figures).view(1, 3, 1, 1) for figures in (mean, std)]
    torch.testing.assert_close(normalize(images, *as_channels), expected)


@given(
    size=st.integers(1, 12),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_cutout_erases_one_square_cut_at_the_border(
    size: int, height: int, width: int, seed: int
) -> None:
    images = torch.ones(20, 3, height, width)
    result = cutout(images, size, seeded(seed))
    assert torch.equal(images, torch.ones_like(images))
    for image in result:
        rows, columns = (image == 0).all(dim=0).nonzero().unbind(dim=1)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        box = [int(edge) for edge in (top, left, bottom - top, right - left)]
        assert torch.equal(image, tv.erase(torch.ones_like(image), *box, v=torch.zeros(1)))
        for first, last, length in ((top, bottom, height), (left, right, width)):
            is_cut = first == 0 or last == length
            assert last - first == size or (is_cut and last - first >= min(size // 2, length))


def test_cutout_is_centred_on_every_pixel_equally_often() -> None:
    erased = cutout(torch.ones(4000, 1, 4, 6), 1, seeded()) == 0
    assert erased.flatten(1).sum(dim=1).eq(1).all()
    assert stats.chisquare(erased.sum(dim=0).flatten()).pvalue > 0.001


def test_mixup_is_torchvisions_for_the_same_share() -> None:
    images, labels = torch.rand(6, 3, 5, 7), torch.arange(6)
    share = mixup_share(images, 0.4, seeded())
    theirs = v2.MixUp(num_classes=6)
    params = {"labels": labels, "batch_size": 6, "lam": share.item()}
    mixed, targets = blend(images, torch.eye(6), share)
    torch.testing.assert_close(mixed, theirs.transform(images, params))
    torch.testing.assert_close(targets, theirs.transform(labels, params))


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_is_torchvisions_for_the_same_box(seed: int) -> None:
    images, labels = torch.rand(6, 3, 8, 11), torch.arange(6)
    share = cutmix_share(images, 1.0, seeded(seed))
    rows, columns = (share == 0).nonzero().unbind(dim=1)
    box = [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    left, top, right, bottom = box
    kept = 1 - (right - left) * (bottom - top) / (8 * 11)
    theirs = v2.CutMix(num_classes=6)
    params = {"labels": labels, "batch_size": 6, "box": box, "lam_adjusted": kept}
    mixed, targets = blend(images, torch.eye(6), share)
    torch.testing.assert_close(mixed, theirs.transform(images, params))
    torch.testing.assert_close(targets, theirs.transform(labels, params))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_its_share_from_the_beta_distribution(alpha: float) -> None:
    generator = seeded()
    shares = [mixup_share(torch.rand(1), alpha, generator).item() for _ in range(2000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_cutmix_covers_as_much_as_torchvisions() -> None:
    generator, images = seeded(), torch.rand(2, 1, 24, 16)
    ours = [cutmix_share(images, 1.0, generator).mean().item() for _ in range(1000)]
    theirs = v2.CutMix(num_classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = [theirs.make_params([images])["lam_adjusted"] for _ in range(1000)]
    assert stats.ks_2samp(ours, kept).pvalue > 0.001


def test_with_mixup_and_cutmix_each_batch_takes_one_of_the_two_evenly() -> None:
    # Labels 0 and 1 on black and white images: only mixup makes grey ones.
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    generator = seeded()
    num_grey = 0
    for _ in range(500):
        mixed, targets = augment_batch(
            images,
            torch.arange(2),
            settings=Augment(mixup=1.0, cutmix=1.0),
            num_classes=2,
            mean=torch.zeros(1, 1, 1, 1),
            std=torch.ones(1, 1, 1, 1),
            generator=generator,
        )
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1])
        num_grey += bool(((mixed > 1e-6) & (mixed < 1 - 1e-6)).any())
    assert stats.binomtest(num_grey, 500).pvalue > 0.001


def test_without_settings_a_batch_is_normalized_and_keeps_its_labels() -> None:
    images = some_images(5, 3, 8, 8)
    result, labels = augmented(images, Augment())
    assert torch.equal(labels, torch.arange(5) % 4)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = normalize(images, mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1))
    torch.testing.assert_close(result, expected)


@given(
    num_images=st.integers(1, 5),
    channels=st.integers(1, 4),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    augment=st.builds(
        Augment,
        crop=st.integers(0, 3),
        flip=st.booleans(),
        cutout=st.integers(0, 9),
        mixup=st.sampled_from([0.0, 0.1, 1.0]),
        cutmix=st.sampled_from([0.0, 0.1, 1.0]),
    ),
    is_channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_any_settings_keep_shapes_and_label_mass_and_repeat_with_the_seed(
    num_images: int,
    channels: int,
    height: int,
    width: int,
    augment: Augment,
    is_channels_last: bool,
    seed: int,
) -> None:
    images = some_images(num_images, channels, height, width)
    before = images.clone()
    given_images = (
        images.contiguous(memory_format=torch.channels_last) if is_channels_last else images
    )

    result, targets = augmented(given_images, augment, seed=seed)

    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert torch.equal(images, before)
    if augment.mixup or augment.cutmix:
        assert targets.shape == (num_images, 4)
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(num_images))
    else:
        assert targets.dtype == torch.int64
    again, same_targets = augmented(images, augment, seed=seed)
    assert torch.equal(result, again)
    assert torch.equal(targets, same_targets)


def test_another_seed_gives_another_batch() -> None:
    images = some_images(8, 3, 8, 8)
    assert not torch.equal(augmented(images, seed=1)[0], augmented(images, seed=2)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_the_gpu_never_waits_for_the_host() -> None:
    images = some_images(16, 3, 32, 32).cuda()
    labels = torch.arange(16, device="cuda")
    mean = torch.full((1, 3, 1, 1), 0.5, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, targets = augment_batch(
            images,
            labels,
            settings=EVERYTHING,
            num_classes=16,
            mean=mean,
            std=mean,
            generator=generator,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
    assert targets.is_cuda
