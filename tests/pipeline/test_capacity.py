"""Who may run now: nodes with workers of their own, on GPUs, with memory, and all others."""

import math

import pytest

from pipeline import capacity
from pipeline.capacity import LOOKAHEAD, Amount, Room
from pipeline.errors import UsageError

ONE, PAIR = Amount(1), Amount(2)


def test_without_groups_a_few_more_than_fit_are_handed_over():
    room = Room(Amount(2))
    taken = [name for name in map(str, range(20)) if room.offer(name, ONE)]
    assert len(taken) == max(LOOKAHEAD, 2)
    room.began("0")
    assert room.offer("next", ONE)
    assert not room.reserved


def test_two_groups_on_two_cores_come_one_after_the_other():
    room = Room(Amount(2))
    assert room.offer("first", PAIR, PAIR)
    assert not room.offer("second", PAIR, PAIR)
    assert not room.offer("small", ONE), "what the first holds is not there"
    room.leave("first")
    assert room.offer("second", PAIR, PAIR)


def test_a_group_is_not_starved_by_small_nodes():
    """Those that come later in a round leave alone what the group waits for."""
    room = Room(Amount(2))
    small = [str(i) for i in range(4)]
    assert all(room.offer(name, ONE) for name in small)
    for name in small:
        assert not room.offer("group", PAIR, PAIR)
        assert room.reserved == {"cpus"}
        assert not room.offer("one more", ONE)
        room.leave(name)
    assert room.offer("group", PAIR, PAIR)


def test_beside_a_group_that_waits_runs_what_fits_beside_it():
    room = Room(Amount(4))
    assert room.offer("first", Amount(3), Amount(3))
    assert not room.offer("second", Amount(3), Amount(3))
    assert not room.offer("small", ONE), "1 of 4 is free, and the second needs 3"
    room.leave("first")
    assert room.offer("second", Amount(3), Amount(3))
    assert room.offer("small", ONE)


def test_a_group_whose_execution_was_stopped_is_no_longer_waited_for():
    room = Room(Amount(2))
    assert room.offer("small", ONE)
    assert not room.offer("group", PAIR, PAIR)
    room.leave("group")
    assert room.offer("other", ONE)


def test_room_is_kept_for_the_most_urgent_of_now():
    """Else what came since would wait for what waits behind it."""
    room, gpu = Room(Amount(4, 1)), Amount(1, 1)
    assert room.offer("first", gpu)
    assert not room.offer("second", gpu, gpu)
    room.leave("first")
    assert not room.offer("came since", gpu), "in the same round the second keeps its room"
    room.renew({"second", "came since", "others"})
    assert not room.reserved
    assert room.offer("came since", gpu)
    assert not room.offer("second", gpu)
    room.renew({"of another execution"})
    assert set(room.awaited) == {"second"}


def test_gpus_and_memory_are_counted():
    room = Room(Amount(8, 2, 16))
    assert room.offer("a", Amount(1, 1, 10))
    assert not room.offer("b", Amount(1, 1, 10))
    assert room.offer("c", Amount(1))
    room.leave("a")
    assert room.offer("b", Amount(1, 1, 10))


def test_fractions_fill_a_gpu():
    room = Room(Amount(20, 1))
    assert [room.offer(str(i), Amount(1, 0.1)) for i in range(11)] == [True] * 10 + [False]


def test_what_is_more_than_there_is_runs_alone():
    """It was checked when the cluster was joined; a machine has left meanwhile."""
    room = Room(Amount(2))
    assert room.offer("large", Amount(3), Amount(3))
    assert not room.offer("small", ONE)


def test_what_a_cluster_may_grow_to_is_read():
    assert capacity.read(None) is None
    assert capacity.read("cpus=64, gpus=8") == Amount(64, 8, math.inf)
    assert capacity.read("memory_gib=1.5").memory_gib == 1.5


@pytest.mark.parametrize("text", ["", "64", "cpus=x", "cpus=1,cpus=2", "cores=4", "cpus=-1"])
def test_what_cannot_be_read_is_said(text):
    with pytest.raises(UsageError, match=r"--up-to .*such as --up-to cpus=64,gpus=8"):
        capacity.read(text)


def test_words():
    assert Amount(2, 1, 8).words() == "2 CPUs and 1 GPU and 8 GiB of memory"
    assert Amount().words() == "nothing"


def test_this_machine_has_memory():
    assert 2**28 < capacity.memory_bytes() < 2**50


def test_what_waits_for_gpus_keeps_no_core_from_others():
    room = Room(Amount(2, 1))
    assert room.offer("a", Amount(1, 1))
    assert not room.offer("b", Amount(1, 1))
    assert not room.reserved, "shards may be as many as there are cores"
    taken = [name for name in map(str, range(20)) if room.offer(name, ONE)]
    assert len(taken) == LOOKAHEAD


def test_a_training_on_gpus_narrows_shards_on_gpus():
    room = Room(Amount(8, 2))
    assert room.offer("train", Amount(1, 2), Amount(0, 2))
    assert room.reserved == {"gpus"}
    room.leave("train")
    assert not room.reserved
