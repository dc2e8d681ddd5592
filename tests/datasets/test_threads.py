"""What threads read ahead and write behind, in which order, and their errors."""

import threading

import pytest

from datasets.threads import read_ahead, write_behind


def test_items_are_read_by_a_thread_one_ahead_and_an_error_comes_in_its_place():
    read, main = [], threading.get_ident()

    def items():
        for number in range(4):
            if number == 3:
                raise ValueError("the fourth")
            read.append(threading.get_ident() != main)
            yield number

    with read_ahead(items()) as ahead:
        assert next(ahead) == 0
        assert next(ahead) == 1 and next(ahead) == 2
        with pytest.raises(ValueError, match="the fourth"):
            next(ahead)
    assert read == [True] * 3


def test_nothing_is_read_after_the_end_of_the_block_and_no_more_than_one_item_ahead():
    read, asked = [], threading.Semaphore(0)

    def items():
        for number in range(9):
            read.append(number)
            asked.release()
            yield number

    unread = items()
    with read_ahead(unread) as ahead:
        assert asked._value == 0  # nothing before the first is asked for
        assert next(ahead) == 0
        assert all(asked.acquire(timeout=10) for _ in range(2))
        assert not asked.acquire(timeout=0.1)
    unread.close()  # fails if a thread still runs it
    assert read == [0, 1]


def test_calls_are_made_by_a_thread_in_order_and_are_done_at_the_end():
    done, main, go_on = [], threading.get_ident(), threading.Event()

    def write(name: str) -> None:
        go_on.wait(10)
        done.append((name, threading.get_ident() != main))

    with write_behind() as behind:
        behind(write, "first")  # returns before it is done
        assert done == []
        go_on.set()
        behind(write, "second")
        assert done[0] == ("first", True)
    assert [name for name, _ in done] == ["first", "second"]


@pytest.mark.parametrize("later", [[], [print]])
def test_an_error_of_a_call_is_raised_by_the_next_or_at_the_end(later):
    def fail() -> None:
        raise OSError("disk full")

    called = []
    with pytest.raises(OSError, match="disk full"), write_behind() as behind:
        behind(fail)
        for _ in later:
            behind(called.append, 1)
    assert called == []
