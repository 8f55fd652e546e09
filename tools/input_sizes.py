"""Table of accuracy and speed by input size.

    python tools/input_sizes.py configs/eval/nanomask.yaml --set data.root=DATA --sizes 320 416 512

Accuracy is COCO average precision on each dataset of the evaluation. Speed is the median time of
``prepare``, ``forward`` and ``postprocess`` on ten frames of the bundled clip at score 0.45, with
the sizes interleaved over several rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import av
import msgspec

from streamseg.config import Thresholds
from streamseg.config.training import load_evaluation_config
from streamseg.datasets import open_dataset
from streamseg.evaluation.predictions import predict_dataset, score_dataset
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.structures.results import Image

CLIP = Path(__file__).parents[1] / "streamseg" / "assets" / "street.mp4"
ROUNDS = 5
SHOWN = Thresholds(score=0.45)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 416, 448, 512, 640])
    options = parser.parse_args()
    evaluation = load_evaluation_config(options.config, options.sets)
    data = evaluation.data
    if data is None:
        parser.error(f"{options.config}: has no data")
    root = options.config.parent / data.root
    datasets = [open_dataset(config, root) for config in data.val]
    settings = msgspec.structs.asdict(evaluation.model)
    models = [load_model(**settings | {"input_size": size}) for size in options.sizes]
    thresholds = Thresholds(score=evaluation.min_score, max_instances=evaluation.most)
    columns = [f"{dataset.name}, {on} AP" for dataset in datasets for on in ("box", "mask")]
    print("| long side |", " | ".join(columns), "| ms a frame |")
    print("|---" * (len(columns) + 2) + "|")
    for model, speed in zip(models, measure_times(models), strict=True):
        cells = []
        for dataset in datasets:
            found = predict_dataset(
                model, dataset, thresholds, batch=evaluation.batch, progress=lambda *_: None
            )
            cells += [f"{scores.ap:.3f}" for scores in score_dataset(dataset, found.results)]
        print(f"| {model.input_size} |", " | ".join(cells), f"| {speed:.1f} |", flush=True)


def measure_times(models: Sequence[Segmenter]) -> list[float]:
    """Return the median time per frame of each model in milliseconds, interleaved."""
    images = load_frames()
    times: list[list[float]] = [[] for _ in models]
    for turn in range(ROUNDS + 1):
        for image in images:
            for model, model_times in zip(models, times, strict=True):
                begin = time.perf_counter()
                model.predict([image], SHOWN)
                if turn:  # the first round warms up
                    model_times.append((time.perf_counter() - begin) * 1000)
    return [median(model_times) for model_times in times]


def load_frames() -> list[Image]:
    """Return ten evenly spaced frames of the clip."""
    with av.open(str(CLIP)) as clip:
        return [
            frame.to_ndarray(format="rgb24")
            for index, frame in enumerate(clip.decode(video=0))
            if index % 20 == 10
        ]


if __name__ == "__main__":
    main()
