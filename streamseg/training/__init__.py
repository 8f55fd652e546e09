"""Training: one loop for every family, whose losses come from its ``Criterion``."""

from streamseg.training.distributed import Processes, joined
from streamseg.training.trainer import Trainer, TrainingReport

__all__ = ["Processes", "Trainer", "TrainingReport", "joined"]
