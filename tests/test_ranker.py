"""Promises of the Ranker: the frozen order until clicks say otherwise, clicks that count however they come, and a way back."""

import pickle
import threading
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given, settings
from hypothesis import strategies as st

import sona
from sona import Ranker
from sona.errors import SonaClosedError, SonaTypeError, SonaValueError, SonaVersionError
from sona.ranker.clicks import CLIP, DOUBT, TEMPERATURE, Examination, click_gradient, click_weight
from sona.ranker.documents import CORRECTED, Documents, key_of, pack, unpack
from sona.ranker.guard import FROZEN, LEARNED, Guard, draft

DIM = 24


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, DIM)))


def learned(ranker):
    """All bits that a click may change."""
    return [name.encode() + array.tobytes() for name, array in ranker.engine.state().items()]


def orders(ranker, k=10):
    """What it would serve for fifty queries, without lists that are shared."""
    return [ranker._documents.top(ranker.engine.apply(q), k)[0] for q in vectors(50, seed=9)]


class Town:
    """Queries that miss their document by the same turn of the space, and by one of each document's own."""

    def __init__(self, n=300, seed=0):
        self.random = np.random.default_rng(seed)
        self.documents = vectors(n, seed)
        self.turn = 0.9 * self.random.standard_normal(DIM) / np.sqrt(DIM)
        self.own = 0.7 * vectors(n, seed + 1)

    def query(self, target):
        return unit(self.documents[target] + self.turn + self.own[target] + 0.3 * self.random.standard_normal(DIM) / np.sqrt(DIM))

    def found(self, ranker, count=300):
        """Mean reciprocal rank within ten."""
        total = 0.0
        for _ in range(count):
            target = int(self.random.integers(len(self.documents)))
            shown = ranker._documents.top(ranker.engine.apply(self.query(target)), 10)[0]
            total += 1 / (1 + shown.index(target)) if target in shown else 0.0
        return total / count

    def visit(self, ranker, count):
        for _ in range(count):
            target = int(self.random.integers(len(self.documents)))
            ranking = ranker.rank(self.query(target))
            looked = self.random.random(len(ranking.documents)) < ranking.propensities
            ranker.feedback(ranking.id, [d for d, seen in zip(ranking.documents, looked, strict=True) if seen and d == target])


# ---- rankings ----


def test_without_clicks_the_order_is_the_cosine_similarity():
    documents = vectors(200) * np.arange(1, 201)[:, None].astype(np.float32)  # any norm
    ranker, query = Ranker(documents), vectors(1, seed=3)[0]
    ranking = ranker.rank(1000 * query, k=7)
    expected = unit(documents) @ query
    assert list(ranking.documents) == list(np.argsort(-expected)[:7])
    np.testing.assert_allclose(ranking.scores, np.sort(expected)[::-1][:7], rtol=1e-5)
    np.testing.assert_allclose(ranking.propensities, 1 / np.arange(1, 8), rtol=1e-6)


def test_norms_count_where_they_are_to():
    documents = {"near": [1.0, 0.1], "far": [3.0, 9.0]}
    assert Ranker(documents).rank([1.0, 0.0]).documents == ("near", "far")
    assert Ranker(documents, normalize=False).rank([1.0, 0.0]).documents == ("far", "near")


def test_candidates_are_ranked_alone():
    ranker = Ranker(vectors(100), [f"d{i}" for i in range(100)])
    query = vectors(1, seed=3)[0]
    everything = ranker.rank(query, k=100)
    some = ranker.rank(query, k=2, candidates=["d5", "gone", "d7", "d9", "d5"])
    assert some.documents == tuple(d for d in everything.documents if d in ("d5", "d7", "d9"))[:2]
    assert ranker.rank(query, candidates=[]).documents == ()


