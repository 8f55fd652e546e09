"""Models in other processes: pickling, copying and forking."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from streamseg.errors import UsageError, WeightsError
from streamseg.models import load_model
from streamseg.models.base import Segmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
OPTIONS = {"device": "cpu", "input_size": 96, "score": 0.01, "max_instances": 7}


@pytest.fixture
def model_from_file(tmp_path):
    """Return a model with custom classes, loaded from a file."""
    network = load_model(
        "nanomask", "none", device="cpu", input_size=64, class_names=["bolt", "nut"]
    ).network
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    return load_model("nanomask", tmp_path / "mine.pth", class_names=["bolt", "nut"], **OPTIONS)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_model_is_loaded_from_absolute_path(
    model_from_file, protocol, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    relative = load_model("nanomask", "mine.pth", class_names=["bolt", "nut"], **OPTIONS)
    pickled = pickle.dumps(relative, protocol)
    assert len(pickled) < 3000
    monkeypatch.chdir("/")
    restored = pickle.loads(pickled)
    assert restored.predict(IMAGE).to_coco(1) == model_from_file.predict(IMAGE).to_coco(1)
    assert len(restored.predict(IMAGE)) > 0
    assert dict(restored.categories) == {1: "bolt", 2: "nut"}
    assert (restored.thresholds, restored.input_size) == (model_from_file.thresholds, 96)


@pytest.mark.parametrize("weights", ["default", "none"])
def test_model_with_named_weights_is_pickled_by_name(weights):
    model = load_model("nanomask", weights, **OPTIONS)
    restored = pickle.loads(pickle.dumps(model))
    assert restored.predict(IMAGE).to_coco(1) == model.predict(IMAGE).to_coco(1)


def test_pickle_keeps_changed_attributes(model_from_file):
    model_from_file.input_size = 64
    restored = pickle.loads(pickle.dumps(model_from_file))
    assert restored.input_size == 64
    assert restored.predict(IMAGE).to_coco(1) == model_from_file.predict(IMAGE).to_coco(1)


def test_pickle_rejects_model_with_changed_weights(model_from_file):
    with torch.no_grad():
        next(model_from_file.network.parameters()).add_(1)
    with pytest.raises(UsageError, match=r"can't be pickled: it was changed.*load the model in"):
        pickle.dumps(model_from_file)
    with pytest.raises(UsageError, match="can't be pickled"):
        pickle.dumps(model_from_file.with_network(model_from_file.network))


def test_unpickle_rejects_changed_weights_file(model_from_file, tmp_path):
    pickled = pickle.dumps(model_from_file)
    other = load_model("nanomask", "none", class_names=["bolt", "nut"]).network.state_dict()
    other["mask.logits.bias"] = other["mask.logits.bias"] + 1
    torch.save(other, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"mine\.pth: isn't the file that nanomask was loaded"):
        pickle.loads(pickled)
    with pytest.raises(UsageError, match="was changed after it was loaded"):
        pickle.dumps(model_from_file)
    (tmp_path / "mine.pth").unlink()
    with pytest.raises(WeightsError, match=r"mine\.pth: No such file"):
        pickle.loads(pickled)
    with pytest.raises(UsageError, match="No such file"):
        pickle.dumps(model_from_file)


def test_deepcopy_copies_the_network(model_from_file):
    expected = model_from_file.predict(IMAGE).to_coco(1)
    restored = copy.deepcopy(model_from_file)
    assert restored.predict(IMAGE).to_coco(1) == expected
    pickle.dumps(restored)
    with torch.no_grad():
        for parameter in restored.network.parameters():
            parameter.zero_()
    assert model_from_file.predict(IMAGE).to_coco(1) == expected
    pickle.dumps(model_from_file)
    with pytest.raises(UsageError):
        pickle.dumps(restored)
    assert copy.copy(model_from_file).network is model_from_file.network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["solov2_light_r18", "yolact_r50"])
def test_other_families_can_be_copied_and_pickled(name):
    model = load_model(name, "none", device="cpu", input_size=96, score=0)
    expected = model.predict(IMAGE).to_coco(1)
    assert copy.deepcopy(model).predict(IMAGE).to_coco(1) == expected
    assert pickle.loads(pickle.dumps(model)).predict(IMAGE).to_coco(1) == expected


def count_instances(model: Segmenter) -> int:
    return len(model.predict(IMAGE))


@pytest.mark.slow
def test_model_can_be_sent_to_spawned_process(model_from_file):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(count_instances, model_from_file).result(timeout=100) == len(
            model_from_file.predict(IMAGE)
        )


FORKED = """
import multiprocessing, sys
import numpy as np
import torch
import streamseg

torch.set_num_threads(2)
image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
model = streamseg.load_model("nanomask", device="cpu", score=0.01)
expected = len(model.predict(image))

def work(answers):
    first = len(model.predict(image))
    loaded = streamseg.load_model("nanomask", device="cpu", score=0.01)
    answers.put((first, len(loaded.predict([image])[0])))

fork = multiprocessing.get_context("fork")
answers = fork.SimpleQueue()
children = [fork.Process(target=work, args=(answers,)) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join(30)
    if child.exitcode != 0:
        child.kill()
        sys.exit(f"the child ended with {child.exitcode}")
print(expected, answers.get(), answers.get(), len(model.predict(image)), torch.get_num_threads())
"""


@pytest.mark.slow
def test_forked_process_predicts_and_loads_models():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    expected, *restored, parent_count, threads = (
        process.stdout.replace("(", "").replace(")", "").split()
    )
    assert int(expected) > 0
    assert [int(each.strip(",")) for each in restored] == [int(expected)] * 4
    assert (parent_count, threads) == (expected, "2")
    assert process.stderr.count("was forked: torch uses one thread in it") == 2


def test_predict_rejects_gpu_model_in_forked_process(model_from_file):
    model_from_file.device = torch.device("cuda")
    model_from_file._process = -1  # not this process
    with pytest.raises(UsageError, match=r"nanomask is on cuda of the parent process"):
        model_from_file.predict(IMAGE)
