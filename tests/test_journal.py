"""Promises of a Router with a store: what was acknowledged is learned exactly once, by whichever process, after whatever end."""

import itertools
import logging
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython, StartPython
from reference import Clusters, PolicyRule

from sona import Router, SonaEngine
from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops.background import BackgroundLoopConfig
from sona.loops.journal import Journal, decode_state, encode_state
from sona.patterns import PatternConfig
from sona.store import FeedbackRow, SqliteStore, open_store

Array = np.ndarray[Any, Any]

SEED = 2


def world() -> Clusters:
    return Clusters(SEED)


def open_router(path: Path | str | SqliteStore | None, **options: Any) -> Router:
    return Router(world().arms, store=path, **({"seed": 1} | options))


def serve(router: Router, source: Clusters, rounds: int, **feedback: Any) -> None:
    for _ in range(rounds):
        x, best = source.draw()
        d = router.route(x)
        assert router.feedback(d.id, float(d.index == best), **feedback)


def looks(router: Router) -> Array:
    """What the router makes of fixed requests; leaves no trace."""
    return router.apply_batch(np.stack([x for x, _ in (Clusters(77).draw() for _ in range(40))]))


def journal_of(router: Router) -> Journal:
    assert router.engine.journal is not None
    return router.engine.journal


def poll(router: Router) -> None:
    """What happens a second later: rows are written, and the store is looked at."""
    router.flush()
    journal_of(router).poll()


def learned_bits(router: Router) -> list[bytes]:
    """All but the ids and the time of drift alarms, which are those of a session."""
    kept = router.engine.state().items()
    return [name.encode() + array.tobytes() for name, array in kept if name not in ("drift.ids", "drift.alarms", "drift.time")]


# ---- restarts ----


@pytest.mark.parametrize("explore", ["greedy", "thompson"])
@pytest.mark.parametrize("precondition", ["identity", "full"])
def test_a_restart_goes_on_bit_for_bit(tmp_path: Path, precondition: Any, explore: Any) -> None:
    """Closed and opened twice on the way, a router decides and learns what one that was never closed does."""
    answers = []
    for stops in ((), (150, 300)):
        path = tmp_path / f"{len(stops)}.db"
        source, seen = world(), []
        router = open_router(path, precondition=precondition, explore=explore)
        for t in range(600):
            if t in stops:
                router.close()
                router = open_router(path, precondition=precondition, explore=explore)
            x, best = source.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.index == best))
            seen.append((d.arm, d.propensity, d.scores.tobytes()))
        answers.append((seen, learned_bits(router), router.stats()["guard_weights"]))
        router.close()
    assert answers[0] == answers[1]


