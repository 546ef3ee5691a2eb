"""The one wrapper around ``hydra.utils.instantiate``: only allowed targets, capability words taken off."""

from typing import Any

from papermix.run.check import CAPABILITIES, LOADS
from papermix.run.guard import check_safe


def strip(node: Any) -> Any:
    """The node without the words that are for the checks."""
    if isinstance(node, dict):
        return {k: strip(v) for k, v in node.items() if k not in (*CAPABILITIES, LOADS)}
    return [strip(v) for v in node] if isinstance(node, list) else node


def build(node: dict, *args: Any, **live: Any) -> Any:
    """Build what ``node['_target_']`` names, from the node's other keys and from live objects.

    A node with ``_partial_: true`` and no live objects gives a factory.
    """
    from hydra.utils import instantiate

    check_safe(node)
    node = strip(node)
    # live objects go in by a call, since Hydra would copy containers and walk modules
    partial = instantiate({**node, "_partial_": True}, _convert_="all")
    return partial if node.get("_partial_") and not args and not live else partial(*args, **live)
