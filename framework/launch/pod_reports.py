"""What a cluster says of a job's pods: why they do not run yet, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_ON_THE_WAY = {"ContainerCreating", "PodInitializing"}
_LENGTH = 300  # a scheduler may say something of every node


def why_waiting(pods: Iterable[Any]) -> list[str]:
    """Return what keeps pods from running: no node has room, an image cannot be had, a Secret lacks a key."""
    found = set()
    for pod in pods:
        for condition in (pod.status.conditions or []) if pod.status else []:
            if condition.type == "PodScheduled" and condition.status == "False":
                found.add(_said(condition.reason, condition.message))
        for state in _states(pod):
            if state.waiting is not None and state.waiting.reason not in _ON_THE_WAY:
                found.add(_said(state.waiting.reason, state.waiting.message))
    return sorted(found)


def last_warning(events: Iterable[Any], name: str, index: int | None) -> list[str]:
    """Return the last warning of what stands for a job and of what belongs to it, or of an array of one index of it.

    Such are that a quota or a policy allows no pod, or that a volume cannot be mounted.
    """
    beginning = f"{name}-" if index is None else f"{name}-{index}-"
    its = [e for e in events if (who := e.involvedObject.name or "") == name or who.startswith(beginning)]
    if not its:
        return []
    last = max(its, key=lambda e: str(e.lastTimestamp or e.eventTime or ""))
    return [_said(last.reason, last.message)]


def why_ended(pods: Iterable[Any]) -> list[str]:
    """Return how those pods ended that did not end well."""
    over = [state.terminated for pod in pods for state in _states(pod) if state.terminated is not None]
    return sorted({f"{end.reason or 'Error'}, exit code {end.exitCode}" for end in over if end.exitCode})


def _states(pod: Any) -> Iterator[Any]:
    for container in (pod.status.containerStatuses or []) if pod.status else []:
        if container.state is not None:
            yield container.state


def _said(reason: str | None, message: str | None) -> str:
    text = ": ".join(filter(None, (reason, message)))
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"