def test_documents_come_and_go():
    ranker = Ranker({}, dim=2)
    assert ranker.rank([1.0, 0.0]).documents == ()
    ranker.add({"a": [1.0, 0.0], 7: [0.0, 1.0]})
    assert ranker.rank([1.0, 0.2]).documents == ("a", 7)
    ranker.add([[0.0, 1.0], [1.0, 0.1]], ["a", "b"])  # another vector
    assert ranker.rank([1.0, 0.0]).documents[0] == "b"
    ranker.remove("b")
    assert "b" not in ranker
    assert len(ranker) == 2
    assert set(ranker.rank([1.0, 0.0]).documents) == {"a", 7}
    with pytest.raises(SonaValueError, match="'b'"):
        ranker.remove("b")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_what_is_served_is_what_was_added_and_not_removed(steps):
    made, here = Documents(DIM), {}
    made.restore({"keys": np.array([key_of(3)], np.uint64), "corrections": np.ones((1, DIM), np.float32)})
    for number, (adds, id) in enumerate(steps):
        if adds:
            here[id] = vectors(1, seed=number)[0]
            made.add([id], here[id][None])
        elif id in here:
            del here[id]
            made.remove(id)
    query = vectors(1, seed=99)[0]
    served = {id: vector + (1 if id == 3 else 0) for id, vector in here.items()}
    expected = sorted(served, key=lambda id: -float(served[id] @ query))
    found, scores = made.top(query, 20)
    assert sorted(found) == sorted(expected)
    np.testing.assert_allclose(scores, [served[id] @ query for id in found], atol=1e-5)
    assert len(made) == len(here)


# ---- what a click says ----


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_a_click_is_the_gradient_of_its_likelihood(k, seed):
    random = np.random.default_rng(seed)
    scores, clicked = random.uniform(-0.5, 1, k), int(random.integers(k))

    def log_pi(s):
        z = s / TEMPERATURE
        return z[clicked] - z.max() - np.log(np.exp(z - z.max()).sum())

    eps = 1e-6
    slope = np.array([(log_pi(scores + eps * e) - log_pi(scores - eps * e)) / (2 * eps) for e in np.eye(k)]) * TEMPERATURE
    pi = np.exp(log_pi(scores))
    np.testing.assert_allclose(click_gradient(scores, clicked), slope * pi / (pi + DOUBT), atol=1e-7)


def test_a_click_where_few_look_counts_more_up_to_a_bound():
    assert [click_weight(p) for p in (1.0, 0.8, 0.01)] == [1, 1.25, CLIP]


def test_examination_is_a_power_law_or_what_is_given():
    np.testing.assert_allclose(Examination(0.5)(4), [1, 2**-0.5, 3**-0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(Examination([1.0, 0.4])(4), [1, 0.4, 0.4, 0.4], rtol=1e-6)
    assert Examination(0)(3).tolist() == [1, 1, 1]
    for wrong in (-1, [], [0.5, 0.0], [1.5], float("nan")):
        with pytest.raises(SonaValueError, match="examination: expected"):
            Examination(wrong)
    with pytest.raises(SonaTypeError, match="examination: expected"):
        Examination("1")


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.floats(-2, 2, width=32)), max_size=12))
def test_keys_travel_through_floats(rows):
    packed = pack([key for key, _ in rows], np.array([g for _, g in rows]))
    assert [key for key, _ in unpack(packed)] == [key for key, _ in rows]


def test_text_and_numbers_are_other_ids():
    assert key_of(1) != key_of("1")


def test_clicks_teach_what_the_embedding_misses():
    town = Town()
    ranker = Ranker(town.documents)
    before = town.found(ranker)
    town.visit(ranker, 1000)
    assert town.found(ranker) > before + 0.05
    assert not ranker.stats()["serves_frozen"]


def test_a_query_that_was_clicked_finds_its_document_again():
    ranker, query = Ranker(vectors(100), guard=False), vectors(1, seed=5)[0]
    wanted = ranker.rank(query).documents[3]
    for _ in range(40):
        ranking = ranker.rank(query)
        ranker.clicked(ranking.id, wanted)
    assert ranker.rank(query).documents[0] == wanted


# ---- how clicks come ----


def test_a_click_counts_once_and_late():
    ranker = Ranker(vectors(100), guard=False)
    rankings = [ranker.rank(q) for q in vectors(20, seed=2)]
    first = rankings[0]
    assert ranker.clicked(first.id, first.documents[2])
    once = learned(ranker)
    assert ranker.clicked(first.id, first.documents[2])
    assert ranker.feedback(first.id, [first.documents[2]] * 2)
    assert learned(ranker) == once
    assert ranker.stats()["clicks"] == 1


def test_a_click_that_is_taken_back_leaves_the_documents_as_they_were():
    ranker = Ranker(vectors(100), guard=False)
    query = vectors(1, seed=2)[0]
    ranking = ranker.rank(query)
    before = ranker._documents.top(query, 100)
    ranker.feedback(ranking.id, ranking.documents[1:3])
    assert ranker._documents.top(query, 100)[1].tolist() != before[1].tolist()
    ranker.feedback(ranking.id, [])
    np.testing.assert_allclose(ranker._documents._rows.served, ranker._documents._rows.given, atol=1e-7)
    np.testing.assert_allclose(ranker._documents.top(ranker.engine.apply(query), 100)[1], before[1], atol=0.01)
    assert ranker.stats()["clicks"] == 0
    ranker.feedback(ranking.id, ranking.documents[1:3])
    assert ranker.stats()["clicks"] == 2


