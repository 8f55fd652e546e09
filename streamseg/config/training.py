"""The files that ``train`` and ``eval`` take: what data there is, how to train, what to measure.

Same rules as for the service's config: one YAML file, validated whole before anything starts; see
:mod:`streamseg.config`. Paths of data are relative to ``root``, and ``root`` to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from streamseg.config import (
    Count,
    Fraction01,
    MaskIoU,
    ModelConfig,
    NotNegative,
    Positive,
    Section,
    convert,
    load,
    override,
)

Rate: TypeAlias = Annotated[float, Meta(ge=0, le=1000)]


class CocoData(Section, frozen=True, kw_only=True, tag_field="format", tag="coco"):
    """COCO's instance JSON: polygons, run lengths, crowds.

    Attributes:
        images: the folder that the file names in the JSON are relative to.
        annotations: the JSON.
        annotated: the classes of which every instance in every image is annotated; empty means
            all. Where a class isn't listed, its absence is never taken for background.
        repeat: how often each image is seen in an epoch.
        name: how the dataset is called in reports; by default the JSON's name.
    """

    images: str
    annotations: str
    annotated: tuple[str, ...] = ()
    repeat: Count = 1
    name: str = ""


class PanopticData(Section, frozen=True, kw_only=True, tag_field="format", tag="panoptic"):
    """COCO's panoptic JSON and PNGs; its things are the instances, panoptic models take its stuff.

    Attributes:
        images: the folder of the pictures.
        annotations: the JSON.
        segments: the folder of the PNGs.
        annotated: see :class:`CocoData`.
        repeat: see :class:`CocoData`.
        name: see :class:`CocoData`.
    """

    images: str
    annotations: str
    segments: str
    annotated: tuple[str, ...] = ()
    repeat: Count = 1
    name: str = ""


class InstancePngData(Section, frozen=True, kw_only=True, tag_field="format", tag="instance_png"):
    """One PNG of instance numbers an image, 0 for background: PennFudan's layout.

    Attributes:
        images: the folder of the pictures.
        masks: the folder of the PNGs: ``X_mask.png`` or ``X.png`` belongs to the picture ``X``.
        category: what all instances are; its id is 1.
        repeat: see :class:`CocoData`.
        name: by default the folder's name.
    """

    images: str
    masks: str
    category: str = "object"
    repeat: Count = 1
    name: str = ""


class PatternData(Section, frozen=True, kw_only=True, tag_field="format", tag="pattern"):
    """Frames of the synthetic test pattern, discs and boxes with known masks.

    Attributes:
        url: as a source's, ``test:?size=128x128&frames=64&objects=4&seed=1``.
        repeat: see :class:`CocoData`.
        name: by default ``pattern``.
    """

    url: str
    repeat: Count = 1
    name: str = ""


DatasetConfig: TypeAlias = CocoData | PanopticData | InstancePngData | PatternData
ProblemPolicy: TypeAlias = Literal["refuse", "skip"]


class DataConfig(Section, frozen=True, kw_only=True):
    """What there is to learn from, and what is kept apart to measure with.

    Attributes:
        root: the folder that paths are relative to; itself relative to the file that says it.
        train: learnt from.
        val: measured on, each by itself.
        problems: ``refuse`` a dataset in which anything is wrong, or ``skip`` what is wrong: the
            annotations and images are left out, counted by reason and reported. By default a
            training skips and an evaluation refuses.
    """

    root: str = "."
    train: tuple[DatasetConfig, ...] = ()
    val: tuple[DatasetConfig, ...] = ()
    problems: ProblemPolicy = "refuse"

    def __post_init__(self) -> None:
        if not self.train and not self.val:
            raise ValueError("name at least one dataset, under train or val")


class TrainingDataConfig(DataConfig, frozen=True, kw_only=True):
    """The data of a training; a few bad rows of thousands don't keep it from starting.

    Attributes:
        root: see :class:`DataConfig`.
        train: see :class:`DataConfig`.
        val: see :class:`DataConfig`.
        problems: see :class:`DataConfig`.
    """

    problems: ProblemPolicy = "skip"


class AugmentConfig(Section, frozen=True, kw_only=True):
    """How training images are varied; image, boxes, masks and stuff always together.

    Attributes:
        flip: the probability of a mirror image.
        scale: the long side becomes the model's input size times a number drawn from here
            (large-scale jitter: Ghiasi et al., "Simple Copy-Paste", 2021); what is larger than
            the input size is cropped.
        photometric: how strongly brightness, contrast, saturation and hue are changed; 0 is not.
        copy_paste: the probability that another image's instances are pasted in.
    """

    flip: Fraction01 = 0.5
    scale: tuple[Positive, Positive] = (0.6, 1.5)
    photometric: Fraction01 = 0.5
    copy_paste: Fraction01 = 0.0

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale: the first number must not be larger than the second")


class OptimiserConfig(Section, frozen=True, kw_only=True):
    """How gradients become steps.

    Attributes:
        name: ``adamw`` or ``sgd``.
        rate: the learning rate at the end of the warm-up.
        rates: factors of ``rate`` for parts of the network, by the beginning of a parameter's
            name, such as ``{backbone: 0.1}``; the longest beginning counts.
        weight_decay: of weights with two dimensions or more; biases and norms have none.
        momentum: of ``sgd``; the first beta of ``adamw``.
        clip: gradients are scaled down to this norm; 0 doesn't.
        frozen: parts that stay as they are, by the beginning of a parameter's name.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    rate: Positive = 1e-3
    rates: dict[str, Rate] = field(default_factory=dict)
    weight_decay: NotNegative = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    clip: NotNegative = 5.0
    frozen: tuple[str, ...] = ()


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """How the learning rate goes.

    Attributes:
        name: ``cosine`` to ``last``, or ``steps``: times ``gamma`` at each of ``milestones``.
        warmup: optimiser steps in which the rate rises from 0.
        milestones: of ``steps``, as fractions of the whole training.
        gamma: of ``steps``.
        last: of ``cosine``: the fraction of the rate that is left at the end.
    """

    name: Literal["cosine", "steps"] = "cosine"
    warmup: Annotated[int, Meta(ge=0)] = 100
    milestones: tuple[Fraction01, ...] = (0.7, 0.9)
    gamma: Fraction01 = 0.1
    last: Fraction01 = 0.01