def test_a_state_is_not_replayed_on_top_of_itself(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as router:
        serve(router, world(), 100)
        kept = learned_bits(router)
    for _ in range(2):
        with open_router(tmp_path / "s.db") as router:
            assert learned_bits(router) == kept
            assert router.stats()["engine"]["store"]["replayed"] == 0


def test_flushing_before_the_end_loses_no_state(tmp_path: Path) -> None:
    """Nothing is left to write at the end but the state itself."""
    with open_router(tmp_path / "s.db") as router:
        serve(router, world(), 50)
        router.flush()
        kept = looks(router)
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.get_state("default") is not None
    with open_router(tmp_path / "s.db") as router:
        np.testing.assert_array_equal(looks(router), kept)


def test_a_warm_start_outlives_a_crash(tmp_path: Path, run_python: RunPython) -> None:
    script = """
        import os, sys, numpy as np
        from test_journal import looks, open_router, world
        router = open_router(sys.argv[1])
        source = world()
        router.warm_start([(x, best, 1.0) for x, best in (source.draw() for _ in range(50))])
        np.save(sys.argv[2], looks(router))
        os._exit(3)
    """
    run_python(script, tmp_path / "s.db", tmp_path / "looks.npy", code=3)
    with open_router(tmp_path / "s.db") as router:
        np.testing.assert_array_equal(looks(router), np.load(tmp_path / "looks.npy"))


def test_ids_are_unique_over_restarts(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(3):
        with open_router(tmp_path / "s.db") as router:
            seen += [router.route(world().draw()[0]).id for _ in range(10)]
    assert len(set(seen)) == 30


# ---- crashes ----

# Rewards come three requests late, one in five is revised, one request in four is over a subset; every tenth reward is waited for.
# Says which rewards are acknowledged; ends where it is told to, or is killed.
CRASH = """
    import os, sys
    from sona.loops.background import BackgroundLoopConfig
    from sona.loops.journal import Journal
    from test_journal import open_router, script_of, world

    path, save_every, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    Journal.__init__.__kwdefaults__["save_every"] = save_every
    router = open_router(path)
    for number, acknowledged in script_of(router, world(), sync_every=10):
        if acknowledged:
            os.write(1, b"%d\\n" % number)
        if number == end:
            os._exit(7)
"""


def script_of(router: Router, source: Clusters, *, sync_every: int = 0) -> Any:
    """Yields (number of rewards so far, whether the last one was waited for) after each reward, for ever."""
    waiting: list[tuple[int, float]] = []
    rewards = itertools.count(1)
    for t in itertools.count():
        x, best = source.draw()
        d = router.route(x, [best, (best + 1) % 6, (best + 3) % 6] if t % 4 == 0 else None)
        waiting.append((d.id, float(d.index == best)))
        if len(waiting) > 3:
            id, reward = waiting.pop(0)
            for value in (1 - reward, reward) if t % 5 == 0 else (reward,):
                number = next(rewards)
                wait = sync_every > 0 and number % sync_every == 0
                assert router.feedback(id, value, sync=wait)
                yield number, wait


def uninterrupted(rewards: int) -> Array:
    """What a router without a store makes of as many rewards of the script."""
    router = open_router(None)
    for number, _ in script_of(router, world()):
        if number == rewards:
            return looks(router)
    raise AssertionError


def check_recovery(path: Path | str, acknowledged: int) -> int:
    """Everything durable is learned once, after one restart and after another; returns how many rewards were durable."""
    with open_store(path) as store:
        durable = store.last_seq()
        assert durable >= acknowledged
        assert len(store.feedback_after(0, 100_000)) == durable
        saved = store.get_state("default") is not None
    want = uninterrupted(durable)
    for _ in range(2):
        with open_router(path) as router:
            assert journal_of(router).leading
            # Where the saved state has a reward that is revised after it, the revision is a difference and no longer exact.
            np.testing.assert_allclose(looks(router), want, atol=2e-2 if saved else 1e-6)
    return durable


@pytest.mark.parametrize(("end", "save_every"), [(57, 2000), (250, 100), (101, 100), (100, 100)])
def test_a_process_that_ends_without_close_loses_nothing_acknowledged(
    end: int, save_every: int, tmp_path: Path, run_python: RunPython
) -> None:
    out = run_python(CRASH, tmp_path / "s.db", save_every, end, code=7).stdout
    acknowledged = int(out.split()[-1])
    assert acknowledged == end - end % 10
    check_recovery(tmp_path / "s.db", acknowledged)


@pytest.mark.parametrize("kill", range(4))
def test_a_killed_process_loses_nothing_acknowledged(kill: int, tmp_path: Path, start_python: StartPython) -> None:
    process = start_python(CRASH, tmp_path / "s.db", 40, 0)
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < 30 + 47 * kill:
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    for line in process.stdout:
        acknowledged = int(line)
    check_recovery(tmp_path / "s.db", acknowledged)


def test_only_what_came_after_the_saved_state_is_replayed(tmp_path: Path, run_python: RunPython) -> None:
    run_python(CRASH, tmp_path / "s.db", 50, 230, code=7)
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.get_state("default") is not None
        durable = store.last_seq()
    with open_router(tmp_path / "s.db") as router:
        assert 0 < router.stats()["engine"]["store"]["replayed"] < durable - 100


# ---- late feedback ----


@pytest.mark.parametrize("candidates", [None, [4, 1]])
def test_feedback_after_a_restart_is_feedback_before_it(candidates: list[int] | None, tmp_path: Path) -> None:
    """A decision of an earlier process, also one over a subset, is learned from as if the process had never ended."""
    outs = []
    for restart in (False, True):
        path = tmp_path / f"{restart}.db"
        router, source = open_router(path), world()
        serve(router, source, 60)
        d = router.route(source.draw()[0], candidates)
        if restart:
            router.close()
            router = open_router(path)
        assert router.feedback(d.id, 1.0)
        outs.append(looks(router))
        router.close()
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)


def test_feedback_from_another_process(tmp_path: Path, run_python: RunPython) -> None:
    with open_router(tmp_path / "s.db") as router:
        d = router.route(world().draw()[0])
        router.flush()
        script = """
            import sys
            from test_journal import open_router
            with open_router(sys.argv[1]) as router:
                assert not router.stats()["engine"]["store"]["leading"]
                assert router.feedback(int(sys.argv[2]), 1.0, source="mobile")
                assert not router.feedback(12345, 1.0)
                assert router.stats()["learned"] == 0
        """
        run_python(script, tmp_path / "s.db", d.id)
        before = router.route(world().draw()[0]).scores[d.index]
        poll(router)
        assert router.stats()["learned"] == 1
        assert router.stats()["engine"]["store"]["replayed"] == 1
        assert router.route(world().draw()[0]).scores[d.index] > before
        poll(router)
        assert router.stats()["learned"] == 1
    with SqliteStore(tmp_path / "s.db") as store:
        ((_, row),) = store.feedback_after(0)
        assert (row.id, row.reward, row.source) == (d.id, 1.0, "mobile")


def test_two_learners_of_one_namespace_are_refused(tmp_path: Path) -> None:
    """They would learn each other's rewards."""
    with open_router(tmp_path / "s.db", name="one") as router:
        d = router.route(world().draw()[0])
        router.feedback(d.id, 1.0)
    with pytest.raises(SonaStoreError, match=r"name: expected 'one', whose state namespace 'default' .* got 'two'"):
        open_router(tmp_path / "s.db", name="two")
    with open_router(SqliteStore(tmp_path / "s.db", namespace="two"), name="two") as router:
        assert router.stats()["engine"]["store"]["replayed"] == 0
    with open_router(tmp_path / "s.db", name="one") as router:
        assert router.route(world().draw()[0]).arm == d.arm


def test_a_revision_after_a_restart_applies_the_difference_once(tmp_path: Path) -> None:
    options = {"guard": False, "precondition": "identity"}
    rule = PolicyRule(dict(enumerate(world().arms)))
    source = world()
    with open_router(tmp_path / "s.db", **options) as router:
        for _ in range(40):
            x, best = source.draw()
            d = router.route(x)
            shown = rule.show(x, d.arm, d.candidates)
            router.feedback(d.id, float(d.index == best))
            rule.learn(shown, float(d.index == best))
        reward = float(d.index != best)
    with open_router(tmp_path / "s.db", **options) as router:
        for same in (1 - reward, 1 - reward):
            assert router.feedback(d.id, same)
        np.testing.assert_allclose(looks(router), looks_of(rule), atol=1e-4)
        assert router.feedback(d.id, reward)
        shown.own, shown.trust = False, None  # what it did to the success rate and to trust is forgotten
        rule.revise(shown, reward, stands=False)
        np.testing.assert_allclose(looks(router), looks_of(rule), atol=1e-4)
        assert router.stats()["revised"] == 1
        assert router.stats()["learned"] == 0
    with open_router(tmp_path / "s.db", **options) as router:
        np.testing.assert_allclose(looks(router), looks_of(rule), atol=1e-4)


def looks_of(rule: PolicyRule) -> Array:
    x = [x for x, _ in (Clusters(77).draw() for _ in range(40))]
    return np.stack([rule.trust.value * row + rule.delta(row) for row in x])


def test_decisions_that_memory_has_no_room_for_are_found_in_the_store(tmp_path: Path) -> None:
    """Four remembered decisions, fifty on the way; also those that the writer has not reached yet, and rewards that come twice."""
    outs = []
    for pending in (4, 8192):
        source = world()
        with open_router(tmp_path / f"{pending}.db", pending=pending) as router:
            rows = []
            for _ in range(50):
                x, best = source.draw()
                d = router.route(x)
                rows.append((d.id, float(d.index == best)))
            for id, reward in rows:
                assert router.feedback(id, reward)
            for id, reward in rows:
                assert router.feedback(id, reward)
            assert router.stats()["learned"] == 50
            assert router.stats()["revised"] == 0
            outs.append(looks(router))
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)