def test_unknown_rankings_are_counted_and_strange_documents_named():
    ranker = Ranker(vectors(50), pending=2, guard=False)
    old, *_, new = [ranker.rank(q) for q in vectors(3, seed=2)]
    assert not ranker.clicked(old.id, old.documents[0])  # expired
    assert not ranker.feedback(12345, [])
    assert ranker.stats()["unknown_feedback"] == 2
    before = learned(ranker)
    other = next(d for d in range(50) if d not in new.documents)
    with pytest.raises(SonaValueError, match=f"ranking {new.id}: expected one of the documents that it showed, got {other}"):
        ranker.clicked(new.id, other)
    with pytest.raises(SonaValueError, match="showed"):
        ranker.feedback(new.id, [new.documents[0], other])
    with pytest.raises(SonaTypeError, match="clicks"):
        ranker.feedback(new.id, "abc")
    assert learned(ranker) == before
    ranker.remove(new.documents[0])
    assert not ranker.clicked(new.id, new.documents[0])
    assert ranker.feedback(new.id, [new.documents[0], new.documents[1]])


def test_a_list_of_one_teaches_nothing():
    ranker = Ranker(vectors(50), guard=False)
    before = learned(ranker)
    ranking = ranker.rank(vectors(1, seed=3)[0], k=1)
    assert ranker.clicked(ranking.id, ranking.documents[0])
    assert learned(ranker) == before


@pytest.mark.parametrize(
    ("query", "options", "error"),
    [
        (np.ones(DIM + 1), {}, SonaValueError),
        (np.full(DIM, np.nan), {}, SonaValueError),
        ("text", {}, SonaTypeError),
        (np.ones(DIM), {"k": 0}, SonaValueError),
        (np.ones(DIM), {"k": 2.5}, SonaTypeError),
        (np.ones(DIM), {"candidates": [1.5]}, SonaTypeError),
    ],
)
def test_a_bad_query_changes_nothing(query, options, error):
    ranker = Ranker(vectors(20))
    with pytest.raises(error, match="expected"):
        ranker.rank(query, **options)
    assert ranker.stats()["rankings"] == ranker.stats()["pending"] == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (([[1.0, np.inf]],), {}, SonaValueError),
        (([[1.0], [2.0]], ["a"]), {}, SonaValueError),
        (([[1.0], [2.0]], ["a", "a"]), {}, SonaValueError),
        (([[1.0]], [1.5]), {}, SonaTypeError),
        (({},), {}, SonaValueError),
        (({"a": [1.0]}, ["a"]), {}, SonaValueError),
        (([[1.0]],), {"pending": 0}, SonaValueError),
        (([[1.0]],), {"examination": -1.0}, SonaValueError),
    ],
)
def test_bad_documents_are_refused(arguments, options, error):
    with pytest.raises(error, match="expected"):
        Ranker(*arguments, **options)


def test_the_largest_and_the_smallest_queries_find_the_same():
    ranker, query = Ranker(vectors(50), guard=False), vectors(1, seed=3)[0]
    expected = ranker.rank(query).documents
    for factor in (1e-30, 1e30, 1e37):
        assert ranker.rank((factor * query.astype(np.float64)).astype(np.float32)).documents == expected
    assert len(ranker.rank(np.zeros(DIM)).documents) == 10


# ---- the guard ----


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 10), st.integers(0, 99))
def test_a_shared_list_is_fair(learned_order, frozen_order, k, seed):
    shown, teams = draft(learned_order, frozen_order, k, Random(seed))
    assert len(shown) == len(set(shown)) == min(k, 8) == len(teams)
    same = next((i for i in range(8) if learned_order[i] != frozen_order[i]), 8)
    assert teams[:same] == [0] * min(same, k)
    assert abs(sum(teams)) <= 1  # none is a whole round ahead
    for team, order in ((LEARNED, learned_order), (FROZEN, frozen_order)):
        picks = [order.index(document) for document, of in zip(shown, teams, strict=True) if of == team]
        assert picks == sorted(picks)


