"""`negvae paper run` on many machines, with each run as a Ray task.

A task does the work of a worker process of `negvae paper run` for one run: it takes the run's lock, continues from its
checkpoint and writes its result, all in folders that the nodes share. So a lost worker costs the steps since the last
checkpoint, and commands with and without a cluster can work on the same folders.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from negvae.cluster.connect import enter, joined, lost_errors, open_mailbox, surroundings
from negvae.paper.board import Event
from negvae.paper.published import Setting
from negvae.paper.results import run_name
from negvae.paper.runner import Plan, Tell, work

LOSSES = 5
"""The number of lost workers at which a run is given up."""
LOCK_SECONDS = 120.0
"""The longest time that the lock of a lost worker may remain on a file system that nodes share."""


@dataclass(frozen=True)
class Tasks:
    """The workers that carry out the missing runs of a plan as Ray tasks; `negvae.paper.runner.run_plan` takes them.

    Attributes:
        address: address of the cluster; see `negvae.cluster.connect.joined`.
        cpus: number of processor cores, and so of threads, for each run.
        gpus: number of GPUs for each run, which may be a fraction.

    >>> Tasks(cpus=0)
    Traceback (most recent call last):
    ValueError: cpus per run is 0: it must be above 0
    """

    address: str = "auto"
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that make no sense."""
        if self.cpus <= 0:
            raise ValueError(f"cpus per run is {self.cpus:g}: it must be above 0")
        if self.gpus < 0:
            raise ValueError(f"gpus per run is {self.gpus:g}: it must be at least 0")

    def __call__(self, plan: Plan, deadline: float | None, tell: Tell) -> None:
        """Carry out the missing runs; SIGINT, SIGTERM and the deadline stop all of them with checkpoints.

        Args:
            plan: runs to carry out, with their folders.
            deadline: value of `time.monotonic()` at which to stop; None for no deadline.
            tell: called with each event of a run.

        Raises:
            ImportError: if Ray is not installed.
            ValueError: if the cluster cannot be joined, or if a node has other versions or does not see the folders.
        """
        plan = replace(plan, results=plan.results.absolute(), work=plan.work.absolute())
        with joined(self.address) as ray:
            for folder in (plan.results, plan.work):
                folder.mkdir(parents=True, exist_ok=True)
            mailbox = open_mailbox(ray)
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(carry_out)
            lost: dict[str, int] = {}

            def start(setting: Setting, seed: int) -> Any:
                own = replace(plan, runs=((setting, seed),), device="cuda" if self.gpus else plan.device)
                again = lost.get(run_name(setting, seed), 0) > 0
                return task.remote(own, mailbox, surroundings(), max(int(self.cpus), 1), again)

            running = {start(*key): key for key in plan.missing()}
            stopping: KeyboardInterrupt | None = None
            spent = False
            while running:
                try:
                    finished, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
                    for event in ray.get(mailbox.take.remote()):
                        tell(event)
                    for ref in finished:
                        key = running.pop(ref)
                        if not self._ended(ray, ref, run_name(*key), lost, tell) and not (stopping or spent):
                            running[start(*key)] = key
                    if deadline is not None and time.monotonic() >= deadline and not spent:
                        spent = True
                        ray.get(mailbox.stop.remote("budget"))
                except KeyboardInterrupt as signaled:
                    stopping = signaled
                    ray.get(mailbox.stop.remote(str(signaled) or "SIGINT"))
            for event in ray.get(mailbox.take.remote()):
                tell(event)
        if stopping is not None:
            raise stopping

    @staticmethod
    def _ended(ray: Any, ref: Any, name: str, lost: dict[str, int], tell: Tell) -> bool:
        """Return whether a task that has ended did what it could, and False if its worker was lost."""
        try:
            if refusal := ray.get(ref):
                raise ValueError(refusal)
        except lost_errors(ray) as error:
            lost[name] = lost.get(name, 0) + 1
            if lost[name] < LOSSES:
                tell(Event("say", "", text=f"{name}: its worker was lost; another one goes on from its checkpoint"))
                return False
            reason = " ".join(str(error).split())[:200]
            tell(Event("failed", name, text=f"{LOSSES} workers were lost at it, the last: {reason}"))
        except ray.exceptions.RayTaskError as error:
            tell(Event("failed", name, text=" ".join(repr(error.cause).split())[:300]))
        return True


def carry_out(plan: Plan, mailbox: Any, command: dict[str, Any], threads: int, again: bool) -> str:
    """Carry out the single run of a plan, as a Ray task.

    Args:
        plan: plan with exactly one run.
        mailbox: actor that receives the run's events and says when to stop.
        command: what `surroundings` returned in the command.
        threads: number of threads for torch.
        again: whether an earlier worker of this run was lost, so that the run's lock may still be held for a while.

    Returns:
        The reason why this node cannot take part, or "" if it can.
    """
    import ray

    try:
        enter(command, needed=[str(plan.results), str(plan.work)])
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    torch.set_num_threads(threads)
    busy: list[Event] = []
    reason = ""

    def tell(event: Event) -> None:
        nonlocal reason
        if event.kind == "busy":
            busy.append(event)
        else:
            reason = ray.get(mailbox.tell.remote(event))

    if ray.get(mailbox.tell.remote()):
        return ""
    given_up = time.monotonic() + LOCK_SECONDS
    while True:
        busy.clear()
        work(plan, None, tell, lambda: reason)
        if not busy or not again or time.monotonic() >= given_up:
            break
        time.sleep(2.0)
    if busy:
        ray.get(mailbox.tell.remote(*busy))
    return ""