def test_unknown_decisions_cost_no_disk_write(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as router:
        serve(router, world(), 3, sync=True)
        groups = router.stats()["engine"]["store"]["groups"]
        session = router.engine.session
        for id in (1, -1, (session << 40) + 99, (session + 1) << 40, 1 << 70):
            assert router.feedback(id, 1.0, sync=True) is False
        assert router.stats()["engine"]["store"]["groups"] == groups
        assert router.stats()["unknown_feedback"] == 5


def test_arms_that_come_and_go_leave_nothing_behind_and_late_rewards_find_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decision has a set of arms of its own; what the process remembers of the sets is bounded, and a reward may come after all."""
    monkeypatch.setattr("sona.loops.journal.KNOWN_SETS", 8)
    source = world()
    with open_router(tmp_path / "s.db", pending=4) as router:
        made = []
        for n in range(60):
            router.add_arm(f"late{n}", source.draw()[0])
            made.append(router.route(source.draw()[0], [f"late{n}"] if n % 3 == 0 else [n % 6, (n + 1) % 6]))
            router.remove_arm(f"late{n}")
            if n % 20 == 10:
                router.flush()
        router.flush()
        router.flush()
        assert len(journal_of(router)._arm_sets) <= 2
        rewarded = [d.id for d in made if router.feedback(d.id, 1.0)]
        assert rewarded == [d.id for d in made if d.arm in range(6)]
        assert len(rewarded) == 40
        assert len(journal_of(router)._known_sets) <= 8
    with open_router(tmp_path / "s.db") as router:
        assert router.stats()["engine"]["store"]["replayed"] == 0
        assert [d.id for d in made if router.feedback(d.id, 0.0)] == rewarded


@pytest.mark.parametrize("restart", [False, True])
def test_a_reward_that_cannot_be_learned_is_not_kept_either(restart: bool, tmp_path: Path) -> None:
    """Its arm is gone: refused, and the rewards before and after it are learned and kept, once."""
    source = world()
    router = open_router(tmp_path / "s.db")
    gone, other, after = (router.route(source.draw()[0], [k]) for k in (1, 2, 2))
    if restart:
        router.close()
        router = open_router(tmp_path / "s.db")
    assert router.feedback(other.id, 1.0)
    router.remove_arm(1)
    before = learned_bits(router)
    for reward in (1.0, 0.0):
        assert router.feedback(gone.id, reward) is False
    assert learned_bits(router) == before
    assert router.stats()["unknown_feedback"] == 2
    assert router.feedback(after.id, 1.0)
    poll(router)
    learned = learned_bits(router)
    router.close()
    with SqliteStore(tmp_path / "s.db") as store:
        assert [(row.id, row.reward) for _, row in store.feedback_after(0)] == [(other.id, 1.0), (after.id, 1.0)]
    with Router({k: e for k, e in enumerate(source.arms) if k != 1}, store=tmp_path / "s.db", seed=1) as router:
        assert router.stats()["engine"]["store"]["replayed"] == 0
        assert learned_bits(router) == learned


# ---- two processes ----


def test_the_second_router_follows_and_the_first_learns_for_it(tmp_path: Path) -> None:
    source = world()
    with open_router(tmp_path / "s.db") as first, open_router(tmp_path / "s.db") as second:
        assert journal_of(first).leading
        assert not journal_of(second).leading
        before = looks(second)
        serve(second, source, 80)
        np.testing.assert_array_equal(looks(second), before)  # it does not learn by itself
        second.flush()
        poll(first)
        assert first.stats()["learned"] == 80
        assert np.abs(looks(first) - before).max() > 0.01
        journal_of(first).save()
        poll(second)
        np.testing.assert_array_equal(looks(second), looks(first))
        assert second.stats()["engine"]["store"]["leading"] is False


def test_a_follower_learns_nothing_twice_when_it_takes_over(tmp_path: Path) -> None:
    source = world()
    first, second = open_router(tmp_path / "s.db"), open_router(tmp_path / "s.db")
    serve(first, source, 10)
    serve(second, source, 10)
    second.flush()
    poll(first)
    assert first.stats()["learned"] == 20
    kept = looks(first)
    first.close()
    poll(second)
    assert journal_of(second).leading
    assert second.stats()["engine"]["store"]["replayed"] == 0  # the first had learned and saved it all
    np.testing.assert_array_equal(looks(second), kept)
    serve(second, source, 30)
    kept = looks(second)
    second.close()
    with open_router(tmp_path / "s.db") as third:
        np.testing.assert_array_equal(looks(third), kept)


def test_rewards_of_a_follower_survive_a_leader_that_dies_without_a_state(tmp_path: Path, start_python: StartPython) -> None:
    """The leader is killed before it saved anything; the follower's own rewards, written and not yet written, are learned once."""
    script = """
        import sys
        from test_journal import open_router
        router = open_router(sys.argv[1])
        assert router.stats()["engine"]["store"]["leading"]
        print("leading", flush=True)
        sys.stdin.readline()
    """
    leader = start_python(script, tmp_path / "s.db")
    assert leader.stdout is not None
    assert leader.stdout.readline() == "leading\n"
    source, twin = world(), open_router(None)
    requests = [source.draw() for _ in range(40)]
    with open_router(tmp_path / "s.db") as router:
        assert not journal_of(router).leading
        decisions = [router.route(x) for x, _ in requests]
        for d, (_, best) in zip(decisions[:20], requests[:20], strict=True):
            router.feedback(d.id, float(d.index == best))
        router.flush()
        leader.kill()
        leader.wait()
        for d, (_, best) in zip(decisions[20:], requests[20:], strict=True):
            router.feedback(d.id, float(d.index == best))
        journal_of(router).poll()
        assert journal_of(router).leading
        poll(router)
        poll(router)
        assert router.stats()["learned"] == 40
        answers = [twin.route(x) for x, _ in requests]
        for d, (_, best) in zip(answers, requests, strict=True):
            twin.feedback(d.id, float(d.index == best))
        np.testing.assert_allclose(looks(router), looks(twin), atol=1e-5)
        kept = looks(router)
    with open_router(tmp_path / "s.db") as router:
        np.testing.assert_array_equal(looks(router), kept)


def test_a_closed_router_lets_another_lead_although_the_callers_store_stays_open(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        with open_router(store) as router:
            assert journal_of(router).leading
            assert store.lease
        assert not store.closed
        with open_router(tmp_path / "s.db") as router:
            assert journal_of(router).leading


def test_the_last_reward_counts_whoever_reports_it(tmp_path: Path) -> None:
    """An older reward that another process queued does not undo a newer one that the leader has learned already."""
    with open_router(tmp_path / "s.db") as first, open_router(tmp_path / "s.db") as second:
        x = world().draw()[0]
        d = first.route(x)
        first.flush()
        assert second.feedback(d.id, 0.0, sync=True)
        assert first.feedback(d.id, 1.0)
        assert first.feedback(d.id, 0.75)
        kept = looks(first)
        for _ in range(2):
            poll(first)
            np.testing.assert_array_equal(looks(first), kept)
            assert first.stats()["revised"] == 1
        assert second.feedback(d.id, 0.0, sync=True)  # and a newer one does
        poll(first)
        assert first.stats()["revised"] == 2
        assert (looks(first) != kept).any()


def test_two_threads_that_look_at_once_learn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the rewards and learning from them another thread does both."""
    with open_router(tmp_path / "s.db") as first, open_router(tmp_path / "s.db") as second:
        x = world().draw()[0]
        d = first.route(x)
        first.flush()
        for reward in (0.0, 1.0, 0.25):
            assert second.feedback(d.id, reward, sync=True)
        journal, read = journal_of(first), SqliteStore.feedback_after

        def read_and_be_overtaken(self: SqliteStore, *arguments: Any) -> Any:
            rows = read(self, *arguments)
            monkeypatch.setattr(SqliteStore, "feedback_after", read)
            journal.poll()
            return rows

        monkeypatch.setattr(SqliteStore, "feedback_after", read_and_be_overtaken)
        journal.poll()
        assert (first.stats()["learned"], first.stats()["revised"]) == (1, 2)
        assert journal.replayed == 3


def test_a_reward_that_another_thread_came_past_does_not_hide_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own rewards are in the store, and looked at there, before the writer has said so; then another process reports another reward."""
    with open_router(tmp_path / "s.db") as router, SqliteStore(tmp_path / "s.db") as other:
        journal = journal_of(router)
        appended = journal._appended

        def look_first(last: int, rows: list[Any]) -> None:
            journal._replay()
            appended(last, rows)

        monkeypatch.setattr(journal, "_appended", look_first)
        d = router.route(world().draw()[0])
        assert router.feedback(d.id, 1.0, sync=True)
        monkeypatch.undo()
        other.append([], [FeedbackRow(d.id, 0.0, 0.0)])
        poll(router)
        assert (router.stats()["learned"], router.stats()["revised"]) == (1, 1)


def test_the_store_is_looked_at_once_a_second(tmp_path: Path) -> None:
    now = [100.0]
    with open_router(tmp_path / "s.db") as router:
        journal = journal_of(router)
        looked: list[float] = []
        journal.poll = lambda: (looked.append(now[0]), setattr(journal, "_next_poll", now[0] + 1.0))  # type: ignore[method-assign]
        journal._clock = lambda: now[0]
        journal._next_poll = 101.0
        for _ in range(20):
            now[0] += 0.25
            router.tick()
        assert looked == [101.0, 102.0, 103.0, 104.0, 105.0]


def test_a_reward_is_durable_when_sync_returns(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as router, SqliteStore(tmp_path / "s.db") as reader:
        d = router.route(world().draw()[0])
        assert router.feedback(d.id, 0.5, sync=True)
        assert reader.reward(d.id) == 0.5
        kept = reader.decision(d.id)
        assert kept is not None
        assert (kept.arm, kept.propensity) == (d.index, d.propensity)
        ids = [router.route(world().draw()[0]).id for _ in range(3)]
        assert router.feedback_batch(ids, [0.0, 0.25, 1.0], sync=True) == 3
        assert [reader.reward(id) for id in ids] == [0.0, 0.25, 1.0]


# ---- what does not fit ----


def test_a_state_of_another_model_is_refused_and_nothing_stays_locked(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db", model_fingerprint="minilm-v1") as router:
        serve(router, world(), 20)
        kept = looks(router)
    with pytest.raises(SonaVersionError, match="expected the model 'minilm-v2', got one of 'minilm-v1'") as refused:
        open_router(tmp_path / "s.db", model_fingerprint="minilm-v2")
    for fingerprint in ("minilm-v1", None):
        with open_router(tmp_path / "s.db", model_fingerprint=fingerprint) as router:
            assert journal_of(router).leading, refused  # although the exception still holds on to the engine
            np.testing.assert_array_equal(looks(router), kept)


def test_a_router_that_cannot_be_made_leaves_the_store_free(tmp_path: Path) -> None:
    for options in ({"tau": -1.0}, {"explore": "random"}, {"cost": {1: float("nan")}}):
        with pytest.raises(SonaValueError) as refused:
            open_router(tmp_path / "s.db", **options)
        with open_router(tmp_path / "s.db") as router:
            assert journal_of(router).leading, refused


def test_another_precondition_or_dim_is_refused(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db", precondition="full") as router:
        serve(router, world(), 20)
    with pytest.raises(SonaVersionError, match="expected"):
        open_router(tmp_path / "s.db", precondition="identity")
    with pytest.raises(SonaVersionError, match="expected"):
        Router(np.eye(3, 7, dtype=np.float32), store=tmp_path / "s.db")


def test_arms_may_change_between_runs(tmp_path: Path) -> None:
    """Order, additions and removals: what was learned follows the names, and decisions over arms that are gone are a soft no."""
    source = world()
    arms = {f"arm{k}": e for k, e in enumerate(source.arms)}
    with Router(arms, store=tmp_path / "s.db", guard=False) as router:
        serve(router, source, 400)
        x = np.stack([source.draw()[0] for _ in range(50)])
        names = [router.arms[row] for row in router.predict(x)]
        late = [router.route(row) for row in x]
    reordered = dict(reversed(arms.items())) | {"new": -source.arms.mean(axis=0)}
    with Router(reordered, store=tmp_path / "s.db", guard=False) as router:
        agree = [router.arms[row] == name for row, name in zip(router.predict(x), names, strict=True)]
        assert np.mean(agree) > 0.9
        before = learned_bits(router)
        assert router.feedback(late[0].id, 1.0)
        assert learned_bits(router) != before
    fewer = {name: e for name, e in arms.items() if name != late[1].arm}
    with Router(fewer, store=tmp_path / "s.db", guard=False) as router:
        before = learned_bits(router)
        assert router.feedback(late[1].id, 1.0) is False
        assert router.stats()["unknown_feedback"] == 1
        assert learned_bits(router) == before
    with Router({f"other{k}": e for k, e in enumerate(source.arms)}, store=tmp_path / "s.db", guard=False) as router:
        assert router.feedback(late[2].id, 1.0) is False


def test_arms_that_change_while_serving_are_known_after_a_restart(tmp_path: Path) -> None:
    source = world()
    arms = {f"arm{k}": e for k, e in enumerate(source.arms)}
    with Router(arms, store=tmp_path / "s.db") as router:
        router.remove_arm("arm1")
        router.add_arm("late", -source.arms[1])
        router.add_arm("later", -source.arms[2])
        router.remove_arm("arm5")
        decisions = [router.route(source.draw()[0]) for _ in range(20)]
        decisions += [router.route(source.draw()[0], ["late", "later"]) for _ in range(4)]
        today = {name: vector for name, vector in zip(router.arms, router._policy.vectors(), strict=True)}
    with Router(today, store=tmp_path / "s.db") as router:
        assert all(router.feedback(d.id, 1.0) for d in decisions)
        assert router.stats()["learned"] == 24


def test_what_a_router_kept_with_the_first_formats_is_read(tmp_path: Path) -> None:
    """Weights, calibration, versions, patterns, memory, sources and a decision that waits for its reward: written once, read for ever."""
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "golden" / "router-1.sql").read_text())
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=2, k_clusters=2), min_trajectories=20)
    with Router({"a": [1.0, 0.0], "b": [0.0, 1.0]}, store=path, background=config, seed=1, model_fingerprint="m1") as router:
        assert router.stats()["engine"]["store"]["replayed"] == 0
        served = np.array([[1.1177406, -0.1177405], [-0.1088549, 1.1088551]])
        np.testing.assert_allclose(router.apply_batch(np.eye(2, dtype=np.float32)), served, atol=1e-6)
        assert [(v.number, v.published, v.verdict) for v in router.engine.versions()] == [(1, False, "undecided"), (2, True, "served")]
        found = router.engine.find_patterns([1.0, 1.0])
        assert [(match.id, round(match.similarity, 4), match.quality) for match in found] == [(0, 0.9705, 1.0), (1, 0.97, 1.0)]
        (memory,) = router.engine.memory.recall([0.6, 0.8], 1)
        assert (memory.data, memory.similarity) == ({"note": "kept"}, pytest.approx(1))
        assert (len(router.engine.memory), router.engine.memory.graph.cycle) == (5, 1)
        assert {each.source: each.rewards for each in router.sources()} == {"s0": 20, "s1": 20}
        assert router.feedback(1099511627817, 1.0)
        assert router.feedback(1099511627816, 0.0)
        router.engine.rollback(1)
        assert router.deep_learn().status == "completed"
        assert router.engine.store is not None
        assert router.engine.store.integrity() == []
    with SqliteStore(path) as store:
        assert store.reward(1099511627817) == 1.0


# ---- a disk that fails ----


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switch every write to any store off and on."""
    real = {name: getattr(SqliteStore, name) for name in ("append", "put_state", "put_arms")}

    def fail(*arguments: Any, **options: Any) -> Any:
        raise SonaStoreError("database or disk is full")

    def switch(off: bool) -> None:
        for name, method in real.items():
            monkeypatch.setattr(SqliteStore, name, fail if off else method)

    return switch


def test_a_full_disk_does_not_stop_serving_or_learning(
    tmp_path: Path, broken: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="sona")
    source = world()
    arms = {f"arm{k}": e for k, e in enumerate(source.arms)}
    router = Router(arms, store=tmp_path / "s.db")
    x, _ = source.draw()
    broken(True)
    decisions = [router.route(x) for _ in range(20)]
    assert all(router.feedback(d.id, 1.0) for d in decisions[:10])
    with pytest.raises(SonaStoreError, match="disk is full"):
        router.feedback(decisions[10].id, 1.0, sync=True)
    assert router.stats()["learned"] == 11  # the one that is not durable yet is learned all the same
    with pytest.raises(SonaStoreError):
        router.flush()
    router.add_arm("late", -source.arms[1])
    router.remove_arm("arm5")
    late = router.route(x, ["late", "arm0"])
    assert router.feedback(late.id, 1.0)
    assert router.feedback(router.engine.session << 40, 1.0) is False
    assert router.stats()["engine"]["store"]["failed"] > 0
    broken(False)
    router.flush()
    assert router.feedback(decisions[11].id, 1.0, sync=True)
    kept = looks(router)
    after = router.route(x, ["late", "arm0"])
    router.close()
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.count() == 22
        assert [row.reward for _, row in store.feedback_after(0)] == [1.0] * 13
    today = arms | {"late": -source.arms[1]}
    del today["arm5"]
    with Router(today, store=tmp_path / "s.db") as router:
        np.testing.assert_array_equal(looks(router), kept)
        assert router.feedback(after.id, 1.0)


def test_a_router_cannot_be_opened_on_a_full_disk(tmp_path: Path, broken: Callable[[bool], None]) -> None:
    SqliteStore(tmp_path / "s.db").close()
    broken(True)
    with pytest.raises(SonaStoreError, match="disk is full") as refused:
        open_router(tmp_path / "s.db")
    broken(False)
    with open_router(tmp_path / "s.db") as router:
        assert journal_of(router).leading, refused


def test_a_disk_that_is_full_at_the_end_says_so(tmp_path: Path, broken: Callable[[bool], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sona")
    router = open_router(tmp_path / "s.db")
    serve(router, world(), 5, sync=True)
    serve(router, world(), 5)
    broken(True)
    with pytest.raises(SonaStoreError):
        router.close()
    router.close()
    broken(False)
    with open_router(tmp_path / "s.db") as router:
        assert journal_of(router).leading
        assert router.stats()["learned"] >= 5


def test_a_bad_source_changes_nothing(tmp_path: Path) -> None:
    with open_router(tmp_path / "s.db") as router:
        d = router.route(world().draw()[0])
        before = learned_bits(router)
        for source, error in ((7, SonaTypeError), ("x" * 256, SonaValueError), ("\ud800", SonaValueError)):
            with pytest.raises(error):
                router.feedback(d.id, 1.0, source=source)
        assert learned_bits(router) == before
        router.flush()
        with SqliteStore(tmp_path / "s.db") as reader:
            assert reader.last_seq() == 0


def test_a_state_that_cannot_be_saved_does_not_write_rewards_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Journal.__init__.__kwdefaults__, "save_every", 5)

    def fail(*arguments: Any) -> None:
        raise SonaStoreError("no room for a state")

    with open_router(tmp_path / "s.db") as router, monkeypatch.context() as broken:
        broken.setattr(SqliteStore, "put_state", fail)
        serve(router, world(), 12, sync=True)
        assert router.stats()["engine"]["store"]["failed"] == 0
        broken.undo()
        kept = looks(router)
        with SqliteStore(tmp_path / "s.db") as reader:
            assert reader.last_seq() == 12
            assert reader.get_state("default") is None
    with open_router(tmp_path / "s.db") as router:
        np.testing.assert_array_equal(looks(router), kept)


def test_a_state_that_a_follower_cannot_read_does_not_write_its_rewards_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A newer sona took the lead: this one goes on serving and recording, and says why it does not follow."""
    with SqliteStore(tmp_path / "s.db") as newer:
        assert newer.try_lease()
        with open_router(tmp_path / "s.db") as router:
            newer.append([], [FeedbackRow(1, 1.0, 0.0)])
            newer.put_state("default", encode_state({}, {"format": 9, "included": []}), 1)
            for _ in range(3):
                journal_of(router)._next_poll = 0.0
                serve(router, world(), 1, sync=True)
            for _ in range(2):
                with pytest.raises(SonaVersionError):
                    journal_of(router).poll()
            assert newer.last_seq() == 4
            newer.release_lease()
            with pytest.raises(SonaVersionError):
                journal_of(router).poll()
            assert not journal_of(router).leading
            assert newer.try_lease()  # what cannot be followed cannot be led
    assert "expected format 1 or older, got 9" in caplog.text


def test_a_state_is_not_saved_with_rewards_of_others_that_it_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of another process are learned between the moment of the state and that of its writing: a later one is saved instead."""
    monkeypatch.setitem(Journal.__init__.__kwdefaults__, "save_every", 5)
    with open_router(tmp_path / "s.db") as router, SqliteStore(tmp_path / "s.db") as other:
        journal = journal_of(router)
        late = router.route(world().draw()[0])
        router.flush()
        append = SqliteStore.append

        def append_after_another(self: SqliteStore, decisions: Any, feedback: Any = (), trajectories: Any = ()) -> int:
            if feedback and late.id not in journal._own_ids and other.last_seq() == 0:
                append(other, [], [FeedbackRow(late.id, 1.0, 0.0)])
                journal._replay()
            return append(self, decisions, feedback, trajectories)

        monkeypatch.setattr(SqliteStore, "append", append_after_another)
        ids = [router.route(x).id for x, _ in (world().draw() for _ in range(6))]
        for id in ids:
            router.feedback(id, 1.0)
        router.flush()
        assert router.feedback(router.route(world().draw()[0]).id, 1.0, sync=True)
        monkeypatch.undo()
        kept = looks(router)
        found = other.get_state("default")
        assert found is not None
        assert found[1] >= 1
    with open_router(tmp_path / "s.db") as router:
        assert router.stats()["engine"]["store"]["replayed"] == 0
        np.testing.assert_array_equal(looks(router), kept)


def test_a_reward_that_comes_while_the_state_is_saved_is_not_counted_as_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is taken, another reward is learned and written, the state is written: whoever restores it learns that reward again."""
    source = world()
    with open_router(tmp_path / "s.db") as router:
        serve(router, source, 10)
        writer = journal_of(router).writer
        assert writer is not None
        flush = writer.flush

        def flush_one_more(timeout: float | None = None) -> None:
            monkeypatch.setattr(writer, "flush", flush)
            serve(router, source, 1)
            flush(timeout)

        monkeypatch.setattr(writer, "flush", flush_one_more)
        journal_of(router).save()
        assert router.engine.store is not None
        router.engine.store.release_lease()
        with open_router(tmp_path / "s.db") as other:
            assert other.stats()["engine"]["store"]["replayed"] == 1
            np.testing.assert_array_equal(looks(other), looks(router))
        journal_of(router).poll()
        assert journal_of(router).leading


# ---- the state itself ----


def test_a_state_survives_its_encoding(rng: np.random.Generator) -> None:
    arrays = {"a": rng.normal(size=(3, 4)).astype(np.float32).T, "b": np.array([1 << 63], np.uint64), "c": np.zeros((0, 5), np.float32)}
    got, meta = decode_state(encode_state(arrays, {"format": 1, "text": "é"}))
    assert meta == {"format": 1, "text": "é"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x",
        b"\xff" * 100,
        (1 << 60).to_bytes(8, "little") + b"{}",
        encode_state({"a": np.zeros(9)}, {})[:-8],
        b"\x02" + bytes(7) + b"{}",
        (100_031).to_bytes(8, "little") + b'{"__metadata__":{"sona":"%b"}}   ' % (b"[" * 100_000),
    ],
)
def test_what_is_no_state_is_refused(blob: bytes) -> None:
    with pytest.raises(SonaCorruptError, match="expected what sona wrote"):
        decode_state(blob)