def test_frozen_takes_over_when_users_like_it_better_and_hands_back():
    guard = Guard()
    for _ in range(6):
        guard.count(0, FROZEN)
    assert guard.serves_frozen
    guard.count(FROZEN, LEARNED)  # a click came later
    for _ in range(6):
        guard.count(0, LEARNED)
    assert not guard.serves_frozen
    other = Guard()
    other.restore(guard.state())
    assert (other.wins, other.serves_frozen) == (guard.wins, guard.serves_frozen)
    with pytest.raises(SonaValueError, match="guard"):
        other.restore({"wins": np.array([np.nan, 0, 0])})


def test_a_fair_coin_seldom_takes_the_learned_order_out_of_service():
    out = 0
    for seed in range(20):
        guard, random = Guard(), Random(seed)
        for _ in range(300):
            guard.count(0, LEARNED if random.random() < 0.5 else FROZEN)
            out += guard.serves_frozen
    assert out < 0.2 * 20 * 300


def test_an_order_that_users_pass_over_is_taken_out_of_service():
    town = Town()
    ranker = Ranker(town.documents, seed=1)
    keys = np.array([key_of(i) for i in range(300)], np.uint64)
    harm = {"beside.keys": keys, "beside.corrections": 2 * vectors(300, seed=77), "beside.wins": np.zeros(3)}
    ranker.engine.restore({**ranker.engine.state(), **harm})
    town.visit(ranker, 800)
    assert ranker.stats()["serves_frozen"]
    assert {ranker.rank(q).order for q in vectors(200, seed=5)} == {"frozen", "shared"}


def test_switched_off_it_is_the_frozen_order_and_learns_nothing():
    town = Town()
    ranker, frozen = Ranker(town.documents), Ranker(town.documents, guard=False)
    town.visit(ranker, 200)
    ranker.engine.enabled = False
    for query in vectors(20, seed=4):
        off, plain = ranker.rank(query), frozen.rank(query)
        assert off.order == "frozen"
        assert off.documents == plain.documents
        assert off.scores.tobytes() == plain.scores.tobytes()
    before = learned(ranker)
    ranker.feedback(off.id, off.documents[:1])
    assert learned(ranker) == before


# ---- what stays ----


def test_a_restart_goes_on_where_it_was(tmp_path: Path):
    town = Town()
    with Ranker(town.documents, store=tmp_path / "sona.db") as ranker:
        town.visit(ranker, 200)
        expected, before = orders(ranker), learned(ranker)
    with Ranker(town.documents, store=tmp_path / "sona.db") as again:
        assert orders(again) == expected
        assert learned(again) == before
    with pytest.raises(SonaClosedError, match="ranker"):
        again.rank(vectors(1)[0])


KILLED = """
import os, sys, numpy as np
from sona import Ranker
town = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
ranker = Ranker(town, store=sys.argv[1], guard=False)
for query in np.random.default_rng(1).standard_normal((40, 16)):
    ranking = ranker.rank(query)
    ranker.clicked(ranking.id, ranking.documents[2])
ranking = ranker.rank(query)
ranker.clicked(ranking.id, ranking.documents[1], sync=True)
np.save(sys.argv[2], ranker._documents.state()["corrections"])
np.save(sys.argv[3], ranker.engine.adapters[0].delta())
os.kill(os.getpid(), 9)
"""


def test_a_kill_loses_no_click_that_was_acknowledged(tmp_path: Path, run_python: RunPython):
    run_python(KILLED, tmp_path / "sona.db", tmp_path / "c.npy", tmp_path / "delta.npy", code=-9)
    town = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    with Ranker(town, store=tmp_path / "sona.db") as ranker:
        np.testing.assert_allclose(ranker._documents.state()["corrections"], np.load(tmp_path / "c.npy"), atol=1e-6)
        np.testing.assert_allclose(ranker.engine.adapters[0].delta(), np.load(tmp_path / "delta.npy"), atol=1e-5)


def test_who_does_not_hold_the_store_has_its_clicks_learned_by_who_does(tmp_path: Path):
    documents = vectors(100)
    with Ranker(documents, store=tmp_path / "sona.db", guard=False) as leads, Ranker(documents, store=tmp_path / "sona.db") as follows:
        ranking = follows.rank(vectors(1, seed=2)[0])
        assert follows.clicked(ranking.id, ranking.documents[2], sync=True)
        assert not follows.stats()["corrected"]
        assert leads.engine.journal is not None
        leads.engine.journal.poll()
        assert leads.stats()["corrected"] == 10
        leads.engine.journal.save()
        assert follows.engine.journal is not None
        follows.engine.journal.poll()
        assert orders(follows) == orders(leads)


