"""Processes that work in turn: one for each contender, round after round, in rotated order.

Never here: what a contender does (_work.py), what is made of the times (compare.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks._contenders import Contender, Job
from benchmarks._padding import Vectors
from benchmarks._work import silence, work
from benchmarks.workloads import shape_of

NOISY = 0.10
"""Share of the machine's cores; a round in which others used more is repeated, if it may."""

_spawn = multiprocessing.get_context("spawn")


class ContenderFailedError(Exception):
    """A contender cannot go on; the message is its reason."""


class Worker:
    """A contender's process, seen from outside.

    Parameters
    ----------
    contender : Contender
    job : Job
    budget : int, optional
        In tokens, if it has been chosen before.

    Raises
    ------
    ContenderFailedError
        When it is waited for, or asked to run.
    """

    def __init__(self, contender: Contender, job: Job, budget: int | None = None) -> None:
        self._connection, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=work, args=(theirs, contender, job, budget), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is seen here

    def wait(self) -> dict[str, Any]:
        """Wait until it is ready: seconds and peak memory of loading, and its token budget."""
        return self._answer()

    def run(self) -> dict[str, Any]:
        """Do the job once: seconds, what others used, peak memory, vectors."""
        self._connection.send("go")
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # it has just ended
                self._connection.send(None)
        self._process.join()

    def _answer(self) -> dict[str, Any]:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise ContenderFailedError(f"its process ended with exit code {code}") from None
        if "failed" in answer:
            self._process.join()
            raise ContenderFailedError(answer["failed"])
        return answer


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Run a function in a process that starts from nothing and prints nothing."""
    with ProcessPoolExecutor(1, mp_context=_spawn, initializer=silence) as pool:
        return pool.submit(function, *arguments).result()


class Trial:
    """The rounds of one contender.

    Parameters
    ----------
    contender : Contender
    job : Job
    stays : bool
        Whether its process lives for all rounds, or for one: then not all are in memory at once.

    Attributes
    ----------
    stays : bool
    loaded : dict
        What `Worker.wait` gave the first time.
    rounds : list of dict
        ``round``, ``seconds``, ``foreign``, ``noisy`` and ``peak_bytes`` of each.
    vectors : ndarray of shape (n, dim), float32
        Of its last round.
    """

    def __init__(self, contender: Contender, job: Job, *, stays: bool) -> None:
        self.contender = contender
        self.rounds: list[dict[str, Any]] = []
        self.vectors: Vectors = np.empty((0, 0), np.float32)
        self.loaded: dict[str, Any] = {}
        self.stays = stays
        self._job = job
        self._worker: Worker | None = None

    @property
    def quiet(self) -> list[dict[str, Any]]:
        """The rounds that others did not disturb."""
        return [record for record in self.rounds if not record["noisy"]]

    def start(self) -> Worker:
        """Start its process, if there is none, and do not wait for it."""
        if self._worker is None:
            self._worker = Worker(self.contender, self._job, self.loaded.get("budget"))
        return self._worker

    def load(self) -> Worker:
        """Have a process that is ready."""
        worker = self.start()
        found = worker.wait()
        self.loaded = self.loaded or found
        return worker

    def run(self, number: int) -> None:
        """Do one round."""
        found = (self.start() if self.stays else self.load()).run()
        self.vectors = found.pop("vectors")
        self.rounds.append({"round": number, **found, "noisy": found["foreign"] > NOISY})
        if not self.stays:
            self.stop()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def measure(trials: Sequence[Trial], rounds: int, extra: int) -> tuple[list[Trial], dict[str, str]]:
    """Run all rounds, interleaved.

    Parameters
    ----------
    trials : sequence of Trial
    rounds : int
    extra : int
        Rounds that may follow, for those who have not had so many without disturbance.

    Returns
    -------
    trials : list of Trial
        Those who did not fail.
    failures : dict of str to str
        Name and reason of the others.
    """
    failures: dict[str, str] = {}

    def attempt(trial: Trial, act: Callable[..., object], *arguments: object) -> None:
        try:
            if trial.contender.name not in failures:
                act(trial, *arguments)
        except ContenderFailedError as error:
            failures[trial.contender.name] = str(error)

    for trial in trials:
        if trial.stays:
            say(f"loading {trial.contender.name}")
            attempt(trial, Trial.load)
    for number in range(rounds + extra):
        due = [one for one in trials if number < rounds or len(one.quiet) < rounds]
        if due:
            say(f"round {number + 1}: {len(due)} contenders")
        turn = number % max(len(due), 1)
        for trial in due[turn:] + due[:turn]:
            attempt(trial, Trial.run, number)
    for trial in trials:
        trial.stop()
    return [trial for trial in trials if trial.contender.name not in failures], failures


def all_fit_into_memory(
    some: Iterable[Contender], model: str, memory_gigabytes: float | None
) -> bool:
    """Tell whether all processes may live at once: weights, and 0.8 GB each for the rest."""
    layers, dim, _ = shape_of(model)
    parameters = 12 * layers * dim**2
    wanted = sum(parameters * (4 if one.precision == "float32" else 2) / 1e9 + 0.8 for one in some)
    return wanted < 0.65 * (memory_gigabytes or 8)


def say(text: str) -> None:
    """Tell how far it has come, on stderr: stdout is for the result."""
    print(text, file=sys.stderr, flush=True)
