"""The stepper's runs: each a branch that can look one token ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from byhand.cli.options import UsageError

if TYPE_CHECKING:
    from byhand.run import Run
    from byhand.types import Step


class Branch:
    """A run, and the step that would come next.

    Looking ahead is a fork that took its step. Taking that step is to go on with the fork, so nothing is run twice.
    """

    def __init__(self, run: Run, parent: int | None = None) -> None:
        self.run = run
        self.parent = parent
        self.at = len(run.ids)
        self._ahead: tuple[Run, Step] | None = None

    def look(self) -> Step | None:
        """The step that `take` would take; None where the run has ended."""
        if self.run.finish_reason is not None:
            return None
        if self._ahead is None:
            twin = self.run.fork()
            self._ahead = twin, twin.step()
        return self._ahead[1]

    def take(self) -> Step:
        """Take the chain's choice."""
        self.look()
        if self._ahead is None:
            return self.run.step()  # raises the sentence for a run that has ended
        self.run, step = self._ahead
        self._ahead = None
        return step

    def choose(self, number: int, shown: int) -> Step:
        """Take another candidate by its number."""
        step = self.look()
        if step is None:
            return self.run.step()
        if number == step.rank:
            return self.take()
        known = min(shown, len(step.top))
        if not 1 <= number <= known:
            raise UsageError(f"there is no candidate {number}; they are 1 to {known}", hint='"7" inserts a 7')
        self._ahead = None
        return self.run.step(force=step.top[number - 1].token.id)

    def insert(self, text: str) -> list[Step]:
        """Append text."""
        self._ahead = None
        return self.run.insert(text)

    def rewind(self, count: int) -> None:
        """Take back tokens."""
        self._ahead = None
        self.run.rewind(count)

    def edit(self, position: int, token: str) -> list[Step]:
        """Put another token somewhere."""
        self._ahead = None
        return self.run.edit(position, token)

    def set(self, settings: dict[str, Any]) -> None:
        """Change settings."""
        self._ahead = None
        self.run.set(**settings)


@dataclass(slots=True)
class Branches:
    """All branches, numbered from 1, and the one that is stepped."""

    all: list[Branch]
    number: int = 1

    @property
    def current(self) -> Branch:
        """The branch that is stepped."""
        return self.all[self.number - 1]

    def fork(self, seed: int | None) -> None:
        """A new branch from here; it becomes the current one."""
        self.all.append(Branch(self.current.run.fork(seed=seed), parent=self.number))
        self.number = len(self.all)

    def switch(self, number: int) -> None:
        """Go to another branch."""
        if not 1 <= number <= len(self.all):
            raise UsageError(f"there is no branch {number}; they are 1 to {len(self.all)}")
        self.number = number
