"""Progress of loading: enough of it, and never too much."""

import pytest

from server.runners.load_progress import LoadProgress
from server.runners.messages import Loading


class Listener:
    """Hears the progress, at times that the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.heard: list[tuple[str, float]] = []
        self.tell = LoadProgress(self._hear, lambda: self.now)

    def _hear(self, message: Loading) -> None:
        self.heard.append((message.stage, message.fraction))


@pytest.fixture
def listener() -> Listener:
    """Return a listener that has heard nothing yet."""
    return Listener()


def test_a_thousand_words_a_second_are_told_four_times(listener: Listener) -> None:
    """In between nothing is sent, and what is sent is the newest."""
    for number in range(1001):
        listener.now = 100 + number / 1000
        listener.tell("transformer", number / 1001)
    assert listener.heard[0] == ("transformer", 0.0)
    assert [round(fraction, 1) for _, fraction in listener.heard] == [0.0, 0.2, 0.5, 0.7, 1.0]


def test_the_last_word_of_each_stage_is_told(listener: Listener) -> None:
    """Also of one that ends before it is whole, and of the one that nothing comes after."""
    for stage, fraction in (("a", 0.0), ("a", 0.4), ("a", 0.6), ("b", 0.0), ("b", 1.0), ("c", 0.0)):
        listener.tell(stage, fraction)
    listener.tell("c", 0.123456)
    listener.tell.flush()
    listener.tell.flush()
    assert listener.heard == [
        ("a", 0.0),
        ("a", 0.6),
        ("b", 0.0),
        ("b", 1.0),
        ("c", 0.0),
        ("c", 0.123),
    ]
