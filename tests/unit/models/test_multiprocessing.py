"""A model in other processes: pickled, copied, forked."""

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
def saved(tmp_path):
    """A model of own classes, from a file."""
    network = load_model(
        "nanomask", "none", device="cpu", input_size=64, class_names=["bolt", "nut"]
    ).network
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    return load_model("nanomask", tmp_path / "mine.pth", class_names=["bolt", "nut"], **OPTIONS)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_model_is_loaded_again_from_where_it_was(saved, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = load_model("nanomask", "mine.pth", class_names=["bolt", "nut"], **OPTIONS)
    pickled = pickle.dumps(relative, protocol)
    assert len(pickled) < 3000
    monkeypatch.chdir("/")
    there = pickle.loads(pickled)
    assert there.predict(IMAGE).to_coco(1) == saved.predict(IMAGE).to_coco(1)
    assert len(there.predict(IMAGE)) > 0
    assert dict(there.categories) == {1: "bolt", 2: "nut"}
    assert (there.thresholds, there.input_size) == (saved.thresholds, 96)


@pytest.mark.parametrize("weights", ["default", "none"])
def test_a_model_of_the_catalogue_s_weights_is_pickled_by_their_name(weights):
    model = load_model("nanomask", weights, **OPTIONS)
    there = pickle.loads(pickle.dumps(model))
    assert there.predict(IMAGE).to_coco(1) == model.predict(IMAGE).to_coco(1)


def test_what_was_changed_of_a_model_goes_along(saved):
    saved.input_size = 64
    there = pickle.loads(pickle.dumps(saved))
    assert there.input_size == 64
    assert there.predict(IMAGE).to_coco(1) == saved.predict(IMAGE).to_coco(1)


def test_a_model_whose_weights_were_changed_here_is_not_pickled(saved):
    with torch.no_grad():
        next(saved.network.parameters()).add_(1)
    with pytest.raises(UsageError, match=r"can't be pickled: it was changed.*load the model in"):
        pickle.dumps(saved)
    with pytest.raises(UsageError, match="can't be pickled"):
        pickle.dumps(saved.with_network(saved.network))


def test_another_file_under_the_same_name_is_refused(saved, tmp_path):
    pickled = pickle.dumps(saved)
    other = load_model("nanomask", "none", class_names=["bolt", "nut"]).network.state_dict()
    other["mask.logits.bias"] = other["mask.logits.bias"] + 1
    torch.save(other, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"mine\.pth: isn't the file that nanomask was loaded"):
        pickle.loads(pickled)
    with pytest.raises(UsageError, match="was changed after it was loaded"):
        pickle.dumps(saved)
    (tmp_path / "mine.pth").unlink()
    with pytest.raises(WeightsError, match=r"mine\.pth: No such file"):
        pickle.loads(pickled)
    with pytest.raises(UsageError, match="No such file"):
        pickle.dumps(saved)


def test_a_deep_copy_has_a_network_of_its_own(saved):
    here = saved.predict(IMAGE).to_coco(1)
    there = copy.deepcopy(saved)
    assert there.predict(IMAGE).to_coco(1) == here
    pickle.dumps(there)
    with torch.no_grad():
        for parameter in there.network.parameters():
            parameter.zero_()
    assert saved.predict(IMAGE).to_coco(1) == here
    pickle.dumps(saved)
    with pytest.raises(UsageError):
        pickle.dumps(there)
    assert copy.copy(saved).network is saved.network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["solov2_light_r18", "yolact_r50"])
def test_models_of_other_families_are_copied_and_pickled(name):
    model = load_model(name, "none", device="cpu", input_size=96, score=0)
    here = model.predict(IMAGE).to_coco(1)
    assert copy.deepcopy(model).predict(IMAGE).to_coco(1) == here
    assert pickle.loads(pickle.dumps(model)).predict(IMAGE).to_coco(1) == here


def _found(model: Segmenter) -> int:
    return len(model.predict(IMAGE))


@pytest.mark.slow
def test_a_model_goes_to_a_pool_of_spawned_processes(saved):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(_found, saved).result(timeout=100) == len(saved.predict(IMAGE))


FORKED = """
import multiprocessing, sys
import numpy as np
import torch
import streamseg

torch.set_num_threads(2)
image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
model = streamseg.load_model("nanomask", device="cpu", score=0.01)
here = len(model.predict(image))

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
print(here, answers.get(), answers.get(), len(model.predict(image)), torch.get_num_threads())
"""


@pytest.mark.slow
def test_a_forked_process_predicts_and_loads():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    here, *there, again, threads = ran.stdout.replace("(", "").replace(")", "").split()
    assert int(here) > 0
    assert [int(each.strip(",")) for each in there] == [int(here)] * 4
    assert (again, threads) == (here, "2")
    assert ran.stderr.count("was forked: torch uses one thread in it") == 2


def test_a_model_on_a_gpu_says_to_be_loaded_in_the_forked_process(saved):
    saved.device = torch.device("cuda")
    saved._process = -1  # that of a parent
    with pytest.raises(UsageError, match=r"nanomask is on cuda of the parent process"):
        saved.predict(IMAGE)
