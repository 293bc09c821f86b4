"""Images in memory: batches of them, and what is done to them."""

import pytest
import torch
from torchvision.transforms import v2

from torch_dropblock.compare.batches import PADDING, Arrays, Augmentation, Batches

CPU = torch.device("cpu")


def images(number=40, channels=3, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (number, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("channels", "side", "shift"), [(1, 8, 1), (3, 32, 4), (1, 28, 3)])
def test_a_shift_is_torchvisions_crop_of_the_padded_image(channels, side, shift):
    some = images(30, channels, side)
    augmentation = Augmentation(shift)
    drawn = augmentation.draw(len(some), side)
    assert drawn[:, :2].min() == 0
    assert drawn[:, :2].max() == 2 * shift
    for image, moved, (top, left, *_) in zip(some, augmentation(some, drawn), drawn.tolist(), strict=True):
        padded = v2.functional.pad(image, [shift])
        assert torch.equal(moved, v2.functional.crop(padded, top, left, side, side))


def test_half_of_the_images_are_mirrored():
    some = images(400)
    augmentation = Augmentation(mirror=True)
    drawn = augmentation.draw(len(some), 8)
    result = augmentation(some, drawn)
    mirrored = drawn[:, 4].bool()
    assert torch.equal(result[mirrored], some[mirrored].flip(3))
    assert torch.equal(result[~mirrored], some[~mirrored])
    assert 140 < mirrored.sum() < 260  # six standard deviations


@pytest.mark.parametrize("blank", [1, 3, 7])
def test_a_square_is_blanked_anywhere(blank):
    some, fill = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8), (51, 102, 153)
    augmentation = Augmentation(blank=blank, fill=fill)
    places = set()
    for image in augmentation(some, augmentation.draw(200, 8)):
        where = (image != 255).any(0).nonzero()
        assert len(where) == blank**2
        assert (where.amax(0) - where.amin(0)).tolist() == [blank - 1, blank - 1]
        assert image[:, where[:, 0], where[:, 1]].T.unique(dim=0).tolist() == [list(fill)]
        places.add(tuple(where[0].tolist()))
    assert len(places) > 0.7 * (8 - blank + 1) ** 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_policy_changes_images(channels):
    some = images(40, channels, 16)
    augmentation = Augmentation(policy=v2.AutoAugmentPolicy.SVHN, fill=(9,) * channels)
    result = augmentation(some, augmentation.draw(40, 16))
    assert (result.shape, result.dtype) == (some.shape, torch.uint8)
    assert sum(not torch.equal(a, b) for a, b in zip(some, result, strict=True)) > 20


def test_batches_are_in_order_and_padding_does_not_count():
    arrays = Arrays(images(5), torch.arange(5))
    batches = Batches(arrays, torch.tensor([3, 1, 4, 0, PADDING]), 2, CPU)
    assert len(batches) == 3
    found = list(batches)
    assert [labels.tolist() for _, labels in found] == [[3, 1], [4, 0], [PADDING]]
    assert torch.equal(found[1][0], arrays.images[[4, 0]])


def test_all_that_is_drawn_follows_from_torchs_seed_when_they_are_made():
    augmentation = Augmentation(2, True, None, 3, (1, 2, 3))

    def made():
        torch.manual_seed(5)
        return Batches(Arrays(images(), torch.arange(40)), torch.arange(40), 16, CPU, augmentation)

    first, second = made(), made()
    torch.rand(9)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_images_are_copied_to_a_device_once():
    arrays = Arrays(images(), torch.arange(40))
    assert arrays.on(CPU)[0] is arrays.on(CPU)[0]
    assert arrays.on(torch.device("meta"))[0].device.type == "meta"
