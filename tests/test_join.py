"""Results of several comparisons joined without the models, and what rows are summed up to."""

from dataclasses import replace

import numpy as np
import pytest

from gemcut.errors import UsageError
from gemcut.eval.assemble import assemble, cluster_of, covering
from gemcut.eval.comparison import Comparison, Report
from gemcut.eval.join import join
from gemcut.eval.scoring.column import CANDIDATE
from gemcut.score import Scores
from tests.reports import FILES, comparison, report


@pytest.fixture(scope="module")
def whole() -> Comparison:
    return comparison(dict(list(FILES.items())[:5]))


def part(whole: Comparison, files: slice = slice(None), chunks: slice = slice(None)) -> Comparison:
    """What a comparison of some files on some chunks would have found."""
    assert whole.sizes is not None
    kept = np.zeros(len(whole.chunks), bool)
    kept[chunks] = True
    within = np.repeat(kept, [chunk.n_scored for chunk in whole.chunks])
    candidates = list(whole.files)[files]
    rows = [
        replace(row, scores=row.scores.where(within), letters="")
        for row in whole.rows
        if row.column.role != CANDIDATE or row in candidates
    ]
    pieces, sizes = (
        [c for c, keep in zip(whole.chunks, kept, strict=True) if keep],
        whole.sizes[kept],
    )
    return assemble(covering(whole.protocol, pieces, sizes), pieces, sizes, rows)


def values(found: Comparison) -> dict[str, tuple[float, str]]:
    return {row.column.key: (row.summary.kld.value, row.letters) for row in found.files}


def test_two_halves_of_the_files_join_to_what_all_of_them_gave(whole):
    halves = [part(whole, slice(0, 3)), part(whole, slice(3, None))]

    (found,) = join([Report((half,)) for half in halves]).comparisons

    assert values(found) == values(whole)
    assert found.effects == whole.effects
    assert found.pairs == whole.pairs


def test_a_result_without_the_bytes_of_its_chunks_is_refused(whole):
    """They are kept with the scores: a folder that lacks them was damaged."""
    with pytest.raises(UsageError, match="it is damaged; compare anew"):
        join([Report((replace(whole, sizes=None),)), Report((whole,))])


def test_files_are_compared_on_the_chunks_that_both_results_have(whole):
    one, other = part(whole, slice(0, 3), slice(0, 30)), part(whole, slice(3, None), slice(10, 40))

    (found,) = join([Report((one,)), Report((other,))]).comparisons

    assert found.protocol.n_chunks == 20
    assert values(found) == values(part(whole, chunks=slice(10, 30)))


def test_chunks_that_were_read_in_another_order_are_put_in_order(whole):
    """Whoever names the texts the other way round must not be held against other tokens."""
    turned = replace(
        part(whole),
        chunks=whole.chunks[::-1],
        sizes=whole.sizes[::-1],
        rows=tuple(replace(row, scores=_turned(row.scores, whole)) for row in part(whole).rows),
    )

    (found,) = join([Report((part(whole, slice(0, 2)),)), Report((turned,))]).comparisons

    assert values(found) == values(part(whole))
    for row, known in zip(found.rows, part(whole).rows, strict=True):
        np.testing.assert_array_equal(row.scores.nll, known.scores.nll)


def _turned(scores: Scores, whole: Comparison) -> Scores:
    n = whole.chunks[0].n_scored
    return scores.where(np.arange(len(scores.nll)).reshape(-1, n)[::-1].ravel())


def test_of_a_row_that_both_have_the_one_with_scores_is_kept(whole):
    failed = [
        replace(row, scores=None, summary=None, failure="it crashed")
        if row.column.role == CANDIDATE
        else row
        for row in whole.rows
    ]

    (found,) = join([Report((replace(whole, rows=tuple(failed)),)), Report((whole,))]).comparisons

    assert not any(row.failure for row in found.rows)
    assert values(found) == values(whole)


def test_results_on_other_text_are_refused(whole):
    one, other = part(whole, chunks=slice(0, 20)), part(whole, chunks=slice(20, 40))

    with pytest.raises(UsageError, match="share 0 chunks"):
        join([Report((one,)), Report((other,))])


def test_results_of_another_protocol_are_refused(whole):
    other = replace(whole, protocol=replace(whole.protocol, framing="raw"))

    with pytest.raises(UsageError, match="nothing in these results can be compared.*raw"):
        join([Report((whole,)), Report((other,))])


def test_tasks_and_files_are_joined_too():
    one = report()
    shorter = replace(one.tasks[0], rows=one.tasks[0].rows[:2])

    found = join([replace(one, tasks=(shorter,), files=one.files[:3]), one])

    assert [row.name for row in found.tasks[0].rows] == [row.name for row in one.tasks[0].rows]
    assert {each.name for each in found.files} == {each.name for each in one.files}


def test_a_floor_of_few_chunks_is_joined_on_those(whole):
    some = (3, 12, 25)
    lengths = np.array([chunk.n_scored for chunk in whole.chunks])
    within = np.repeat(np.isin(np.arange(len(lengths)), some), lengths)
    floor = replace(whole.floor, chunks=some, scores=whole.floor.scores.where(within))
    rows = [floor if row is whole.floor else row for row in whole.rows]
    found = assemble(whole.protocol, whole.chunks, whole.sizes, rows)

    (joined,) = join([Report((found,)), Report((part(whole, chunks=slice(10, 40)),))]).comparisons

    assert found.floor.summary.kld.value == pytest.approx(floor.scores.divergence.kld.mean())
    assert joined.floor.chunks == (2, 15)


# --- summing up ----------------------------------------------------------------------------------


def test_domains_are_summed_up_from_their_own_chunks(whole):
    row = whole.files[0]
    lengths = [chunk.n_scored for chunk in whole.chunks]
    domains = np.array([whole.protocol.texts[chunk.text].domain for chunk in whole.chunks])

    for domain, summary in row.by_domain.items():
        of_domain = np.repeat(domains == domain, lengths)
        assert summary.kld.value == pytest.approx(row.scores.divergence.kld[of_domain].mean())
    assert set(row.by_domain) == set(domains)


def test_weights_and_cache_are_told_apart(whole):
    by_name = {row.column.name: row.summary.kld.value for row in whole.files}

    assert whole.effects
    for effect in whole.effects:
        kind = f"(KV {effect.type_k}/{effect.type_v})"
        assert effect.file in FILES
        assert effect.both == by_name[f"{effect.file} {kind}"]
        assert effect.weights == by_name[effect.file]


def test_many_texts_are_the_clusters_few_are_not(whole):
    few = [replace(chunk, text=number % 3) for number, chunk in enumerate(whole.chunks)]
    many = [replace(chunk, text=number % 12) for number, chunk in enumerate(whole.chunks)]

    assert cluster_of(few)[0] == "chunk" and len(set(cluster_of(few)[1])) == len(few)
    assert cluster_of(many)[0] == "text" and len(set(cluster_of(many)[1])) == 12
