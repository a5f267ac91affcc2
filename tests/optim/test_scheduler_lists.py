"""Per-group lists of schedulers follow the split; every torch scheduler: tests/laws/test_every_scheduler.py."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, CyclicLR, LambdaLR, MultiStepLR, SequentialLR

from lightning_freeze import OptimizerError
from lightning_freeze.optim.scheduler_lists import check_lists, reindex, scaled, schedulers_of


def sgd(groups: int = 1) -> SGD:
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0 + k} for k in range(groups)], momentum=0.9)


def test_schedulers_inside_schedulers_are_found_once_and_those_of_others_are_not() -> None:
    mine, other = sgd(), sgd()
    inner = [ConstantLR(mine), MultiStepLR(mine, [3])]
    mine.step()  # SequentialLR steps its schedulers
    nested = SequentialLR(mine, [ChainedScheduler(inner, optimizer=mine), ConstantLR(mine)], milestones=[2])
    foreign = ConstantLR(other)
    found = schedulers_of(mine, [nested, nested, foreign])
    assert nested in found
    assert all(one in found for one in inner)
    assert foreign not in found
    assert len(found) == len({id(one) for one in found}) == 5


def test_rates_are_scaled_other_lists_are_copied_and_milestones_stay() -> None:
    optimizer = sgd(2)
    cyclic = CyclicLR(optimizer, [0.1, 0.2], [1.0, 2.0])
    functions = [lambda epoch: 1.0, lambda epoch: 2.0]
    chosen = LambdaLR(optimizer, functions)
    steps = MultiStepLR(optimizer, [3, 4])
    reindex([cyclic, chosen, steps], [0, 0, 1], [1.0, 0.5, 0.1])
    assert cyclic.base_lrs == [0.1, 0.05, pytest.approx(0.02)]
    assert cyclic.max_lrs == [1.0, 0.5, 0.2]
    assert chosen.lr_lambdas == [functions[0], functions[0], functions[1]]
    assert sorted(steps.milestones) == [3, 4]


def test_a_list_of_another_length_is_refused_by_name() -> None:
    scheduler = ConstantLR(sgd(2))
    check_lists([scheduler], 2)
    with pytest.raises(OptimizerError, match=r"(?s)ConstantLR\.base_lrs has 2 entries for the 3 groups.*after all"):
        check_lists([scheduler], 3)


def test_a_factor_of_1_keeps_the_number_and_never_shares_a_tensor() -> None:
    number, tensor = 0.1 + 0.2, torch.tensor(0.3)
    assert scaled(number, 1) is number
    assert scaled(number, 0.5) == number * 0.5
    assert scaled(tensor, 1) is not tensor
    assert scaled(tensor, 2.0) == 0.6