def test_a_state_of_a_newer_format_is_refused_with_both_named(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.db") as store:
        assert store.try_lease()
        store.put_state("default", encode_state({}, {"format": 2, "included": []}), 0)
    with pytest.raises(SonaVersionError, match="expected format 1 or older, got 2"):
        open_router(tmp_path / "s.db")
    with pytest.raises(SonaVersionError):
        SonaEngine(store=tmp_path / "s.db")


# ---- the kill switch ----


def test_a_disabled_process_records_and_lets_another_lead(tmp_path: Path, start_python: StartPython) -> None:
    script = """
        import sys
        from test_journal import open_router, serve, world
        router = open_router(sys.argv[1])
        serve(router, world(), 10, sync=True)
        print("served", flush=True)
        sys.stdin.readline()
    """
    process = start_python(script, tmp_path / "s.db", SONA_DISABLE="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "served\n"
    with open_router(tmp_path / "s.db") as router:
        assert journal_of(router).leading
        assert router.stats()["learned"] == 10


def test_rewards_that_come_while_it_is_switched_off_are_learned_afterwards(tmp_path: Path) -> None:
    source, twin = world(), open_router(None)
    with open_router(tmp_path / "s.db") as router:
        before = looks(router)
        router.engine.enabled = False
        x = source.draw()[0]
        d, t = router.route(x), twin.route(x)
        assert router.feedback(d.id, 1.0, sync=True)
        journal_of(router).poll()
        router.tick()
        router.engine.enabled = True
        np.testing.assert_array_equal(looks(router), before)
        router.tick()
        assert router.stats()["learned"] == 1
        assert twin.feedback(t.id, 1.0)
        np.testing.assert_allclose(looks(router), looks(twin), atol=1e-6)
