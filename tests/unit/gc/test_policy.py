"""When collections are due."""

from __future__ import annotations

from supervisord.gc.policy import Policy, Thresholds


def test_the_first_collection_follows_the_start() -> None:
    assert Policy(Thresholds(), 10.0).due() == 10.1
    assert Policy(Thresholds(startup_delay=0), 10.0).due() is None


def _collected(policy: Policy, now: float, took: float) -> None:
    policy.started()
    policy.finished(now, took)


def test_nothing_is_due_when_nothing_happened() -> None:
    policy = Policy(Thresholds(), 0.0)
    _collected(policy, 1.0, 0.01)
    assert policy.due() is None
    for _ in range(99):
        policy.mutated(1.1, deleted=False)
    assert policy.due() is None


def test_deletions_wait_for_the_next_interval() -> None:
    policy = Policy(Thresholds(), 0.0)
    _collected(policy, 1.0, 0.010)
    policy.mutated(1.1, deleted=True)
    due = policy.due()
    assert due is not None and abs(due - (1.0 + 0.49)) < 1e-9  # 10 ms are 2 % of 0.5 s
    policy.mutated(1.2, deleted=True)
    assert policy.due() == due
    _collected(policy, 5.0, 0.010)
    policy.mutated(5.0 + 0.49 * 3 + 0.1, deleted=True)
    due = policy.due()
    assert due is not None and abs(due - (5.0 + 0.49 * 4)) < 1e-9


def test_short_collections_do_not_follow_each_other_at_once() -> None:
    policy = Policy(Thresholds(), 0.0)
    _collected(policy, 1.0, 0.0)
    policy.mutated(1.0, deleted=True)
    assert policy.due() == 1.0 + (0.005 / 0.02 - 0.005)


def test_many_mutations_are_enough() -> None:
    policy = Policy(Thresholds(mutation_threshold=3), 0.0)
    _collected(policy, 1.0, 0.0)
    policy.mutated(1.0, deleted=False)
    policy.mutated(1.0, deleted=False)
    assert policy.due() is None
    policy.mutated(1.0, deleted=False)
    assert policy.due() is not None
    policy = Policy(Thresholds(mutation_threshold=0), 0.0)
    _collected(policy, 1.0, 0.0)
    for _ in range(1000):
        policy.mutated(1.0, deleted=False)
    assert policy.due() is None


def test_a_deletion_threshold_does_not_wait() -> None:
    policy = Policy(Thresholds(deletion_threshold=2, schedule_delay=0.25), 0.0)
    _collected(policy, 1.0, 0.1)
    policy.mutated(1.5, deleted=True)
    assert policy.due() == 1.0 + (0.1 / 0.02 - 0.1)
    policy.mutated(1.6, deleted=False)  # every commit after a deletion counts
    assert policy.due() == 1.85


def test_a_request_does_not_wait() -> None:
    policy = Policy(Thresholds(), 0.0)
    _collected(policy, 1.0, 0.1)
    policy.triggered(2.0)
    policy.triggered(3.0)
    assert policy.due() == 2.0
    policy.started()
    policy.mutated(3.0, deleted=True)
    policy.finished(3.1, 0.1)
    assert policy.due() is not None  # what happened during the collection counts


def test_a_failure_is_tried_again_later() -> None:
    policy = Policy(Thresholds(startup_delay=0), 0.0)
    policy.triggered(0.0)
    policy.started()
    policy.failed(1.0)
    assert policy.due() == 3.0


def test_without_a_startup_delay_the_first_one_follows_a_deletion() -> None:
    policy = Policy(Thresholds(startup_delay=0, schedule_delay=0.5), 0.0)
    policy.mutated(3.0, deleted=False)
    assert policy.due() is None
    policy.mutated(4.0, deleted=True)
    assert policy.due() == 4.5
    _collected(policy, 5.0, 0.010)
    policy.mutated(5.1, deleted=True)
    due = policy.due()
    assert due is not None and abs(due - 5.49) < 1e-9


def test_without_a_startup_delay_a_threshold_counts_from_the_start() -> None:
    policy = Policy(Thresholds(startup_delay=0, deletion_threshold=3, mutation_threshold=4), 0.0)
    for now in (1.0, 2.0):
        policy.mutated(now, deleted=True)
        assert policy.due() is None
    policy.mutated(3.0, deleted=True)
    assert policy.due() == 3.0
    policy = Policy(Thresholds(startup_delay=0, mutation_threshold=2), 0.0)
    policy.mutated(1.0, deleted=False)
    assert policy.due() is None
    policy.mutated(2.0, deleted=False)
    assert policy.due() == 2.0
