"""Config schemas of ``train`` and ``eval``: datasets, augmentation, optimizer, evaluation.

The rules of the service's config apply, see :mod:`streamseg.config`: one YAML file, validated as a
whole before anything starts. Data paths are relative to ``root``, and ``root`` to the config file.
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

LearningRateFactor: TypeAlias = Annotated[float, Meta(ge=0, le=1000)]


class CocoData(Section, frozen=True, kw_only=True, tag_field="format", tag="coco"):
    """Dataset in COCO instance format: polygons, run lengths, crowds.

    Attributes:
        images: folder that the file names in the JSON are relative to.
        annotations: path of the JSON.
        annotated: classes of which every instance in every image is annotated; empty means all.
            For other classes, a region without an annotation is not treated as background.
        repeat: how many times each image is used per epoch.
        name: name of the dataset in reports; by default the stem of the JSON.
    """

    images: str
    annotations: str
    annotated: tuple[str, ...] = ()
    repeat: Count = 1
    name: str = ""


class PanopticData(Section, frozen=True, kw_only=True, tag_field="format", tag="panoptic"):
    """Dataset in COCO panoptic format; its things are instances, panoptic models also use stuff.

    Attributes:
        images: folder of the images.
        annotations: path of the JSON.
        segments: folder of the PNGs.
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
    """Dataset with one PNG of instance ids per image, 0 for background (PennFudan's layout).

    Attributes:
        images: folder of the images.
        masks: folder of the PNGs; ``X_mask.png`` or ``X.png`` belongs to the image ``X``.
        category: class of all instances; its id is 1.
        repeat: see :class:`CocoData`.
        name: name of the dataset in reports; by default the name of the folder of images.
    """

    images: str
    masks: str
    category: str = "object"
    repeat: Count = 1
    name: str = ""


class PatternData(Section, frozen=True, kw_only=True, tag_field="format", tag="pattern"):
    """Frames of the synthetic test pattern: discs and boxes with exact masks.

    Attributes:
        url: url as of a source, ``test:?size=128x128&frames=64&objects=4&seed=1``.
        repeat: see :class:`CocoData`.
        name: name of the dataset in reports; by default ``pattern``.
    """

    url: str
    repeat: Count = 1
    name: str = ""


DatasetConfig: TypeAlias = CocoData | PanopticData | InstancePngData | PatternData
ProblemPolicy: TypeAlias = Literal["refuse", "skip"]


class DataConfig(Section, frozen=True, kw_only=True):
    """Datasets for training and evaluation.

    Attributes:
        root: folder that the paths are relative to; itself relative to the config file.
        train: training datasets.
        val: evaluation datasets, each evaluated separately.
        problems: ``refuse`` datasets with problems, or ``skip`` the annotations and images with
            problems, which are counted by reason and reported. The default is ``skip`` for
            training and ``refuse`` for evaluation.
    """

    root: str = "."
    train: tuple[DatasetConfig, ...] = ()
    val: tuple[DatasetConfig, ...] = ()
    problems: ProblemPolicy = "refuse"

    def __post_init__(self) -> None:
        if not self.train and not self.val:
            raise ValueError("name at least one dataset, under train or val")


class TrainingDataConfig(DataConfig, frozen=True, kw_only=True):
    """Datasets of a training run; by default a few invalid annotations don't prevent it.

    Attributes:
        root: see :class:`DataConfig`.
        train: see :class:`DataConfig`.
        val: see :class:`DataConfig`.
        problems: see :class:`DataConfig`.
    """

    problems: ProblemPolicy = "skip"


