"""Batched augmentation does what torchvision does one image at a time, and draws fairly."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tuner.augment import augment_batch, normalize, random_sides
from tuner.augment.colour import adjust, colour_jitter, turn_hue
from tuner.augment.geometry import cutout, mirror, random_crop, random_erasing
from tuner.augment.mixing import blend, cutmix_share, mixup_share
from tuner.augment.policies import (
    KINDS,
    NUM_BINS,
    Operation,
    apply_operations,
    magnitudes,
    rand_augment,
    trivial_augment,
)
from tuner.config import Augment

EVERYTHING = Augment(
    crop=2,
    flip=True,
    policy="randaugment",
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    cutout=3,
    erasing=0.5,
    mixup=0.4,
    cutmix=1.0,
)
CPU = torch.device("cpu")
Policy = Literal["randaugment", "trivialaugment"]
POLICIES: dict[Policy, type] = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}
every_policy = pytest.mark.parametrize("policy", POLICIES)


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


def test_mirrored_images_are_torchvisions_and_the_others_left_as_they_are() -> None:
    images, sides = some_images(40, 3, 2, 5), random_sides(40, seeded())
    expected = torch.where(sides[:, None, None, None], tv.horizontal_flip(images), images)
    assert torch.equal(mirror(images, sides), expected)


def test_half_of_the_images_are_mirrored() -> None:
    num_mirrored = int(random_sides(4000, seeded()).sum())
    assert stats.binomtest(num_mirrored, 4000).pvalue > 0.001


def test_a_batch_takes_the_sides_that_it_is_given() -> None:
    images, sides = some_images(8, 3, 6, 6), torch.arange(8) < 3
    result, other = (
        augment_batch(
            images,
            torch.arange(8),
            settings=Augment(flip=True),
            num_classes=8,
            mean=torch.zeros(1, 3, 1, 1),
            std=torch.ones(1, 3, 1, 1),
            generator=seeded(),
            is_mirrored=given_sides,
        )[0]
        for given_sides in (sides, ~sides)
    )
    assert torch.equal(result.flip(3), other)
    torch.testing.assert_close(result[3:], images[3:] / 255)


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


# Random erasing


def boxes_of(erased: Tensor) -> list[list[int]]:
    """Return the erased box of each image that has one, as top, left, height and width."""
    boxes = []
    for is_erased in (erased == 0).all(dim=1):
        if is_erased.any():
            rows, columns = is_erased.nonzero().unbind(dim=1)
            top, left = int(rows.min()), int(columns.min())
            boxes.append([top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left])
    return boxes


def test_erasing_removes_one_rectangle_as_torchvision_does() -> None:
    images = torch.rand(50, 3, 12, 16) + 1
    result = random_erasing(images, 1.0, seeded())
    expected = [
        tv.erase(image, *box, v=torch.zeros(1))
        for image, box in zip(images, boxes_of(result), strict=True)
    ]
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 10)])
def test_erased_rectangles_are_spread_like_torchvisions(height: int, width: int) -> None:
    ours = boxes_of(random_erasing(torch.ones(4000, 1, height, width), 1.0, seeded()))
    theirs, transform = [], v2.RandomErasing()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(2000):
            params = transform.make_params([torch.ones(1, height, width)])
            if params["v"] is not None:
                theirs.append([params[name] for name in "ijhw"])
    assert len(ours) / 4000 == pytest.approx(len(theirs) / 2000, abs=0.01)
    for mine, their in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert stats.ks_2samp(mine, their).pvalue > 0.001
    areas = ([h * w for _, _, h, w in boxes] for boxes in (ours, theirs))
    assert stats.ks_2samp(*areas).pvalue > 0.001


def test_the_given_share_of_the_images_is_erased_from() -> None:
    num_erased = len(boxes_of(random_erasing(torch.ones(4000, 1, 16, 16), 0.3, seeded())))
    assert stats.binomtest(num_erased, 4000, 0.3).pvalue > 0.001


# Colours


def pictures(num_images: int, channels: int, height: int, width: int) -> Tensor:
    """Return noise and, for the second half, smooth colours that do not span all levels."""
    images = some_images(num_images, channels, height, width)
    coarse = images[num_images // 2 :, :, :3, :3].float() * 0.8 + 20
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return torch.cat([images[: num_images // 2], smooth.round().to(torch.uint8)])


def assert_the_same_levels(ours: Tensor, theirs: Tensor) -> None:
    """Allow for one grey level where the last bit of a float decides."""
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_adjusting_is_torchvisions(name: str, channels: int) -> None:
    images = pictures(8, channels, 9, 12)
    ours, theirs = [], []
    for magnitude in torch.linspace(-1, 1.5, 24):
        theirs.append(getattr(tv, f"adjust_{name}")(images, 1 + magnitude.item()))
        ours.append(adjust(images.float(), **{name: magnitude.expand(8)}))
    assert_the_same_levels(torch.stack(ours), torch.stack(theirs))


@pytest.mark.parametrize("channels", [1, 3])
def test_turning_hues_is_torchvisions(channels: int) -> None:
    images = pictures(8, channels, 9, 12)
    for turn in torch.linspace(-0.5, 0.5, 21).tolist():
        ours = turn_hue(images.float(), torch.full((8,), turn))
        assert_the_same_levels(ours, tv.adjust_hue(images, turn))


def test_a_hue_that_is_not_turned_stays() -> None:
    images = some_images(64, 3, 32, 32).float()
    assert torch.equal(turn_hue(images, torch.zeros(64)), images)


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.4},
        {"contrast": 1.5},
        {"saturation": 0.9, "hue": 0.3},
        {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_jitter_spreads_colours_like_torchvisions(settings: dict[str, float]) -> None:
    image = torch.tensor(
        [[[20, 200, 90]], [[120, 60, 180]], [[220, 30, 10]]], dtype=torch.uint8
    ).expand(3, 2, 3)
    all_off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    ours = colour_jitter(image.expand(3000, 3, 2, 3), **(all_off | settings), generator=seeded())
    transform = v2.ColorJitter(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(image) for _ in range(1500)])
    for channel in range(3):
        for column in range(3):
            samples = (part[:, channel, 0, column].numpy() for part in (ours, theirs))
            assert stats.ks_2samp(*samples).pvalue > 0.0005


# RandAugment and TrivialAugment


@every_policy
@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 20)])
def test_a_policy_has_the_operations_and_magnitudes_of_torchvisions(
    policy: Policy, height: int, width: int
) -> None:
    table = magnitudes(policy, height, width, CPU)
    theirs = POLICIES[policy]._AUGMENTATION_SPACE
    names = [operation.name.replace("_", "") for operation in Operation]
    assert names == [name.upper() for name in theirs]
    for operation, (make, is_signed) in zip(Operation, theirs.values(), strict=True):
        row = make(NUM_BINS, height, width)
        expected = torch.zeros(NUM_BINS) if row is None else row.float()
        assert torch.equal(table[operation, 0], expected)
        assert torch.equal(table[operation, 1], -expected if is_signed else expected)


# Where a shear maps a pixel's middle to a border between two, the last bit of a float decides which
# is nearest; for sides that are powers of two both decide alike.
@every_policy
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 16, 32), (3, 2, 2)])
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_an_operation_is_torchvisions_at_every_magnitude(
    policy: Policy, shape: tuple[int, int, int], operation: Operation
) -> None:
    images, transform = pictures(6, *shape), POLICIES[policy]()
    name = list(transform._AUGMENTATION_SPACE)[operation]
    ours, theirs = [], []
    for magnitude in magnitudes(policy, *shape[1:], CPU)[operation].flatten().unique():
        theirs.append(
            transform._apply_image_or_video_transform(
                images, name, magnitude.item(), interpolation=transform.interpolation, fill={}
            )
        )
        ours.append(apply_operations(images, torch.full((6,), operation), magnitude.expand(6)))
    assert_the_same_levels(torch.stack(ours), torch.stack(theirs))


def test_images_with_operations_of_their_own_do_not_touch_one_another() -> None:
    images = pictures(200, 3, 16, 16)
    operations = torch.arange(200) % len(Operation)
    strengths = magnitudes("trivialaugment", 16, 16, CPU)[operations, 0, torch.arange(200) % 31]
    together = apply_operations(images, operations, strengths)
    parts = zip(images.split(1), operations.split(1), strengths.split(1), strict=True)
    assert torch.equal(together, torch.cat([apply_operations(*part) for part in parts]))
    for function, (low, high) in KINDS.items():
        # A GPU computes each kind for all images, and the others must stay as they are.
        is_meant = ((operations >= low) & (operations <= high))[:, None, None, None]
        expected = torch.where(is_meant, together, images)
        assert torch.equal(function(images, operations, strengths), expected)


def test_no_operation_reads_anything_back_from_the_device() -> None:
    """What has no numbers cannot be read: a wait for a GPU would be an error here."""
    meta = torch.device("meta")
    images = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device=meta)
    zeros = torch.zeros(4, device=meta)
    assert apply_operations(images, zeros.long(), zeros).is_meta
    assert turn_hue(adjust(images.float(), zeros, zeros, zeros), zeros).is_meta


def assert_drawn_evenly(drawn: Tensor, outcomes: Tensor) -> None:
    """Refuse images that are no outcome, and outcomes that are not drawn equally often.

    Outcomes that look the same are as often drawn as they are many.
    """
    both = torch.cat([outcomes, drawn]).flatten(1)
    kinds, which = both.unique(dim=0, return_inverse=True)
    expected = which[: len(outcomes)].bincount(minlength=len(kinds)).double()
    counted = which[len(outcomes) :].bincount(minlength=len(kinds))
    assert expected.min() > 0
    share = len(drawn) / len(outcomes)
    assert stats.chisquare(counted, expected * share).pvalue > 0.001


def test_trivial_augment_draws_operation_sign_and_magnitude_evenly() -> None:
    image = some_images(1, 3, 12, 12)
    table = magnitudes("trivialaugment", 12, 12, CPU)
    operations = torch.arange(len(Operation)).repeat_interleave(2 * NUM_BINS)
    outcomes = apply_operations(
        image.expand(len(operations), -1, -1, -1), operations, table.flatten()
    )
    assert_drawn_evenly(trivial_augment(image.expand(20_000, -1, -1, -1), seeded()), outcomes)


@pytest.mark.parametrize("num_ops", [1, 2])
@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_draws_each_operation_and_sign_evenly(num_ops: int, magnitude: int) -> None:
    image = some_images(1, 3, 12, 12)
    table = magnitudes("randaugment", 12, 12, CPU)[:, :, magnitude].flatten()
    operations = torch.arange(len(Operation)).repeat_interleave(2)
    outcomes = image
    for _ in range(num_ops):
        before = outcomes.repeat_interleave(len(table), dim=0)
        times = len(outcomes)
        outcomes = apply_operations(before, operations.repeat(times), table.repeat(times))
    drawn = rand_augment(image.expand(20_000, -1, -1, -1), num_ops, magnitude, seeded())
    assert_drawn_evenly(drawn, outcomes)


# Mixing


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
        policy=st.sampled_from(["none", "randaugment", "trivialaugment"]),
        num_ops=st.integers(1, 3),
        magnitude=st.integers(0, 30),
        brightness=st.sampled_from([0.0, 0.5, 2.0]),
        contrast=st.sampled_from([0.0, 0.5, 2.0]),
        saturation=st.sampled_from([0.0, 0.5, 2.0]),
        hue=st.sampled_from([0.0, 0.5]),
        erasing=st.sampled_from([0.0, 0.5, 1.0]),
        cutout=st.integers(0, 9),
        mixup=st.sampled_from([0.0, 0.1, 1.0]),
        cutmix=st.sampled_from([0.0, 0.1, 1.0]),
    ),
    is_channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
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
