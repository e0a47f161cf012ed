"""A notebook cell that is run again closes the labs that it made before."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field


@dataclass
class _Execution:
    """One run of a cell, and the labs that it made."""

    message_id: str
    labs: list[weakref.ref] = field(default_factory=list)


_executions: dict[str, _Execution] = {}  # by notebook cell: its last execution


def register(lab) -> None:
    """Close the labs of earlier runs of this cell; those of other cells go on."""
    cell, message_id = current_cell()
    if cell is None:
        return
    execution = _executions.setdefault(cell, _Execution(message_id))
    if execution.message_id != message_id:
        for reference in execution.labs:
            old_lab = reference()
            if old_lab is not None:
                old_lab.close()
        execution = _executions[cell] = _Execution(message_id)
    execution.labs.append(weakref.ref(lab))


def current_cell() -> tuple[str | None, str | None]:
    """The id of the notebook cell that is running and of this run; (None, None) elsewhere."""
    try:
        from IPython import get_ipython

        parent = get_ipython().kernel.get_parent("shell")
        return parent["metadata"]["cellId"], parent["header"]["msg_id"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None, None
