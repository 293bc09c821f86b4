"""The stream of numbers: SplitMix64, uniform, the same from any index on."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torch_dropblock.core.rng import Stream, draw_rng_number, draw_rng_seed, hashed_uniforms

CPU = torch.device("cpu")
WORD = (1 << 64) - 1


def splitmix64(seed, index):
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def uniform(word):
    """The word, as a signed integer, between -2^63 and 2^63, moved to [0, 1]."""
    return float(word - (1 << 64) if word >> 63 else word) * 2.0**-64 + 0.5


def test_the_first_draw_of_a_thread_may_be_among_fake_tensors():
    def first():
        with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
            draw_rng_number(None)
        return draw_rng_number(torch.Generator().manual_seed(3))

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(first).result() == draw_rng_number(torch.Generator().manual_seed(3))


def test_the_published_first_numbers_of_seed_0():
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hashed_uniforms(torch.tensor(0), 0, 3).tolist() == [uniform(word) for word in words]


@given(seed=st.integers(-(2**63), 2**63 - 1), start=st.integers(0, 2**40))
def test_numbers_are_splitmix64_at_any_index(seed, start):
    expected = [uniform(splitmix64(seed, start + i)) for i in range(9)]
    assert hashed_uniforms(torch.tensor(seed), start, 9).tolist() == expected


def hashed(seed, count):
    return hashed_uniforms(torch.tensor(seed), 0, count)


def drawn(seed, count):
    return Stream(torch.tensor(seed)).negative_exponentials(count).exp_()


@pytest.fixture(params=[hashed, drawn], ids=["hashed", "drawn"])
def numbers(request):
    """The uniform numbers of an RNG seed, those of devices and those of the CPU."""
    return request.param


def test_numbers_are_uniform(numbers):
    n, bins = 1_000_000, 1000
    u = numbers(draw_rng_seed(CPU, None).item(), n)
    assert u.min() >= 0.0
    assert u.max() <= 1.0
    counts = torch.histc(u, bins, 0, 1).double()
    chi2 = ((counts - n / bins) ** 2 / (n / bins)).sum().item()
    assert abs(chi2 - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_numbers_are_not_correlated(lag, numbers, z_score):
    u = numbers(draw_rng_seed(CPU, None).item(), 1_000_000) - 0.5
    assert abs(z_score(u[lag:] * u[:-lag], 0.0)) < 5


def test_neighbouring_seeds_give_streams_that_are_not_correlated(numbers, z_score):
    a, b = (numbers(seed, 1_000_000) - 0.5 for seed in (12345, 12346))
    assert abs(z_score(a * b, 0.0)) < 5


def test_first_numbers_of_fresh_seeds_are_uniform_and_independent(numbers, z_score):
    first = torch.stack([numbers(draw_rng_seed(CPU, None).item(), 3) for _ in range(20_000)]) - 0.5
    for column in range(3):
        assert abs(z_score(first[:, column], 0.0)) < 5
        assert abs(z_score(first[:, column] ** 2, 1 / 12)) < 5
    assert abs(z_score(first[:, 0] * first[:, 1], 0.0)) < 5
    assert abs(z_score(first[1:, 0] * first[:-1, 0], 0.0)) < 5


@pytest.mark.parametrize("bit", [0, 13, 31, 32, 45, 63])
def test_every_bit_of_a_seed_counts(numbers, bit):
    seed = 0x0123456789ABCDEF
    other = seed ^ (1 << bit)
    other -= 1 << 64 if other >> 63 else 0
    assert not torch.equal(numbers(seed, 10), numbers(other, 10))


def test_a_stream_goes_on_where_it_stopped():
    stream = Stream(torch.tensor(7))
    parts = [stream.negative_exponentials(n) for n in (3, 5000, 20)]
    assert torch.equal(torch.cat(parts), Stream(torch.tensor(7)).negative_exponentials(5023))


def test_rng_seeds_use_all_64_bits():
    seeds = [draw_rng_seed(CPU, None).item() for _ in range(400)]
    assert len(set(seeds)) == 400
    for bit in range(64):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert 140 < ones < 260, f"bit {bit} is set in {ones} of 400 seeds"


def test_a_number_is_what_a_seed_would_be():
    for generator in (None, torch.Generator()):
        (generator or torch).manual_seed(5)
        seeds = [draw_rng_seed(CPU, generator).item() for _ in range(3)]
        (generator or torch).manual_seed(5)
        assert [draw_rng_number(generator) for _ in range(3)] == seeds
    with torch.inference_mode():
        draw_rng_number(None)
    draw_rng_number(None)


def test_threads_draw_numbers_in_memory_of_their_own():
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    expected = [draw_rng_number(torch.Generator().manual_seed(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw_rng_number, generators)) == expected


def test_rng_seed_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    first = draw_rng_seed(CPU, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    assert first == draw_rng_seed(CPU, torch.Generator().manual_seed(1))
    assert first != draw_rng_seed(CPU, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("given", [False, True])
def test_a_graph_names_a_generator_only_where_one_is_given(given):
    """Compiled C++ has no call for the operator that takes one, so `cpp_wrapper` and AOTInductor would fail."""
    generator = torch.Generator() if given else None
    graph = make_fx(lambda x: x + draw_rng_seed(CPU, generator))(torch.zeros(())).graph
    (drawn,) = (node.target for node in graph.nodes if "randint" in str(node.target))
    assert drawn == (torch.ops.aten.randint.low_generator if given else torch.ops.aten.randint.low)
