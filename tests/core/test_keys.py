"""Keys and their words: SplitMix64's finaliser on any 64 bits, uniform and without correlation."""

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_dropblock.core import keys

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
words = st.integers(0, MASK) | st.sampled_from([0, 1, 1 << 63, MASK, (1 << 63) - 1, GOLDEN])


def finalised(word):
    """SplitMix64's finaliser, written down once more."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def unsigned(numbers):
    return [number & MASK for number in numbers]


# --- words -------------------------------------------------------------------------------------------------------


def test_the_published_first_numbers_of_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert unsigned(keys.mixed((i + 1) * GOLDEN) for i in range(3)) == published


@given(several=st.lists(words, min_size=1, max_size=20))
def test_words_are_mixed_as_by_hand(several):
    expected = [finalised(word) for word in several]
    assert unsigned(map(keys.mixed, several)) == expected
    assert unsigned(keys.mixed(keys.signed(word)) for word in several) == expected
    tensor = torch.tensor([keys.signed(word) for word in several])
    assert keys.mix_(tensor) is tensor
    assert unsigned(tensor.tolist()) == expected


@given(key=words, first=st.integers(0, 2**40), count=st.integers(0, 9))
def test_bases_of_streams_are_made_as_by_hand(key, first, count):
    expected = [finalised((finalised(key) + (s + 1) * GOLDEN) & MASK) for s in range(first, first + count)]
    number = keys.signed(key)
    tensor = torch.tensor(number)
    for bases in (keys.stream_bases(number, first, count), keys.stream_bases(tensor, first, count)):
        assert bases.dtype == torch.int64
        assert unsigned(bases.tolist()) == expected
    assert tensor.item() == number, "the key is left alone"


@given(word=words, bits=st.integers(1, 63))
def test_shifting_brings_zeros_in(word, bits):
    assert keys.shift_right(torch.tensor([keys.signed(word)]), bits).tolist() == [word >> bits]


@given(word=st.integers(-(2**70), 2**70))
def test_signed_keeps_64_bits(word):
    number = keys.signed(word)
    assert -(2**63) <= number < 2**63
    assert (number - word) % 2**64 == 0


def test_where_keys_are():
    assert keys.device_of(5) == CPU
    assert keys.device_of(torch.zeros((), dtype=torch.int64, device="meta")).type == "meta"
    assert keys.device_for_keys(torch.device("mps")) == CPU, "which has no float64"
    assert keys.device_for_keys(torch.device("cuda", 1)) == torch.device("cuda", 1)
    for key in (-3, torch.tensor(-3)):
        tensor = keys.as_tensor(key, CPU)
        assert (tensor.item(), tensor.dtype, tensor.shape) == (-3, torch.int64, ())


# --- uniform and without correlation -----------------------------------------------------------------------------


def uniform(words):
    """The words as numbers in [0, 1)."""
    return keys.shift_right(words, 11).double() * 2.0**-53


def over_streams(key, count):
    """The first word of each stream."""
    return uniform(keys.mix_(keys.stream_bases(key, 0, count)))


def within_streams(key, count):
    """The words of one stream after the other, a hundred of each."""
    bases = keys.stream_bases(key, 0, -(-count // 100)).unsqueeze(1)
    return uniform(keys.mix_(bases + torch.arange(100) * keys.PHI)).flatten()[:count]


@pytest.fixture(params=[over_streams, within_streams])
def numbers(request):
    return request.param


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, 0x0123456789ABCDEF])
def test_words_are_uniform_and_not_correlated(key, numbers, z_score):
    n, bins = 300_000, 1000
    u = numbers(key, n)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    counts = torch.histc(u, bins, 0, 1).double()
    chi2 = ((counts - n / bins) ** 2 / (n / bins)).sum().item()
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))
    for lag in (1, 2, 7, 100):
        assert abs(z_score((u[lag:] - 0.5) * (u[:-lag] - 0.5), 0.0)) < 5


def test_each_bit_of_a_word_is_set_in_half_of_them():
    words = keys.mix_(keys.stream_bases(-5, 0, 100_000))
    for bit in range(64):
        share = (words >> bit & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(words)), f"bit {bit}"


KEY = 0x0123456789ABCDEF
ALIKE = {
    "the next": KEY + 1,
    "its negative": -KEY,
    "its complement": ~KEY,
    "the same low half": KEY ^ 0x5A5A5A5A << 32,
    "the same high half": KEY ^ 0x5A5A5A5A,
    "one step of the streams further": KEY + GOLDEN,
    **{f"bit {bit}": KEY ^ 1 << bit for bit in (0, 1, 11, 17, 31, 32, 47, 62, 63)},
}


@pytest.mark.parametrize("other", ALIKE.values(), ids=ALIKE.keys())
def test_keys_that_are_alike_have_words_that_are_not(other, numbers, z_score):
    a, b = (numbers(keys.signed(key), 200_000) - 0.5 for key in (KEY, other))
    for lag in (0, 1, 2):
        assert abs(z_score(a[lag:] * b[: len(b) - lag], 0.0)) < 5
        assert abs(z_score(b[lag:] * a[: len(a) - lag], 0.0)) < 5


def test_first_words_of_consecutive_keys_are_uniform_and_independent(z_score):
    first = torch.stack([over_streams(key, 3) for key in range(-2000, 2000)]) - 0.5
    for column in range(3):
        assert abs(z_score(first[:, column], 0.0)) < 5
        assert abs(z_score(first[:, column] ** 2, 1 / 12)) < 5
    assert abs(z_score(first[:, 0] * first[:, 1], 0.0)) < 5
    assert abs(z_score(first[1:, 0] * first[:-1, 0], 0.0)) < 5
    assert abs(z_score(first[1:, 0] * first[:-1, 1], 0.0)) < 5


# --- drawing a key -----------------------------------------------------------------------------------------------


def test_the_first_draw_of_a_thread_may_be_among_fake_tensors():
    def first():
        with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
            keys.draw_key_number(None)
        return keys.draw_key_number(torch.Generator().manual_seed(3))

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(first).result() == keys.draw_key_number(torch.Generator().manual_seed(3))


def test_keys_use_all_64_bits():
    drawn = [keys.draw_key(CPU, None).item() for _ in range(400)]
    assert len(set(drawn)) == 400
    for bit in range(64):
        ones = sum(key >> bit & 1 for key in drawn)
        assert 140 < ones < 260, f"bit {bit} is set in {ones} of 400 keys"


def test_a_number_is_what_a_tensor_would_be():
    for generator in (None, torch.Generator()):
        (generator or torch).manual_seed(5)
        drawn = [keys.draw_key(CPU, generator).item() for _ in range(3)]
        (generator or torch).manual_seed(5)
        assert [keys.draw_key_number(generator) for _ in range(3)] == drawn
    with torch.inference_mode():
        keys.draw_key_number(None)
    keys.draw_key_number(None)


def test_threads_draw_numbers_in_memory_of_their_own():
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    expected = [keys.draw_key_number(torch.Generator().manual_seed(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(keys.draw_key_number, generators)) == expected


def test_a_key_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    first = keys.draw_key(CPU, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    assert first == keys.draw_key(CPU, torch.Generator().manual_seed(1))
    assert first != keys.draw_key(CPU, torch.Generator().manual_seed(2))


# --- supplied keys -----------------------------------------------------------------------------------------------


def test_a_word_is_that_of_its_stream():
    key = 0x0123456789ABCDEF
    bases = keys.stream_bases(key, 0, 3)
    for stream in range(3):
        for index in range(3):
            expected = keys.mix_(bases[stream : stream + 1] + keys.signed(index * keys.PHI))
            assert keys.word(key, stream, index) == expected.item()


def test_supplied_keys_go_to_calls_without_a_generator_in_their_order():
    state = torch.get_rng_state()
    with keys.supplied(iter([1, -2, 3])):
        assert keys.draw_key_number(None) == 1
        assert keys.draw_key_number(torch.Generator().manual_seed(1)) not in (-2, 3)
        with keys.supplied(iter([7])):
            assert keys.draw_key(CPU, None).item() == 7
        drawn = keys.draw_key(CPU, None)
        assert (drawn.dtype, drawn.dim(), drawn.item()) == (torch.int64, 0, -2)
        assert torch.equal(torch.get_rng_state(), state)
        with ThreadPoolExecutor(1) as thread:  # another thread draws its own
            assert thread.submit(keys.draw_key_number, None).result() != 3
    assert keys.draw_key_number(None) != 3
