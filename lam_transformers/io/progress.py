"""What a long computation says of itself while it runs: one protocol for training, bulk encoding and evaluation.

The package only calls it. What becomes of it is up to the caller: the command `lam` draws bars (cli/console.py), a
program may write to its log, and by default nothing is shown.
"""

from typing import Protocol


class Task(Protocol):
    """One thing that is under way, such as the updates of a stage or the bytes of the inputs."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Say that more of it is done.

        Args:
            count: how much more, in the unit of the task's total.
            note: a few words in place of the task's name, such as its name and a speed; None leaves what is shown.
        """


class Progress(Protocol):
    """Where a long computation reports to."""

    def task(self, what: str, total: int | None = None) -> Task:
        """Begin a task.

        Args:
            what: its name, a few words.
            total: how much there is to do; None where nobody knows.

        Returns:
            What is told how far it is.
        """

    def say(self, line: str) -> None:
        """Say something that stays to be read, such as that a part is finished.

        Args:
            line: the whole sentence.
        """


class Silent:
    """A `Progress`, and each of its own tasks, that shows nothing."""

    def task(self, what: str, total: int | None = None) -> Task:
        """Begin a task that shows nothing."""
        return self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""
