"""The order of samples: by seed and epoch alone, shared evenly by processes, sets balanced."""

import pytest

from datasets.sampling import EpochBatches


def epoch_of(batches: EpochBatches, epoch: int) -> list[list[tuple[int, int]]]:
    """The keys of each batch, its parts put together."""
    return [[key for part in batch for key in part] for batch in batches.epoch(epoch)]


def indices(batches: list[list[tuple[int, int]]]) -> list[int]:
    """The samples of an epoch in order."""
    return [index for batch in batches for _, index in batch]


def test_an_epoch_holds_every_sample_once_and_says_which_epoch_it_is():
    batches = EpochBatches([12], batch_size=3)
    assert len(batches) == 4
    for epoch in (0, 1, 5):
        result = epoch_of(batches, epoch)
        assert [len(batch) for batch in result] == [3, 3, 3, 3]
        assert sorted(indices(result)) == list(range(12))
        assert {key[0] for batch in result for key in batch} == {epoch}


def test_the_incomplete_last_batch_is_left_out():
    batches = EpochBatches([14], batch_size=4)
    assert len(batches) == 3
    result = epoch_of(batches, 0)
    assert [len(batch) for batch in result] == [4, 4, 4]
    assert len(set(indices(result))) == 12
    left_out = {frozenset(range(14)) - set(indices(epoch_of(batches, e))) for e in range(10)}
    assert len(left_out) > 1


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = EpochBatches([30], 5, seed=3), EpochBatches([30], 5, seed=3)
    epoch_of(second, 0)
    assert epoch_of(first, 7) == epoch_of(second, 7)
    assert epoch_of(first, 7) == epoch_of(first, 7)
    assert indices(epoch_of(first, 7)) != indices(epoch_of(first, 8))
    other = EpochBatches([30], 5, seed=4)
    assert indices(epoch_of(first, 7)) != indices(epoch_of(other, 7))
    assert indices(epoch_of(first, 7)) != list(range(30))


def test_a_batch_has_one_of_the_sizes_whatever_the_process_the_part_and_the_start():
    sizes = [64, 96, 128]
    plain = epoch_of(EpochBatches([60], 6, seed=1), 2)
    sized = EpochBatches([60], 6, seed=1, sizes=sizes)
    drawn = []
    for batch, with_size in zip(plain, epoch_of(sized, 2), strict=True):
        assert [key[:2] for key in with_size] == batch
        (size,) = {key[2] for key in with_size}
        drawn.append(size)
    assert set(drawn) == set(sizes)
    share = EpochBatches([60], 6, 1, rank=1, world_size=2, parts=3, sizes=sizes)
    assert [batch[0][2] for batch in epoch_of(share, 2)] == drawn
    assert sized.epoch(2, start=4) == sized.epoch(2)[4:]
    assert [batch[0][2] for batch in epoch_of(sized, 3)] != drawn
    assert [batch[0][2] for batch in epoch_of(EpochBatches([60], 6, 2, sizes=sizes), 2)] != drawn


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_processes_together_have_the_batches_of_a_single_one(world_size):
    sizes = [20, 13]
    alone = epoch_of(EpochBatches(sizes, 6, seed=1), 2)
    shares = [
        EpochBatches(sizes, 6, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *(epoch_of(share, 2) for share in shares)):
        assert {len(part) for part in parts} == {6 // world_size}
        assert sorted(key for part in parts for key in part) == sorted(whole)


def test_balance_takes_from_further_sets_at_most_as_many_as_the_first_has_anew_every_epoch():
    batches = EpochBatches([10, 100, 6], batch_size=2)
    assert len(batches) == 13
    seen = set()
    for epoch in range(3):
        taken = set(indices(epoch_of(batches, epoch)))
        assert len(taken) == 26
        assert taken >= set(range(10)) and taken >= set(range(110, 116))
        seen |= taken & set(range(10, 110))
    assert 20 < len(seen) <= 30


def test_without_balance_all_samples_are_taken_and_sets_are_mixed():
    batches = EpochBatches([10, 100, 6], batch_size=2, balance=False)
    assert len(batches) == 58
    order = indices(epoch_of(batches, 0))
    assert sorted(order) == list(range(116))
    assert 0 < sum(index < 10 for index in order[:58]) < 10


@pytest.mark.parametrize("balance, videos", [(True, 26), (False, 116)])
def test_the_last_set_has_its_share_of_an_epoch_beside_all_that_is_taken_of_the_others(
    balance, videos
):
    batches = EpochBatches([10, 100, 6, 300], 2, balance=balance, last_share=0.3)
    seen = set()
    for epoch in range(2):
        taken = indices(epoch_of(batches, epoch))
        last = {index for index in taken if index >= 116}
        assert len(taken) == len(set(taken)) == 2 * len(batches)
        assert len(last) / len(taken) == pytest.approx(0.3, abs=0.02)
        assert len(taken) - len(last) == pytest.approx(videos, abs=1)
        seen |= last
    assert len(seen) > len(last)
    # A small set is taken whole.
    assert len(EpochBatches([10, 2], 1, last_share=0.5)) == 12


def test_a_set_smaller_than_a_batch_is_repeated_to_fill_it():
    batches = EpochBatches([3], batch_size=8)
    assert len(batches) == 1
    (batch,) = epoch_of(batches, 0)
    counts = [indices([batch]).count(index) for index in range(3)]
    assert sorted(counts) == [2, 3, 3]
    shares = [EpochBatches([3], 8, rank=rank, world_size=2) for rank in range(2)]
    assert [len(epoch_of(share, 0)[0]) for share in shares] == [4, 4]


def test_a_batch_is_cut_into_parts_that_hold_the_same_samples():
    whole, cut = EpochBatches([23], 6, seed=2), EpochBatches([23], 6, seed=2, parts=3)
    assert epoch_of(whole, 4) == epoch_of(cut, 4)
    assert [[len(part) for part in batch] for batch in cut.epoch(4)] == [[2, 2, 2]] * 3
    share = EpochBatches([23], 12, seed=2, rank=1, world_size=2, parts=3)
    assert [[len(part) for part in batch] for batch in share.epoch(4)] == [[2, 2, 2]]
    alone = EpochBatches([23], 12, seed=2, rank=1, world_size=2)
    assert epoch_of(share, 4) == epoch_of(alone, 4)


def test_an_epoch_can_go_on_from_any_batch():
    batches = EpochBatches([23], 4, seed=2)
    for start in range(6):
        assert batches.epoch(1, start) == batches.epoch(1)[start:]
