"""Questions that a federation can put: one a file, one closed registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgraft.common.registry import Registry

if TYPE_CHECKING:
    from fedgraft.common.tasks.task import Task

TASKS: Registry[Task] = Registry(
    "task.kind",
    "question",
    {
        "classification": "fedgraft.common.tasks.classification:CLASSIFICATION",
    },
)
