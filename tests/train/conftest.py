"""Trainings that are stopped."""

from collections.abc import Callable

import pytest

from vlm.train.loop import Trainer


class Killed(BaseException):
    pass


@pytest.fixture
def run_until(monkeypatch) -> Callable[[Trainer, int, int], None]:
    """`run(trainer, phase, step)`: train, and stop for good right behind the checkpoint of a step."""

    def run(trainer: Trainer, phase: int, step: int) -> None:
        save = trainer._save

        def save_and_stop(*arguments) -> None:
            save(*arguments)
            if arguments[:2] == (phase, step):
                raise Killed

        monkeypatch.setattr(trainer, "_save", save_and_stop)
        with pytest.raises(Killed):
            trainer.run()

    return run