def test_a_snapshot_holds_what_was_learned_without_the_documents(tmp_path: Path):
    town = Town()
    ranker = Ranker(town.documents)
    town.visit(ranker, 200)
    ranker.save(tmp_path / "snapshot")
    again = Ranker.load(tmp_path / "snapshot", town.documents[:250])
    assert all(d < 250 for order in orders(again) for d in order)
    again.add(town.documents[250:], range(250, 300))
    assert orders(again) == orders(ranker)
    sona.SonaEngine(sona.SonaConfig(hidden_dim=DIM)).save(tmp_path / "engine")
    with pytest.raises(SonaVersionError, match="ranker"):
        Ranker.load(tmp_path / "engine", town.documents)
    with pytest.raises(SonaVersionError, match="dim"):
        Ranker.load(tmp_path / "snapshot", np.eye(DIM + 1))
    with pytest.raises(SonaTypeError, match="pickle"):
        pickle.dumps(ranker)


def test_corrections_are_bounded(monkeypatch: pytest.MonkeyPatch):
    assert CORRECTED * DIM * 4 < 1 << 20
    monkeypatch.setattr("sona.ranker.documents.CORRECTED", 15)
    ranker = Ranker(vectors(100), guard=False)
    for query in vectors(10, seed=2):
        ranking = ranker.rank(query)
        ranker.clicked(ranking.id, ranking.documents[0])
    assert ranker.stats()["corrected"] == 15
    same = (ranker._documents._rows.served == ranker._documents._rows.given).all(1)
    assert same.sum() == 85


def test_a_document_that_goes_while_a_list_is_shared_takes_its_team_along(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sona.ranker.ranker.SHARED", 1.0)
    ranker = Ranker(vectors(100))
    ranker.engine.adapters[0].append(vectors(2, seed=5)[0], vectors(2, seed=6)[0], 3.0)  # another order than the frozen one
    scores = ranker._scores

    def removing(x, ids, *, frozen):
        ranker.remove(ids[-1])
        return scores(x, ids, frozen=frozen)

    monkeypatch.setattr(ranker, "_scores", removing)
    for query in vectors(5, seed=2):
        ranking = ranker.rank(query)
        assert (ranking.order, len(ranking.documents)) == ("shared", 9)
        assert ranker.clicked(ranking.id, ranking.documents[-1])


def test_clicks_are_taken_back_although_the_new_one_is_on_a_document_that_has_gone():
    ranker = Ranker(vectors(50))
    ranking = ranker.rank(vectors(1, seed=2)[0])
    first, second = ranking.documents[:2]
    assert ranker.clicked(ranking.id, first)
    ranker.remove(second)
    assert ranker.feedback(ranking.id, [second])
    assert (ranker.stats()["clicks"], ranker.stats()["unknown_feedback"]) == (0, 0)
    assert not ranker.clicked(ranking.id, second)
    assert ranker.stats()["unknown_feedback"] == 1


def test_documents_come_and_go_while_others_rank_and_click():
    documents = vectors(300)
    ranker, failed, done = Ranker(documents[:200]), [], threading.Event()

    def serve(seed):
        try:
            random = np.random.default_rng(seed)
            while not done.is_set():
                ranking = ranker.rank(random.standard_normal(DIM))
                assert len(set(ranking.documents)) == len(ranking.documents) <= 10  # without what was removed meanwhile
                assert np.isfinite(ranking.scores).all()
                if ranking.documents:
                    ranker.clicked(ranking.id, ranking.documents[int(random.integers(len(ranking.documents)))])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        ranker.add({200 + turn: documents[200 + turn]})
        ranker.remove(turn)
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(ranker) == 200
    assert len(ranker.rank(np.ones(DIM)).documents) == 10
    assert np.isfinite(ranker._documents.state()["corrections"]).all()


def test_a_ranker_with_a_store_is_closed_in_a_forked_child(tmp_path: Path, run_python: RunPython) -> None:
    run_python(
        """
        import os, sys
        import numpy as np
        from sona import Ranker
        from sona.errors import SonaClosedError

        ranker = Ranker(np.eye(4), store=sys.argv[1])
        if (pid := os.fork()) == 0:
            try:
                ranker.rank(np.ones(4))
            except SonaClosedError as error:
                os._exit(0 if "Ranker(...)" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert ranker.clicked(ranker.rank(np.ones(4)).id, 0, sync=True)
        ranker.close()
        """,
        tmp_path / "s.db",
    )
