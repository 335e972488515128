"""What workers read of the driver's notice, through a real cluster's key-value store."""

import pytest
import ray
from ray.exceptions import RaySystemError

from tuner.tuning.ray_backend import notices
from tuner.tuning.ray_backend.notices import Notice, NoticeBoard, NoticeReader

ENDING = Notice(is_ending=True, is_over=True, leaving=("n",))


@pytest.mark.ray
def test_a_worker_reads_the_newest_notice_of_its_own_search(session: None) -> None:
    @ray.remote
    def read(key: str) -> Notice | None:
        return NoticeBoard(key).read()

    one, two = NoticeBoard("/runs/one:1"), NoticeBoard("/runs/one:2")
    assert ray.get(read.remote(one.key)) is None
    one.post(Notice(is_ending=True))
    one.post(ENDING)
    assert ray.get(read.remote(one.key)) == ENDING
    assert ray.get(read.remote(two.key)) is None
    one.close()
    assert ray.get(read.remote(one.key)) is None


class Board:
    """A board that can be out of reach."""

    def __init__(self) -> None:
        self.notice: Notice | None = None
        self.num_reads = 0
        self.is_away = False

    def read(self) -> Notice | None:
        self.num_reads += 1
        if self.is_away:
            raise RaySystemError("no answer")
        return self.notice


def test_a_reader_asks_twice_a_second_and_keeps_what_it_has_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    monkeypatch.setattr(notices.time, "monotonic", lambda: clock)
    board = Board()
    reader = NoticeReader(board, "n")  # type: ignore[arg-type]
    for _ in range(100):
        clock += 0.02
        assert not reader.is_over()
    assert board.num_reads == 4
    assert not reader.should_migrate
    board.notice = ENDING
    clock += 0.5
    assert reader.is_over()
    assert reader.should_migrate
    board.is_away = True
    assert reader.look() == ENDING
