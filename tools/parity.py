"""Table of the differences between each model family and its authors' code.

    python tools/parity.py

Weights and image are those of the fixtures; see ``tests/support/parity.py``. Differences of scores
are in units of ``float_noise``: the difference between two runs of the authors' code with different
convolution libraries. The tests allow 20 units.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from streamseg.models import load_model
from streamseg.models.categories import COCO
from streamseg.structures.masks import Masks

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.parity import Fixture, fixture, make_image

FIXTURES = {
    "yolact_r50": ("yolact", "yolact_resnet50"),
    "yolact_plus_r50": ("yolact", "yolact_plus_resnet50"),
    "solov2_light_r50": ("solov2", "solov2_light_r50"),
    "decoupled_solo_light_r50": ("solo_v1", "decoupled_solo_light_r50"),
    "mask_rcnn_r50_fpn_d2": ("mask_rcnn_d2", "mask_rcnn_R_50_FPN_3x"),
    "panoptic_fpn_r50": ("panoptic_fpn", "panoptic_fpn_R_50_3x"),
}


def main() -> None:
    """Print the table as Markdown."""
    print("| model | instances | same class | score, noises | mask pixels, worst of 25 |")
    print("|---|---|---|---|---|")
    for name, (family, file) in FIXTURES.items():
        print(
            f"| `{name}` | {' | '.join(compare_model(name, fixture(family, file)))} |", flush=True
        )


def compare_model(name: str, published: Fixture) -> list[str]:
    """Return the cells of one model: its results compared with the published ones."""
    model = load_model(name, weights="none", device="cpu", score=0)
    model.network.load_state_dict(type(model).convert_state_dict(model.network, published.state()))
    (found,) = model.predict([make_image()])
    final = {key[6:]: value for key, value in published.arrays.items() if key.startswith("final/")}
    scores = final.get("mask_score", final["score"])
    order = np.argsort(-scores, kind="stable")  # the fixture of YOLACT++ is sorted by another score
    classes = np.array(list(COCO))[final["class"]][order]
    noise = published.meta["float_noise"]["score_maxdiff"]
    size, row_of = tuple(published.meta["rle_size"]), np.argsort(order)
    pixels = [
        np.count_nonzero(
            Masks.from_rle([text], size)[0].to_array() != found.masks[int(row)].to_array()
        )
        for text, row in zip(published.meta["rle_counts"], row_of, strict=False)
    ]
    return [
        str(len(found)),
        str(np.count_nonzero(found.labels == classes)),
        f"{np.abs(found.scores - scores[order]).max() / noise:.1f}",
        str(max(pixels)),
    ]


if __name__ == "__main__":
    main()
