"""Registry of the built-in models, with size, cost and published accuracy; loads without torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamseg.config.plugins import find_plugins
from streamseg.errors import UnknownModelError

Availability: TypeAlias = Literal["bundled", "downloaded", "yours"]
Family: TypeAlias = Literal[
    "nanomask", "mask_rcnn", "mask_rcnn_d2", "panoptic_fpn", "yolact", "solo", "solov2"
]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Weights published by the authors of an architecture.

    Attributes:
        file: file name.
        url: URL of the file, or of the page that links to it.
        license: license of the weights.
        measured_on: dataset of the accuracies.
        box_ap: published box AP in percent, or None.
        mask_ap: published mask AP in percent, or None.
        pq: published panoptic quality in percent, or None.
        sha256: SHA-256 of the file, or its known beginning, or None.
    """

    file: str
    url: str
    license: str
    measured_on: str
    box_ap: float | None = None
    mask_ap: float | None = None
    pq: float | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Entry of a model in the registry.

    Attributes:
        name: name for ``load_model``.
        family: architecture; members of a family differ in size or details.
        classes: number of classes and dataset.
        parameters: number of parameters in millions.
        gflops: billions of multiply-adds for an image of 640 x 480 at the default input size,
            without the work per object.
        input_size: input size in pixels, with the side that it refers to.
        default_size: default of the argument ``input_size``.
        weights: availability of the default weights: part of the package, downloaded at first
            use, or to be downloaded by the user.
        published: published weights; the first ones are the default.
    """

    name: str
    family: Family
    classes: str
    parameters: float
    gflops: float
    input_size: str
    default_size: int
    weights: Availability
    published: tuple[PublishedWeights, ...]


REGISTRY: tuple[ModelInfo, ...] = (
    ModelInfo(
        name="nanomask",
        family="nanomask",
        classes="80 (COCO)",
        parameters=4.45,
        gflops=1.6,
        input_size="416, long side",
        default_size=416,
        weights="bundled",
        published=(
            PublishedWeights(
                file="nanomask.safetensors",
                url="streamseg/assets/nanomask.md",
                license="Apache-2.0 (NanoDet), MIT (human-models)",
                measured_on="measured here, see the model card: streamseg/assets/nanomask.md",
            ),
        ),
    ),
    ModelInfo(
        name="mask_rcnn_r50_fpn",
        family="mask_rcnn",
        classes="80 (COCO)",
        parameters=44.40,
        gflops=177.6,
        input_size="800, short side",
        default_size=800,
        weights="downloaded",
        published=(
            PublishedWeights(
                file="maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
                url="https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
                license="BSD-3-Clause (torchvision)",
                sha256="bf2d0c1e",
                box_ap=37.9,
                mask_ap=34.6,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="mask_rcnn_r50_fpn_v2",
        family="mask_rcnn",
        classes="80 (COCO)",
        parameters=46.36,
        gflops=334.9,
        input_size="800, short side",
        default_size=800,
        weights="downloaded",
        published=(
            PublishedWeights(
                file="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                url="https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
                license="BSD-3-Clause (torchvision)",
                sha256="73cbd019",
                box_ap=47.4,
                mask_ap=41.8,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="mask_rcnn_r50_fpn_d2",
        family="mask_rcnn_d2",
        classes="80 (COCO)",
        parameters=44.35,
        gflops=173.5,
        input_size="800, short side",
        default_size=800,
        weights="yours",
        published=(
            PublishedWeights(
                file="model_final_f10217.pkl",
                url="https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
                license="CC BY-SA 3.0 (detectron2)",
                box_ap=41.0,
                mask_ap=37.2,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="model_final_a54504.pkl",
                url="https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl",
                license="CC BY-SA 3.0 (detectron2)",
                box_ap=38.6,
                mask_ap=35.2,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="panoptic_fpn_r50",
        family="panoptic_fpn",
        classes="80 things, 53 stuff (COCO)",
        parameters=45.98,
        gflops=199.7,
        input_size="800, short side",
        default_size=800,
        weights="yours",
        published=(
            PublishedWeights(
                file="model_final_c10459.pkl",
                url="https://dl.fbaipublicfiles.com/detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_3x/139514569/model_final_c10459.pkl",
                license="CC BY-SA 3.0 (detectron2)",
                box_ap=40.0,
                mask_ap=36.5,
                pq=41.5,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="model_final_dbfeb4.pkl",
                url="https://dl.fbaipublicfiles.com/detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x/139514544/model_final_dbfeb4.pkl",
                license="CC BY-SA 3.0 (detectron2)",
                box_ap=37.6,
                mask_ap=34.7,
                pq=39.4,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_r50",
        family="yolact",
        classes="80 (COCO)",
        parameters=31.16,
        gflops=59.1,
        input_size="550, square",
        default_size=550,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_resnet50_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=28.2,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_r101",
        family="yolact",
        classes="80 (COCO)",
        parameters=50.16,
        gflops=82.3,
        input_size="550, square",
        default_size=550,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_base_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=29.8,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_darknet53",
        family="yolact",
        classes="80 (COCO)",
        parameters=47.78,
        gflops=77.4,
        input_size="550, square",
        default_size=550,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_darknet53_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=28.7,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_im700",
        family="yolact",
        classes="80 (COCO)",
        parameters=50.16,
        gflops=131.5,
        input_size="700, square",
        default_size=700,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_im700_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=31.2,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_plus_r50",
        family="yolact",
        classes="80 (COCO)",
        parameters=33.77,
        gflops=70.7,
        input_size="550, square",
        default_size=550,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_plus_resnet50_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=34.1,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="yolact_plus_r101",
        family="yolact",
        classes="80 (COCO)",
        parameters=52.57,
        gflops=94.2,
        input_size="550, square",
        default_size=550,
        weights="yours",
        published=(
            PublishedWeights(
                file="yolact_plus_base_54_800000.pth",
                url="https://github.com/dbolya/yolact#evaluation",
                license="MIT (YOLACT)",
                mask_ap=34.6,
                measured_on="COCO test-dev",
            ),
        ),
    ),
    ModelInfo(
        name="solov2_r50",
        family="solov2",
        classes="80 (COCO)",
        parameters=46.59,
        gflops=217.8,
        input_size="800, short side",
        default_size=800,
        weights="yours",
        published=(
            PublishedWeights(
                file="solov2_r50_fpn_3x_coco_20220512_125856-fed092d4.pth",
                url="https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_r50_fpn_3x_coco/solov2_r50_fpn_3x_coco_20220512_125856-fed092d4.pth",
                license="Apache-2.0 (mmdetection)",
                sha256="fed092d4",
                mask_ap=37.5,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="SOLOv2_R50_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=37.5,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="solov2_light_r18",
        family="solov2",
        classes="80 (COCO)",
        parameters=18.27,
        gflops=43.1,
        input_size="448, short side",
        default_size=448,
        weights="yours",
        published=(
            PublishedWeights(
                file="solov2_light_r18_fpn_3x_coco_20220511_083717-75fa355b.pth",
                url="https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_light_r18_fpn_3x_coco/solov2_light_r18_fpn_3x_coco_20220511_083717-75fa355b.pth",
                license="Apache-2.0 (mmdetection)",
                sha256="75fa355b",
                mask_ap=29.7,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="SOLOv2_LIGHT_448_R18_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=29.6,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="solov2_light_r34",
        family="solov2",
        classes="80 (COCO)",
        parameters=28.38,
        gflops=53.1,
        input_size="448, short side",
        default_size=448,
        weights="yours",
        published=(
            PublishedWeights(
                file="SOLOv2_LIGHT_448_R34_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=32.0,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="solov2_light_r50",
        family="solov2",
        classes="80 (COCO)",
        parameters=31.34,
        gflops=57.0,
        input_size="448, short side",
        default_size=448,
        weights="yours",
        published=(
            PublishedWeights(
                file="solov2_light_r50_fpn_3x_coco_20220512_165256-c93a6074.pth",
                url="https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_light_r50_fpn_3x_coco/solov2_light_r50_fpn_3x_coco_20220512_165256-c93a6074.pth",
                license="Apache-2.0 (mmdetection)",
                sha256="c93a6074",
                mask_ap=33.7,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="SOLOv2_LIGHT_448_R50_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=33.7,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="solov2_light_r50_dcn",
        family="solov2",
        classes="80 (COCO)",
        parameters=33.52,
        gflops=78.3,
        input_size="512, short side",
        default_size=512,
        weights="yours",
        published=(
            PublishedWeights(
                file="SOLOv2_LIGHT_512_DCN_R50_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=36.4,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="decoupled_solo_light_r50",
        family="solo",
        classes="80 (COCO)",
        parameters=32.35,
        gflops=91.2,
        input_size="512, short side",
        default_size=512,
        weights="yours",
        published=(
            PublishedWeights(
                file="decoupled_solo_light_r50_fpn_3x_coco_20210906_142703-e70e226f.pth",
                url="https://download.openmmlab.com/mmdetection/v2.0/solo/decoupled_solo_light_r50_fpn_3x_coco/decoupled_solo_light_r50_fpn_3x_coco_20210906_142703-e70e226f.pth",
                license="Apache-2.0 (mmdetection)",
                sha256="e70e226f",
                mask_ap=32.9,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="DECOUPLED_SOLO_LIGHT_R50_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=33.0,
                measured_on="COCO val2017",
            ),
        ),
    ),
    ModelInfo(
        name="solo_r50",
        family="solo",
        classes="80 (COCO)",
        parameters=36.30,
        gflops=270.4,
        input_size="800, short side",
        default_size=800,
        weights="yours",
        published=(
            PublishedWeights(
                file="solo_r50_fpn_3x_coco_20210901_012353-11d224d7.pth",
                url="https://download.openmmlab.com/mmdetection/v2.0/solo/solo_r50_fpn_3x_coco/solo_r50_fpn_3x_coco_20210901_012353-11d224d7.pth",
                license="Apache-2.0 (mmdetection)",
                sha256="11d224d7",
                mask_ap=35.9,
                measured_on="COCO val2017",
            ),
            PublishedWeights(
                file="SOLO_R50_3x.pth",
                url="https://huggingface.co/xinlongwang/SOLO",
                license="academic use only (WXinlong/SOLO)",
                mask_ap=35.8,
                measured_on="COCO val2017",
            ),
        ),
    ),
)


def find(name: str) -> ModelInfo:
    """Return the entry of a model.

    Raises:
        UnknownModelError: no model of this package has the name; similar names are listed.
    """
    names = [entry.name for entry in REGISTRY]
    if name in names:
        return REGISTRY[names.index(name)]
    plugins = find_plugins("streamseg.models")
    if name in plugins:
        raise UnknownModelError(
            f"{name!r} is a plug-in of {plugins[name].origin}: use it with serve or process"
        )
    names += plugins
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    raise UnknownModelError(f"no model is called {name!r}; {hint}")
