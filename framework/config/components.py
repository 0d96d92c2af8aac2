"""From a config node to the object it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from framework.errors import Preempted, UserError

from .requirements import REQUIRES


def as_plain(node: Any) -> Any:
    """Return a node as plain Python containers, resolved, without what only the check reads."""
    if isinstance(node, (DictConfig, ListConfig)):
        node = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    if isinstance(node, Mapping):
        return {k: as_plain(v) for k, v in node.items() if k != REQUIRES}
    return [as_plain(v) for v in node] if isinstance(node, list) else node


def build(node: Any, key: str, **arguments: Any) -> Any:
    """Instantiate the `_target_` of a node (and of the nodes within it).

    Args:
        node: a config node with `_target_`.
        key: the node's place in the config, named in errors.
        **arguments: further arguments of the target.

    Raises:
        UserError: when the target does not exist, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = as_plain(node)
    try:
        return instantiate(plain, **arguments, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (UserError, Preempted)):  # a signal may come while something is being built
            raise cause from None
        if isinstance(cause, (TypeError, ValueError, ImportError, AttributeError, InstantiationException)):
            raise UserError(f"{key}: `{plain.get('_target_')}` could not be built: {cause}") from error
        raise


def build_set(nodes: Any, key: str) -> dict[str, Any]:
    """Instantiate every component of a set (transforms, passes, targets, trackers), in order, by name."""
    return {str(name): build(node, f"{key}.{name}") for name, node in as_plain(nodes).items()}
