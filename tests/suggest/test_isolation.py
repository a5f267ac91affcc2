"""Copies and random state: what is trained is never the user's."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
from digits_cnn import Digits
from helpers import Net, fit, tensors

from lightning_freeze import PlanError
from lightning_freeze.suggest.isolation import copy_of_data, copy_of_module, same_random_state, seed_all


def test_a_copy_shares_no_tensor_and_leaves_the_trainer_behind() -> None:
    module = Net()
    running = fit(module)
    copy = copy_of_module(module)
    assert module.trainer is running
    assert copy._trainer is None
    for name, value in tensors(module).items():
        assert torch.equal(value, copy.state_dict()[name])
        assert copy.state_dict()[name].data_ptr() != module.state_dict()[name].data_ptr()


def test_what_cannot_be_copied_is_an_error_that_says_so() -> None:
    module = Net()
    module.lock = threading.Lock()
    with pytest.raises(PlanError, match="Net cannot be copied, and suggest trains copies only"):
        copy_of_module(module)


def test_a_copy_of_data_shares_tensors_and_nothing_else() -> None:
    data = Digits()
    data.setup("fit")
    data.seen = [1]
    copy = copy_of_data(data)
    copy.seen.append(2)
    assert data.seen == [1]
    assert copy.train is not data.train
    assert copy.train.tensors[0] is data.train.tensors[0]


def test_random_state_of_torch_python_and_numpy_comes_back() -> None:
    seed_all(0)
    expected = torch.rand(1), random.random(), np.random.rand()
    seed_all(0)
    with suppress(ValueError), same_random_state():
        seed_all(5)
        raise ValueError("half way")
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
