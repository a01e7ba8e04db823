"""The demo: the whole way, from the checkpoint in the package to a comparison."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gemcut.demo import text
from gemcut.demo.walk import REFERENCE, TARGETS, Walk, walk


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        done = [0]

        def advance(count: int) -> None:
            done[0] += count

        yield advance
        assert done[0] == total

    @contextmanager
    def steps(self, label: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return walk(tmp_path_factory.mktemp("demo"), Listener(), threads=1, chunks=4)


def test_every_file_is_scored_and_timed(walked: Walk):
    """The table has a row for each file, the reference first."""
    (comparison,) = walked.report.comparisons
    assert comparison.reference.column.name == REFERENCE
    assert [row.column.name for row in comparison.files] == [
        name for name in TARGETS if name != REFERENCE
    ]
    assert [each.name for each in walked.report.files] == [*TARGETS]
    assert all(each.speed.decode > 0 for each in walked.report.files)


def test_the_model_has_really_learned(walked: Walk):
    """Held-out perplexity is far below the vocabulary's size, and Q8_0 hardly changes it."""
    plain, eight = (row.summary.perplexity.value for row in walked.report.comparisons[0].rows[:3:2])

    assert plain < 40
    assert abs(eight / plain - 1) < 0.01


def test_budgets_are_kept(walked: Walk):
    """The file made for a size is not larger."""
    for name, target in TARGETS.items():
        if target.size:
            assert (walked.folder / name).stat().st_size <= target.size


def test_what_to_type_next_is_there(walked: Walk):
    """The files that the next steps name exist."""
    for name in ("checkpoint/config.json", "held-out.txt"):
        assert (walked.folder / name).exists()
    assert any(str(walked.cut) in line for line in walked.next_steps)


def test_held_out_modules_are_not_trained_on():
    """No training text is one of the modules that scores are taken on."""
    held_out = [(text.library() / name).read_text() for name in text.HELD_OUT]

    assert len(held_out) == len(text.HELD_OUT)
    assert not set(held_out) & set(text.training_sources())
