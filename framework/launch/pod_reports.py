"""What pods say of themselves: why they do not run yet, and how they ended."""

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
