"""Training: one loop for every model family; a family provides only its ``Criterion``."""

from streamseg.training.distributed import ProcessGroup, join_process_group
from streamseg.training.report import TrainingReport
from streamseg.training.trainer import Trainer

__all__ = ["ProcessGroup", "Trainer", "TrainingReport", "join_process_group"]
