"""Benchmark runner: runs the parts, prints their tables and writes ``bench.json``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from streamseg.assets import CLIP
from streamseg.bench import maps, memory, postprocess, throughput, tracking
from streamseg.errors import UsageError
from streamseg.models import load_model
from streamseg.models.base import Segmenter
from streamseg.models.mask_rcnn.segmenter import MaskRCNN
from streamseg.sinks.files.results import write_json_atomically

PERSON_BIAS = 4.0
"""Added to the person logit of a random Mask R-CNN, so that it reaches ``MAX_FOUND``."""
MAX_FOUND = 20
"""Maximum number of instances per frame of :func:`crowded_mask_rcnn`."""


class Bench:
    """Runs the benchmarks and prints their tables.

    Args:
        out: folder for ``bench.json``.
        tracking_data: folder with ``kitti_mots/`` and ``mot15/``, for the part ``tracking``.
        quick: whether to run few rounds and frames, as a check and not as a measurement.
        console: console for the results.
        make_table: function that builds a table from a title, columns and rows.
    """

    def __init__(
        self,
        out: Path,
        tracking_data: Path | None,
        *,
        quick: bool,
        console: Console,
        make_table: Callable[[str, Sequence[str], Sequence[Sequence[str]]], Table],
    ) -> None:
        self._out = out
        self._tracking_data = tracking_data
        self._quick = quick
        self._console = console
        self._make_table = make_table

    @property
    def parts(self) -> dict[str, Callable[[], Any]]:
        """Functions of the parts, by name."""
        return {
            "postprocess": self._postprocess,
            "maps": self._maps,
            "clip": self._clip,
            "mask_rcnn": self._mask_rcnn,
            "memory": self._memory,
            "tracking": self._tracking,
        }

    def run(self, names: Sequence[str]) -> None:
        """Run the named parts, or all parts whose data is available.

        Raises:
            UsageError: a name is unknown, or a part needs data that was not given.
        """
        if unknown := sorted(set(names) - set(self.parts)):
            raise UsageError(f"no part is called {unknown[0]!r}; known are {', '.join(self.parts)}")
        chosen = names or [p for p in self.parts if p != "tracking" or self._tracking_data]
        self._out.mkdir(parents=True, exist_ok=True)
        file = self._out / "bench.json"
        report = json.loads(file.read_text()) if file.exists() else {}
        for name in chosen:
            report[name] = {"machine": _machine(), "rows": self.parts[name]()}
            write_json_atomically(file, report)
        self._console.print(f"{file}", soft_wrap=True)

    def _postprocess(self) -> list[dict[str, Any]]:
        rows = [postprocess.measure_postprocess(n, 1 if self._quick else 9) for n in (20, 100)]
        self._table(
            "post-processing at 1080p, one thread, ms",
            ("instances", "way", "paste", "encode", "paint", "all", "faster", "same pixels"),
            [
                (str(row.instances), way, *_ms(times), f"{sum(times.values()):.1f}", *verdict)
                for row in rows
                for way, times, verdict in (
                    ("baseline", row.baseline_ms, ("", "")),
                    ("streamseg", row.streamseg_ms, (f"{row.ratio:.0f} x", _yes(row))),
                )
            ],
        )
        return [asdict(row) for row in rows]

    def _maps(self) -> list[dict[str, Any]]:
        rows = [row for n in (20, 100) for row in maps.measure_maps(n, 1 if self._quick else 9)]
        self._table(
            "masks from maps of the whole image, at 1080p, ms",
            ("family", "instances", "baseline", "streamseg", "faster", "differing pixels"),
            [
                (
                    row.family,
                    str(row.instances),
                    f"{row.baseline_ms:.1f}",
                    f"{row.streamseg_ms:.1f}",
                    f"{row.ratio:.0f} x",
                    str(row.differing),
                )
                for row in rows
            ],
        )
        return [asdict(row) for row in rows]

    def _clip(self) -> list[dict[str, Any]]:
        model = load_model("nanomask")
        frames, rounds = (20, 1) if self._quick else (200, 3)
        return self._throughput(model, "nanomask on the bundled clip", frames, rounds, batch=4)

    def _mask_rcnn(self) -> list[dict[str, Any]]:
        frames, rounds = (2, 1) if self._quick else (6, 3)
        title = f"Mask R-CNN R50-FPN, {MAX_FOUND} instances a frame, on the bundled clip"
        return self._throughput(crowded_mask_rcnn(), title, frames, rounds, batch=1)

    def _throughput(
        self, model: Segmenter, title: str, frames: int, rounds: int, batch: int
    ) -> list[dict[str, Any]]:
        with_images = not isinstance(model, MaskRCNN)
        with as_file(CLIP) as clip:
            rows = throughput.measure_throughput(
                model, clip, frames=frames, rounds=rounds, with_images=with_images, batch=batch
            )
        self._table(
            f"{title}: {frames} frames",
            ("method", "fps", "of model alone", "age p50", "age p99", "received"),
            [
                (
                    row.method,
                    f"{row.fps:.2f}",
                    f"{row.ratio:.2f}",
                    *(f"{row.age_ms[p]:.0f} ms" if row.age_ms else "" for p in ("p50", "p99")),
                    "" if row.received is None else str(row.received),
                )
                for row in rows
            ],
        )
        for row in rows:
            stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in row.timing_ms.items())
            self._console.print(f"{row.method}, ms per frame: {stages}", highlight=False)
        return [asdict(row) for row in rows]

    def _memory(self) -> list[dict[str, Any]]:
        """Run in a separate process, because peak memory is measured for a whole process."""
        frames = 1000 if self._quick else 5000
        code = (
            "import json, dataclasses, streamseg.bench.memory as m;"
            f"print(json.dumps(dataclasses.asdict(m.measure_memory({frames}))))"
        )
        completed = subprocess.run(  # noqa: S603 - our own module, in our own interpreter
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        )
        row = memory.MemoryRow(**json.loads(completed.stdout))
        self._table(
            "memory, with a subscriber that never reads",
            ("frames", f"peak after {memory.EARLY}", "peak at the end", "growth", "balanced"),
            [
                (
                    str(row.frames),
                    f"{row.early_mib:.0f} MiB",
                    f"{row.final_mib:.0f} MiB",
                    f"{(row.growth - 1) * 100:+.1f} %",
                    str(row.balanced),
                )
            ],
        )
        return [asdict(row)]

    def _tracking(self) -> dict[str, list[dict[str, Any]]]:
        if self._tracking_data is None:
            raise UsageError("tracking needs --data: a folder with kitti_mots/ and mot15/")
        rows = {
            "KITTI MOTS, one mask in ten dropped, ten seeds": tracking.measure_kitti_mots(
                self._tracking_data / "kitti_mots", seeds=1 if self._quick else 10
            ),
            "MOT15, public detections": tracking.measure_mot15(self._tracking_data / "mot15"),
        }
        for title, each in rows.items():
            self._table(
                title,
                ("tracker", "HOTA", "IDF1", "MOTA", "switches", "ms a frame"),
                [
                    (
                        row.tracker,
                        *(f"{value:.4f}" for value in (row.hota, row.idf1, row.mota)),
                        f"{row.switches:.1f}",
                        f"{row.ms:.2f}",
                    )
                    for row in each
                ],
            )
        speed = tracking.measure_speed()
        self._console.print(f"streamseg, 20 instances at 1080p: {speed:.2f} ms a frame")
        return {
            **{title: [asdict(row) for row in each] for title, each in rows.items()},
            "speed_ms": [{"instances": 20, "ms": speed}],
        }

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._console.print(self._make_table(title, columns, rows))


def crowded_mask_rcnn() -> Segmenter:
    """Return a Mask R-CNN with random weights that finds ``MAX_FOUND`` people in every frame.

    Its speed depends on the number of instances, not on the training, and torchvision's weights
    cannot be downloaded everywhere. The weights are loaded from a file, as a user's are.
    """
    model = load_model("mask_rcnn_r50_fpn", weights="none")
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in model.network.state_dict().items()
    }
    state["roi_heads.box_predictor.cls_score.bias"][1] += PERSON_BIAS
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "crowded.safetensors"
        save_file(state, file)
        crowded = load_model("mask_rcnn_r50_fpn", weights=file, score=0.05)
    assert isinstance(crowded, MaskRCNN)
    crowded.network.roi_heads.detections_per_img = MAX_FOUND
    return crowded


def _machine() -> dict[str, str]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "av")},
    }


def _ms(times: dict[str, float]) -> list[str]:
    return [f"{times[stage]:.1f}" for stage in ("paste", "encode", "paint")]


def _yes(row: postprocess.PostprocessRow) -> str:
    return "yes" if row.same_run_lengths and row.same_pixels else "NO"
