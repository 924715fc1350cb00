from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotune import partition
from cotune.errors import DataError
from cotune.partition import IntArray
from cotune.records import derived_rng


def is_disjoint_and_complete(owner: IntArray, num_rows: int, num_clients: int) -> bool:
    parts = partition.members(owner, num_clients)
    return len(parts) == num_clients and sorted(np.concatenate(parts).tolist()) == list(range(num_rows))


@given(num_clients=st.integers(1, 40), extra=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_iid_parts_are_disjoint_complete_and_equal(num_clients: int, extra: int, seed: int) -> None:
    num_rows = num_clients + extra
    owner = partition.iid(num_rows, num_clients, derived_rng(seed))
    assert is_disjoint_and_complete(owner, num_rows, num_clients)
    sizes = np.bincount(owner, minlength=num_clients)
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(owner, partition.iid(num_rows, num_clients, derived_rng(seed)))


@given(
    per_domain=st.lists(st.integers(30, 80), min_size=1, max_size=5),
    num_clients=st.integers(1, 6),
    alpha=st.floats(0.5, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_dirichlet_parts_are_disjoint_complete_and_never_empty(
    per_domain: list[int], num_clients: int, alpha: float, seed: int
) -> None:
    domains = [f"d{number}" for number, size in enumerate(per_domain) for _ in range(size)]
    owner = partition.dirichlet(domains, num_clients, alpha, derived_rng(seed))
    assert is_disjoint_and_complete(owner, len(domains), num_clients)
    assert np.bincount(owner, minlength=num_clients).min() > 0
    assert np.array_equal(owner, partition.dirichlet(domains, num_clients, alpha, derived_rng(seed)))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_dirichlet_with_a_large_alpha_approaches_equal_parts_of_every_domain(seed: int) -> None:
    domains = ["a"] * 1000 + ["b"] * 500
    owner = partition.dirichlet(domains, 5, 1e7, derived_rng(seed))
    assert np.abs(np.bincount(owner[:1000]) - 200).max() <= 2
    assert np.abs(np.bincount(owner[1000:]) - 100).max() <= 2


def test_dirichlet_with_a_small_alpha_gives_clients_few_domains() -> None:
    domains = np.repeat(["a", "b", "c", "d"], 500)
    largest = []
    for seed in range(20):
        owner = partition.dirichlet(domains.tolist(), 4, 0.1, derived_rng(seed))
        for client in range(4):
            _, counts = np.unique(domains[owner == client], return_counts=True)
            largest.append(counts.max() / counts.sum())
    assert np.mean(largest) > 0.7  # 0.25 when iid


def test_dirichlet_gives_the_domains_shares_of_the_stated_distribution() -> None:
    # A share is Beta(alpha, (K-1) alpha): mean 1/K, variance (K-1) / (K^2 (K alpha + 1)).
    rng = derived_rng(1)
    owners = [partition.dirichlet(["a"] * 2000, 4, 2.0, rng) for _ in range(1000)]
    shares = [np.mean(owner == 0) for owner in owners]
    assert np.mean(shares) == pytest.approx(1 / 4, abs=0.015)
    assert np.var(shares) == pytest.approx(3 / (16 * 9), rel=0.15)


@given(keys=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=60), seed=st.integers(0, 99))
@settings(deadline=None)
def test_by_key_gives_one_client_per_value_whatever_the_order(keys: list[str], seed: int) -> None:
    keys = [key.replace("\0", "0") for key in keys]
    names, owner = partition.by_key(keys)
    assert names == tuple(sorted(set(keys)))
    assert [names[number] for number in owner] == keys
    order = derived_rng(seed).permutation(len(keys))
    permuted_names, permuted = partition.by_key([keys[row] for row in order])
    assert permuted_names == names
    assert np.array_equal(permuted, owner[order])


@given(num_rows=st.integers(0, 300), num_parts=st.integers(1, 9))
@settings(deadline=None)
def test_equal_parts_are_consecutive_and_equal_and_leave_the_rest_out(num_rows: int, num_parts: int) -> None:
    owner = partition.equal_parts(num_rows, num_parts)
    size = num_rows // num_parts
    expected = [number for number in range(num_parts) for _ in range(size)]
    assert owner.tolist() == expected + [-1] * (num_rows - size * num_parts)


def test_equal_parts_of_a_stated_size() -> None:
    assert partition.equal_parts(7, 2, 2).tolist() == [0, 0, 1, 1, -1, -1, -1]


def test_names_of_clients_sort_like_numbers() -> None:
    assert partition.client_names(4) == ("client-1", "client-2", "client-3", "client-4")
    assert list(partition.client_names(120)) == sorted(partition.client_names(120))


def test_more_clients_than_rows_are_refused_with_the_cure() -> None:
    for split in (
        lambda: partition.iid(3, 5, derived_rng(1)),
        lambda: partition.dirichlet(["a"] * 3, 5, 1.0, derived_rng(1)),
    ):
        with pytest.raises(DataError, match=r"3 training rows .* 5 clients.*Set clients to at most 3"):
            split()


def test_an_empty_dirichlet_client_is_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"alpha 0\.001.*of 20 clients.*Use fewer clients, a larger alpha"):
        partition.dirichlet(["a"] * 30, 20, 0.001, derived_rng(1))


def test_ten_thousand_clients_take_less_than_a_second() -> None:
    started = time.process_time()
    owner = partition.iid(50_000, 10_000, derived_rng(1))
    assert len(partition.members(owner, 10_000)) == 10_000
    skewed = partition.dirichlet(["a", "b"] * 100_000, 10_000, 50.0, derived_rng(1))
    assert len(partition.members(skewed, 10_000)) == 10_000
    assert time.process_time() - started < 1.0