class TrainingConfig(Section, frozen=True, kw_only=True):
    """A training, from data to checkpoints.

    Attributes:
        model: the architecture, the weights to start from (``default``, a path, ``none``), the
            input size and the precision (``bf16`` and ``fp16`` are autocast).
        data: what to learn from and what to measure on.
        epochs: how often the training data are gone through.
        batch: images in a forward, over all processes together.
        accumulate: forwards before an optimiser step.
        augment: how images are varied.
        optimiser: how gradients become steps.
        schedule: how the learning rate goes.
        ema: decay of the averaged weights, which are what is measured and served; 0 has none.
        losses: weights of single losses, by name, instead of the family's own.
        seed: of every random draw.
        workers: processes that load and augment images; 0 does it in between.
        evaluate_every: epochs between measurements on ``val``; the last epoch is always measured.
        save_every: optimiser steps between checkpoints within an epoch; 0 saves at its end only.
    """

    model: ModelConfig
    data: TrainingDataConfig
    epochs: Count
    batch: Count = 8
    accumulate: Count = 1
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    losses: dict[str, NotNegative] = field(default_factory=dict)
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    workers: Annotated[int, Meta(ge=0, le=64)] = 1
    evaluate_every: Count = 1
    save_every: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ValueError("data.train is empty: name at least one dataset to learn from")


class PanopticTask(Section, frozen=True, kw_only=True):
    """Panoptic results to be compared with the truth, both in COCO's format.

    Attributes:
        truth: the JSON of the truth; ``truth_segments`` is the folder of its PNGs.
        truth_segments: see ``truth``.
        results: the JSON of the results; ``result_segments`` is the folder of its PNGs.
        result_segments: see ``results``.
        name: how it is called in the report.
    """

    truth: str
    truth_segments: str
    results: str
    result_segments: str
    name: str = "panoptic"


class TrackingTask(Section, frozen=True, kw_only=True):
    """Tracks to be compared with the truth.

    Attributes:
        truth: MOTS text (``frame id class height width rle``) or MOT text
            (``frame,id,left,top,width,height,…``), or a ``results.jsonl`` of this project.
        results: likewise.
        overlap: what overlaps are computed on; MOT text has boxes only.
        classes: category ids by name, such as ``{car: 1, pedestrian: 2}``; scored one by one.
        name: how it is called in the report; by default the truth's name.
    """

    truth: str
    results: str
    overlap: Literal["masks", "boxes"] = "masks"
    classes: dict[str, int] = field(default_factory=dict)
    name: str = ""


class EvaluationConfig(Section, frozen=True, kw_only=True):
    """What ``streamseg eval`` measures; at least one of the three.

    Attributes:
        model: what is measured on ``data.val``: average precision, and panoptic quality where both
            have stuff.
        data: the datasets.
        least_score: detections below it are left out, as COCO's users do to save time.
        most: detections an image.
        batch: images in a forward.
        class_agnostic_iou: as in a service's thresholds; ``auto`` is none, as published results
            are measured, and with ``--through-service`` what the service has.
        panoptic: panoptic results in files.
        tracking: tracks in files.
        root: the folder that the files of ``panoptic`` and ``tracking`` are relative to; itself
            relative to this file.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig | None = None
    least_score: Fraction01 = 0.05
    most: Annotated[int, Meta(ge=1, le=100)] = 100
    batch: Count = 4
    class_agnostic_iou: MaskIoU = "auto"
    panoptic: tuple[PanopticTask, ...] = ()
    tracking: tuple[TrackingTask, ...] = ()
    root: str = "."

    def __post_init__(self) -> None:
        if not (self.data or self.panoptic or self.tracking):
            raise ValueError("nothing to measure: name data, panoptic or tracking")
        if self.data is not None and not self.data.val:
            raise ValueError("data.val is empty: name at least one dataset to measure on")


def load_training_config(file: Path, sets: list[str]) -> TrainingConfig:
    """A training's file with ``--set`` overrides.

    Raises:
        ConfigError: the file can't be read or something in it is wrong; the message says where.
    """
    return convert(_load(file, sets), TrainingConfig, str(file))


def load_evaluation_config(file: Path, sets: list[str]) -> EvaluationConfig:
    """Load an evaluation config and apply ``--set`` overrides."""
    return convert(_load(file, sets), EvaluationConfig, str(file))


def load_data_config(file: Path, sets: list[str]) -> DataConfig:
    """Return the datasets of a config: its ``data`` section, or the whole file."""
    raw = _load(file, sets)
    return convert(raw["data"] if isinstance(raw.get("data"), dict) else raw, DataConfig, str(file))


def _load(file: Path, sets: list[str]) -> dict[str, Any]:
    raw = load(file)
    override(raw, sets)
    return raw
