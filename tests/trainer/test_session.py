"""One session per fit, shared by all callbacks, gone afterwards."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
from helpers import STAGES, Batches, Net, Spy, fit, trainer

from lightning_freeze import FreezeLayers, GradualUnfreeze, LayerwiseLR, PlanError, ResumeError
from lightning_freeze.schedule.moments import Progress
from lightning_freeze.trainer.session import Session, last_moment, last_session, session_of


def test_all_callbacks_of_a_fit_share_one_session_and_the_next_fit_has_another() -> None:
    seen = Spy("on_train_start", lambda running, _: session_of(running))
    running = trainer([GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), seen], 3)
    running.fit(Net(), Batches(2), Batches(1))
    running.fit_loop.max_epochs = 4
    running.fit(Net(), Batches(2), Batches(1))
    first, second = seen.seen
    assert first is not second
    assert first.over
    assert last_session(running) is second


def test_views_and_rates_are_of_the_run_that_is_going_on() -> None:
    def look(running: Any, _: Any) -> Any:
        session = session_of(running)
        return len(session.view().trainable), session.updates().rates()

    seen = Spy("on_train_batch_end", look)
    fit(Net(), [FreezeLayers(["stem", "mid"], verbose=False), seen], epochs=1, steps=1)
    assert seen.seen == [(2, [[0.1]])]


def test_a_session_is_left_behind_by_copies() -> None:
    seen = Spy("on_train_start", lambda running, _: session_of(running))
    fit(Net(), [FreezeLayers("stem", verbose=False), seen], epochs=1)
    session = seen.seen[0]
    assert isinstance(session, Session)
    assert copy.deepcopy(session) is None
    assert pickle.loads(pickle.dumps(session)) is None


@pytest.mark.parametrize(("options", "warned"), [({}, 1), ({"fast_dev_run": 3}, 0)])
def test_a_run_that_is_stopped_warns_once_of_what_never_trained_and_a_trial_run_does_not(
    options: Any, warned: int
) -> None:
    def stop(running: Any, _: Any) -> None:
        running.should_stop = True

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), [GradualUnfreeze(STAGES, verbose=False), Spy("on_train_epoch_end", stop)], epochs=3, **options)
    said = [str(one.message) for one in caught if "lightning_freeze" in one.filename or "never" in str(one.message)]
    assert len([text for text in said if "never unfrozen: mid, stem" in text]) == warned


def test_a_run_without_end_has_no_fractions() -> None:
    with pytest.raises(PlanError, match=r"(?s)has no end.*max_epochs"):
        fit(Net(), [GradualUnfreeze(STAGES, at=[0, 0.2, 0.4])], epochs=-1)


def test_a_checkpoint_without_these_callbacks_says_which_are_missing() -> None:
    seen = Spy("on_train_start", lambda running, _: session_of(running))
    fit(Net(), [FreezeLayers("stem", verbose=False), LayerwiseLR(multipliers={"head": 0.5}), seen], epochs=1)
    with pytest.raises(ResumeError, match=r"without FreezeLayers, LayerwiseLR.*\n.*weights only"):
        seen.seen[0].load({})


def test_a_step_trigger_is_due_at_the_start_of_an_accumulation_window_only() -> None:
    def look(running: Any, _: Any) -> Any:
        batch = running.fit_loop.epoch_loop.batch_progress.current.ready - 1
        return batch, session_of(running).step_is_due(running, batch)

    callbacks = [Spy("on_train_batch_start", look), GradualUnfreeze(STAGES, every_n_train_steps=1, verbose=False)]
    fit(Net(), callbacks, epochs=1, steps=6, accumulate_grad_batches=2)
    assert callbacks[0].seen == [(0, False), (1, False), (2, True), (3, False), (4, True), (5, False)]


@pytest.mark.parametrize(
    ("options", "last"),
    [({}, (2, 5, 6)), ({"accumulate_grad_batches": 2}, (2, 2, 3)), ({"max_steps": 3}, (1, 2, 3)),
     ({"fast_dev_run": True}, None), ({"max_epochs": -1}, None)],
)  # fmt: skip
def test_the_last_moment_of_a_run_is_in_its_last_epoch(options: Any, last: Any) -> None:
    def look(running: Any, _: Any) -> Any:
        running.should_stop = True
        return last_moment(running)

    fit(Net(), [seen := Spy("on_train_start", look)], **({"epochs": 3} | options))
    assert seen.seen == [None if last is None else Progress(*last)]
