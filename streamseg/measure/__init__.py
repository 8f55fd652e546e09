"""The composition that measures: a model on datasets, panoptic results and tracks in files."""

from streamseg.measure.measurement import (
    DatasetReport,
    Measurement,
    Report,
    data_size,
    with_model,
)
from streamseg.measure.outputs import listings, prepare, to_dict, write
from streamseg.measure.served import predict_through_service

__all__ = [
    "DatasetReport",
    "Measurement",
    "Report",
    "data_size",
    "listings",
    "predict_through_service",
    "prepare",
    "to_dict",
    "with_model",
    "write",
]