class AugmentConfig(Section, frozen=True, kw_only=True):
    """Augmentation of training images; masks, boxes and stuff are transformed with the image.

    Attributes:
        flip: probability of a horizontal flip.
        scale: range of the random scale; the long side becomes the model's input size times the
            scale, and what exceeds the input size is cropped (large-scale jitter: Ghiasi et al.,
            "Simple Copy-Paste", 2021).
        photometric: strength of changes in brightness, contrast, saturation and hue; 0 disables.
        copy_paste: probability that instances of another image are pasted in.
    """

    flip: Fraction01 = 0.5
    scale: tuple[Positive, Positive] = (0.6, 1.5)
    photometric: Fraction01 = 0.5
    copy_paste: Fraction01 = 0.0

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale: the first number must not be larger than the second")


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """Optimizer settings.

    Attributes:
        name: ``adamw`` or ``sgd``.
        rate: learning rate after the warm-up.
        rates: factors of ``rate`` by prefix of the parameter name, such as ``{backbone: 0.1}``;
            the longest matching prefix applies.
        weight_decay: weight decay of parameters with two or more dimensions; biases and norms
            have none.
        momentum: momentum of ``sgd``; first beta of ``adamw``.
        clip: maximum gradient norm; 0 disables clipping.
        frozen: prefixes of the names of parameters that are not trained.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    rate: Positive = 1e-3
    rates: dict[str, LearningRateFactor] = field(default_factory=dict)
    weight_decay: NotNegative = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    clip: NotNegative = 5.0
    frozen: tuple[str, ...] = ()


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """Learning rate schedule.

    Attributes:
        name: ``cosine`` decay to ``last``, or ``steps``: multiplied by ``gamma`` at each of
            ``milestones``.
        warmup: number of optimizer steps in which the rate rises from 0.
        milestones: for ``steps``: fractions of the whole training.
        gamma: for ``steps``: factor at each milestone.
        last: for ``cosine``: final rate as a fraction of ``rate``.
    """

    name: Literal["cosine", "steps"] = "cosine"
    warmup: Annotated[int, Meta(ge=0)] = 100
    milestones: tuple[Fraction01, ...] = (0.7, 0.9)
    gamma: Fraction01 = 0.1
    last: Fraction01 = 0.01


class TrainingConfig(Section, frozen=True, kw_only=True):
    """Config of ``streamseg train``.

    Attributes:
        model: architecture, initial weights (``default``, a path, or ``none``), input size, and
            precision (``bf16`` and ``fp16`` use autocast).
        data: datasets for training and evaluation.
        epochs: number of passes over the training data.
        batch: images per forward pass, over all processes together.
        accumulate: forward passes per optimizer step.
        augment: augmentation of training images.
        optimiser: optimizer settings.
        schedule: learning rate schedule.
        ema: decay of the exponential moving average of the weights, which is what is evaluated
            and served; 0 disables averaging.
        losses: weights of losses by name, which replace those of the model family.
        seed: seed of all random draws.
        workers: number of processes that load and augment images; 0 loads in the main process.
        evaluate_every: epochs between evaluations on ``val``; the last epoch is always evaluated.
        save_every: optimizer steps between checkpoints within an epoch; 0 saves only at the end
            of each epoch.
    """

    model: ModelConfig
    data: TrainingDataConfig
    epochs: Count
    batch: Count = 8
    accumulate: Count = 1
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    losses: dict[str, NotNegative] = field(default_factory=dict)
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    workers: Annotated[int, Meta(ge=0, le=64)] = 1
    evaluate_every: Count = 1
    save_every: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ValueError("data.train is empty: name at least one training dataset")


class PanopticTask(Section, frozen=True, kw_only=True):
    """Evaluation of panoptic result files against ground truth, both in COCO format.

    Attributes:
        truth: path of the ground-truth JSON.
        truth_segments: folder of the ground-truth PNGs.
        results: path of the results JSON.
        result_segments: folder of the result PNGs.
        name: name of this evaluation in the report.
    """

    truth: str
    truth_segments: str
    results: str
    result_segments: str
    name: str = "panoptic"


class TrackingTask(Section, frozen=True, kw_only=True):
    """Evaluation of track files against ground truth.

    Attributes:
        truth: path of the ground truth: MOTS text (``frame id class height width rle``), MOT text
            (``frame,id,left,top,width,height,…``), or a ``results.jsonl`` of this project.
        results: path of the results, in one of the same formats.
        overlap: compute IoU on ``masks`` or ``boxes``; MOT text has only boxes.
        classes: category id by name, such as ``{car: 1, pedestrian: 2}``; each is scored
            separately.
        name: name of this evaluation in the report; by default that of the ground truth.
    """

    truth: str
    results: str
    overlap: Literal["masks", "boxes"] = "masks"
    classes: dict[str, int] = field(default_factory=dict)
    name: str = ""


class EvaluationConfig(Section, frozen=True, kw_only=True):
    """Config of ``streamseg eval``; at least one of data, panoptic and tracking is required.

    Attributes:
        model: model to evaluate on ``data.val``: average precision, and panoptic quality if both
            model and dataset have stuff.
        data: evaluation datasets.
        least_score: detections with lower scores are left out, as is common on COCO to save time.
        most: maximum number of detections per image.
        batch: images per forward pass.
        class_agnostic_iou: as in the service's thresholds; ``auto`` disables it, as published
            results do, but uses the service's value with ``--through-service``.
        panoptic: panoptic result files to evaluate.
        tracking: track files to evaluate.
        root: folder that the paths in ``panoptic`` and ``tracking`` are relative to; itself
            relative to the config file.
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
            raise ValueError("data.val is empty: name at least one evaluation dataset")


def load_training_config(file: Path, sets: list[str]) -> TrainingConfig:
    """Load a training config and apply ``--set`` overrides.

    Args:
        file: path of the YAML file.
        sets: overrides, ``key.subkey=value``.

    Raises:
        ConfigError: the file can't be read or is invalid; the message names the key.
    """
    return convert(_load(file, sets), TrainingConfig, str(file))


def load_evaluation_config(file: Path, sets: list[str]) -> EvaluationConfig:
    """Load an evaluation config; see :func:`load_training_config`."""
    return convert(_load(file, sets), EvaluationConfig, str(file))


def load_data_config(file: Path, sets: list[str]) -> DataConfig:
    """Load the datasets of a training or evaluation config: its ``data``, or the whole file."""
    content = _load(file, sets)
    section = content["data"] if isinstance(content.get("data"), dict) else content
    return convert(section, DataConfig, str(file))


def _load(file: Path, sets: list[str]) -> dict[str, Any]:
    content = load(file)
    override(content, sets)
    return content
