"""Correctness and speed of the models on an accelerator, as tables and as JSON.

    python tools/gpu_check.py [--device cuda] [--models NAME …] [--parts PART …]
                              [--seconds S] [--out FILE.json]

* ``parity``: differences of network outputs between the device and the CPU (fp32 without TF32),
  between an image alone and in a batch, with TF32 (as served), and in bf16; and of the instances
  that nanomask finds in the bundled clip.
* ``speed``: milliseconds per frame of each stage, and the device memory.
* ``service``: a service with sixteen live test patterns, for S seconds.
* ``training``: some steps of each family on the test pattern; in bf16, nanomask in all precisions.

nanomask has its bundled weights; the other models have random weights from a fixed seed
(gpu_check_networks.py). If a part fails, the others still run. Exits 1 if a part failed or outputs
differ by more than the tolerance. docs/gpu.md lists previous measurements.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import msgspec
import numpy as np
import torch
import torchvision
from gpu_check_networks import (
    BUNDLED,
    Difference,
    Sameness,
    differ,
    exact_fp32,
    in_precision,
    moved,
    raw_outputs,
    sameness,
    settled_model,
)
from gpu_check_parts import Served, Speed, Trained, serve, speed, train

from streamseg.errors import StreamsegError, UsageError
from streamseg.models import REGISTRY, load_model
from streamseg.models.base import Precision, Segmenter
from streamseg.models.registry import find
from streamseg.structures.results import Image, Instances

CLIP = Path(__file__).parents[1] / "streamseg" / "assets" / "street.mp4"
CLIP_FRAMES, CLIP_STRIDE = 24, 8
PARTS = ("parity", "speed", "service", "training")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BATCHES = (1, 8)
SERVED = ("nanomask", "mask_rcnn_r50_fpn_v2")
TRAINED = {
    "nanomask": 20,
    "mask_rcnn_r50_fpn_v2": 6,
    "mask_rcnn_r50_fpn_d2": 6,
    "yolact_plus_r50": 6,
    "solov2_light_r18": 6,
    "decoupled_solo_light_r50": 6,
}
"""Number of training steps by model, one model per family."""
MAY_DIFFER = 1e-3
"""Maximum relative difference in fp32 between devices or batches; see ``Difference.relative``."""
MIN_IOU = 0.98
"""Minimum mask IoU of one object between devices or batches."""
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AssertionError, StreamsegError)
"""Exceptions of code that does not work on a device."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences of one model's outputs.

    Attributes:
        model: name of the model.
        device: between the device and the CPU, in fp32.
        batch: between an image in a batch of two and the image alone, on the device.
        served: between torch's default precision (TF32 where available) and fp32.
        bf16: between bf16 and fp32.
    """

    model: str
    device: Difference
    batch: Difference
    served: Difference
    bf16: Difference


@dataclass(slots=True)
class Report:
    """Results of all parts; ``problems`` is empty if all parts passed."""

    device: str
    accelerator: str
    torch: str
    torchvision: str
    python: str
    cpus: int
    seconds: float = 0.0
    parity: list[Parity] = field(default_factory=list)
    clip: list[Sameness] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    service: list[Served] = field(default_factory=list)
    training: list[Trained] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_problem(self, text: str) -> None:
        """Record a problem and print it."""
        self.problems.append(text)
        print(f"PROBLEM {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the checks, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [entry.name for entry in REGISTRY]
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, cpu or auto")
    parser.add_argument("--models", nargs="+", default=names, metavar="NAME")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each service")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    try:
        report = check(options.device, options.models, options.parts, options.seconds, options.out)
    except StreamsegError as error:
        sys.exit(f"gpu_check: {error}")
    print("\n".join(tables(report)))
    if report.problems:
        sys.exit(1)


def check(
    device: str, names: Sequence[str], parts: Sequence[str], seconds: float, out: Path | None
) -> Report:
    """Run the selected parts, model by model.

    Raises:
        StreamsegError: the device or model is unknown, or ``out`` can't be written.
    """
    start = time.perf_counter()
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be more than 0, not {seconds:g}")
    place = load_model(BUNDLED, device=device).device
    for name in names:
        find(name)
    report = _empty(place)
    _write(report, out)
    frames = load_clip_frames()
    for name in names:
        model_start = time.perf_counter()
        _check_model(report, name, parts, frames, place, seconds)
        report.seconds = time.perf_counter() - start
        _write(report, out)  # intermediate results, in case the process is stopped
        print(f"{name}: {time.perf_counter() - model_start:.1f} s", file=sys.stderr, flush=True)
    return report


def load_clip_frames() -> list[Image]:
    """Return some frames of the bundled clip."""
    with av.open(str(CLIP)) as clip:
        wanted = range(0, CLIP_FRAMES * CLIP_STRIDE, CLIP_STRIDE)
        return [
            frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
            for index, frame in zip(range(wanted.stop), clip.decode(video=0), strict=False)
            if index in wanted
        ]


def _check_model(
    report: Report,
    name: str,
    parts: Sequence[str],
    frames: Sequence[Image],
    place: torch.device,
    seconds: float,
) -> None:
    """Run all selected parts for one model."""
    attempt = partial(_attempt, report)
    here = attempt(f"{name} on the CPU", lambda: settled_model(name, frames[0]))
    there = here and attempt(f"{name} on {place}", lambda: moved(here, place))
    if here is None or there is None:
        return
    if "parity" in parts:
        attempt(f"{name}, parity", lambda: _parity(report, here, there, frames))
        if name == BUNDLED:
            attempt(f"{name}, the clip", lambda: _clip(report, here, there, frames))
    for precision in PRECISIONS:
        model = in_precision(there, precision)
        if "speed" in parts:
            _speed(report, model, frames)
        if "service" in parts and name in SERVED:
            attempt(f"{name}, service, {precision}", partial(_serve, report, model, seconds))
    if "training" in parts and name in TRAINED:
        _train(report, name, place)


def _parity(report: Report, here: Segmenter, there: Segmenter, frames: Sequence[Image]) -> None:
    (batch,) = here.prepare([frames[0], frames[-1]])
    tensor = batch.tensor.to(there.device)
    with exact_fp32():
        exact, alone = raw_outputs(there, tensor), raw_outputs(there, tensor[:1])
    row = Parity(
        here.name,
        differ(raw_outputs(here, batch.tensor), exact),
        differ(alone, {name: each[:1] for name, each in exact.items()}),
        differ(exact, raw_outputs(there, tensor)),
        differ(exact, raw_outputs(in_precision(there, "bf16"), tensor)),
    )
    report.parity.append(row)
    for where, own, most in (
        ("on the device", row.device, MAY_DIFFER),
        ("in a batch", row.batch, MAY_DIFFER),
        ("as served", row.served, sys.float_info.max),
        ("in bf16", row.bf16, sys.float_info.max),
    ):
        if own.relative > most:
            report.add_problem(
                f"{row.model}: {own.output} differs {where} by {own.relative:.1e} of its length "
                f"and may by {most:.0e}"
            )


def _clip(report: Report, here: Segmenter, there: Segmenter, frames: Sequence[Image]) -> None:
    with exact_fp32():
        exact = _one_by_one(there, frames)
        eights = [frames[at : at + 8] for at in range(0, len(frames), 8)]
        together = [found for eight in eights for found in there.predict(eight)]
    strict = [
        sameness("CPU and device", _one_by_one(here, frames), exact),
        sameness("one by one and in eights", exact, together),
    ]
    report.clip += [
        *strict,
        sameness("fp32 and as served", exact, _one_by_one(there, frames)),
        sameness("fp32 and bf16", exact, _one_by_one(in_precision(there, "bf16"), frames)),
    ]
    for row in strict:
        if row.unequal_frames or row.least_iou < MIN_IOU:
            report.add_problem(
                f"{here.name} on the clip, {row.ways}: {row.unequal_frames} frames with unequal "
                f"numbers of instances, least mask IoU {row.least_iou:.3f}"
            )


def _speed(report: Report, model: Segmenter, frames: Sequence[Image]) -> None:
    for batch in BATCHES:
        few = frames[:: len(frames) // batch][:batch]
        what = f"{model.name}, speed, {model.precision}, {batch} at once"
        if row := _attempt(report, what, partial(speed, model, few)):
            report.speed.append(row)


def _serve(report: Report, model: Segmenter, seconds: float) -> None:
    row = serve(model, seconds)
    report.service.append(row)
    if row.failed or not row.balanced or not row.fps:
        report.add_problem(
            f"{row.model}, service, {row.precision}: {row.decoded} frames decoded, {row.failed} "
            f"failed, {row.fps:.0f} results a second, accounts balanced: {row.balanced}"
        )


def _train(report: Report, name: str, place: torch.device) -> None:
    precisions: tuple[Precision, ...] = ("bf16",)
    if name == BUNDLED:
        precisions = ("fp32", "bf16", "fp16") if place.type == "cuda" else PRECISIONS
    for precision in precisions:
        what = f"{name}, training, {precision}"
        if row := _attempt(report, what, partial(train, name, precision, place, TRAINED[name])):
            report.training.append(row)


def _one_by_one(model: Segmenter, frames: Sequence[Image]) -> list[Instances]:
    return [found for frame in frames for found in model.predict([frame])]


def _attempt(report: Report, what: str, call: Callable[[], ResultT]) -> ResultT | None:
    """Return the result of ``call``; if it fails, record a problem and return None."""
    try:
        return call()
    except FAILURES as error:
        cause = error.__cause__ or error
        place = traceback.extract_tb(cause.__traceback__)[-1]
        own = [s for s in traceback.extract_tb(cause.__traceback__) if "streamseg" in s.filename]
        place = own[-1] if own else place
        first = (str(cause).splitlines() or [""])[0]
        where = f"{Path(place.filename).name}:{place.lineno}"
        report.add_problem(f"{what}: {type(cause).__name__} at {where}: {first}")
        return None


def _empty(place: torch.device) -> Report:
    on_gpu = place.type == "cuda"
    return Report(
        device=str(place),
        accelerator=torch.cuda.get_device_name(place) if on_gpu else "none",
        torch=str(torch.__version__),
        torchvision=torchvision.__version__,
        python=platform.python_version(),
        cpus=os.cpu_count() or 0,
    )


def _write(report: Report, out: Path | None) -> None:
    if out is None:
        return
    try:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None


def tables(report: Report) -> Iterator[str]:
    """Yield the lines of the report as Markdown."""
    yield (
        f"{report.device} ({report.accelerator}), {report.cpus} CPUs, torch {report.torch}, "
        f"torchvision {report.torchvision}, Python {report.python}; {report.seconds:.0f} s"
    )
    for rows in (_parities(report), _finds(report), _times(report), _services(report)):
        yield from rows
    yield from _trainings(report)
    yield from ("", f"{len(report.problems)} problems", *report.problems)


def _parities(report: Report) -> Iterator[str]:
    yield from _head("outputs", "device", "batch", "served", "bf16")
    for p in report.parity:
        apart = (p.device, p.batch, p.served, p.bf16)
        yield _row(f"`{p.model}`", *(f"{each.relative:.1e}" for each in apart))


def _finds(report: Report) -> Iterator[str]:
    yield from _head(
        "clip", "instances", "unequal frames", "mask IoU, least", "mean", "box, pixels"
    )
    for c in report.clip:
        both = f"{c.instances[0]} / {c.instances[1]}"
        overlaps = f"{c.least_iou:.4f}", f"{c.mean_iou:.4f}"
        yield _row(c.ways, both, c.unequal_frames, *overlaps, f"{c.box:.2f}")


def _times(report: Report) -> Iterator[str]:
    yield from _head(
        "ms a frame", "precision", "batch", "prepare", "forward", "masks", "objects", "MiB"
    )
    for s in report.speed:
        times = (f"{each:.2f}" for each in (s.prepare, s.forward, s.postprocess))
        memory = "-" if s.memory is None else f"{s.memory:.0f}"
        yield _row(f"`{s.model}`", s.precision, s.batch, *times, f"{s.instances:.1f}", memory)


def _services(report: Report) -> Iterator[str]:
    yield from _head(
        "service", "precision", "cameras", "fps", "age p50 / p99, ms", "dropped", "balanced"
    )
    for v in report.service:
        ages = f"{v.age_ms.get('p50', 0):.0f} / {v.age_ms.get('p99', 0):.0f}"
        lost = f"{sum(v.dropped.values())} of {v.decoded}"
        name = f"`{v.model}`"
        yield _row(name, v.precision, v.cameras, f"{v.fps:.0f}", ages, lost, v.balanced)


def _trainings(report: Report) -> Iterator[str]:
    yield from _head("training", "precision", "steps", "step, ms", "loss")
    for t in report.training:
        losses = f"{t.losses[0]:.2f} to {t.losses[1]:.2f}"
        yield _row(f"`{t.model}`", t.precision, t.steps, f"{t.step_ms:.0f}", losses)


def _head(*cells: str) -> Iterator[str]:
    yield from ("", _row(*cells), "|" + "---|" * len(cells))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
