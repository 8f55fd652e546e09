"""Training: one loop for every family, whose losses come from its ``Objective``."""

from streamseg.train.loop import Trainer, TrainingReport
from streamseg.train.processes import Processes, joined

__all__ = ["Processes", "Trainer", "TrainingReport", "joined"]
