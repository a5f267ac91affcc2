"""Optimizers and models of other libraries under this package, and the table of what was found.

    python tests/support/zoo.py    # runs all cases and writes examples/docs/compatibility.md
    pytest -m zoo          # the same cases as tests

Needs `pip install timm transformers schedulefree`. No weights are downloaded: models are built from their configs.
"""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata, util
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from helpers import TRUSTED, Batches, Net, names_in, tensors, trainable, trainer
from torch import Tensor, nn

from lightning_freeze import FreezeError, GradualUnfreeze, LayerwiseLR, discover_stages

PACKAGES = ("timm", "transformers", "schedulefree")
PAGE = Path(__file__).parents[2] / "examples" / "docs" / "compatibility.md"
EPOCHS = 4
Case = tuple[str, str, Callable[[], pl.LightningModule]]  # kind, name, how to build it


class Checked(pl.Callback):
    """In each epoch: nothing frozen moves, what had a gradient moves, the optimizer holds exactly what trains."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def on_train_epoch_start(self, run: Any, module: Any) -> None:
        self.before = tensors(module)
        self.with_gradient: set[str] = set()

    def on_train_batch_start(self, run: Any, module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(run.global_step)  # a resumed run draws the same dropout

    def on_before_optimizer_step(self, run: Any, module: Any, optimizer: Any) -> None:
        self.with_gradient |= {
            name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())
        }

    def on_train_epoch_end(self, run: Any, module: Any) -> None:
        training = set(trainable(module))
        after = tensors(module)
        changed = {name for name, value in self.before.items() if not torch.equal(value, after[name])}
        parameters = {name for name, _ in module.named_parameters()}
        assert not (changed & parameters) - training, f"moved while frozen: {sorted(changed & parameters - training)}"
        frozen = {name for name, inner in module.named_modules() if inner is not module and _frozen(inner)}
        statistics = {name for name in changed - parameters if name.rpartition(".")[0] in frozen}
        assert not statistics, f"statistics moved while frozen: {sorted(statistics)}"
        assert self.with_gradient <= training
        still = self.with_gradient - changed
        assert not still, f"did not move: {sorted(still)}"
        held = names_in(module, run.optimizers)
        assert sorted(held) == sorted(training), f"the optimizer holds {len(held)}, {len(training)} train"
        self.trained.append(len(training))


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def check(build: Callable[[], pl.LightningModule]) -> None:
    """Train with three stages, then resume twice.

    Raises:
        AssertionError: something frozen moved, or the resumed run ended elsewhere.
        FreezeError: it was refused.
    """
    with TemporaryDirectory() as folder:
        saved = pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        whole, checked = _fit(build, saved)
        assert len(set(checked.trained)) == 3, f"{checked.trained} parameters trained in the epochs"
        for epoch in (0, 2):  # before an unfreezing, and after the last
            again, _ = _fit(build, ckpt_path=f"{folder}/epoch={epoch}.ckpt")
            apart = [name for name, value in tensors(whole).items() if not torch.equal(value, tensors(again)[name])]
            assert not apart, f"differ after a resume from epoch {epoch}: {apart[:3]}"


def _fit(
    build: Callable[[], pl.LightningModule], *callbacks: Any, **options: Any
) -> tuple[pl.LightningModule, Checked]:
    torch.manual_seed(0)
    model, checked = build(), Checked()
    stages = model.stages() if hasattr(model, "stages") else ["head", "mid", "stem"]
    ours = [GradualUnfreeze(stages, verbose=False), LayerwiseLR(0.5)]
    run = trainer([*ours, *callbacks, checked], EPOCHS, enable_checkpointing=bool(callbacks), limit_val_batches=0)
    run.fit(model, model.batches() if hasattr(model, "batches") else Batches(8), **TRUSTED, **options)
    return model, checked


# ---- optimizers, on the small network of the other tests


def timm_optimizer(name: str, model: nn.Module) -> Any:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(model, name, lr=0.01, weight_decay=0.01)


class SecondOrder(Net):
    """For AdaHessian, which wants the graph of the backward."""

    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        loss.backward(create_graph=True)


class ScheduleFree(Net):
    """The two calls that schedule-free optimizers want: trained weights differ from those to validate and save."""

    def on_train_epoch_start(self) -> None:
        self.optimizers().optimizer.train()

    def on_train_epoch_end(self) -> None:
        self.optimizers().optimizer.eval()


def schedule_free(name: str, model: nn.Module) -> Any:
    import schedulefree

    return getattr(schedulefree, name)(model.parameters(), lr=0.05)


def optimizers() -> Iterator[Case]:
    import schedulefree
    from timm.optim import list_optimizers

    for name in list_optimizers():
        if not name.startswith(("bnb", "fused")):  # those need other libraries and a GPU
            net = SecondOrder if name == "adahessian" else Net
            yield "timm optimizer", name, partial(net, partial(timm_optimizer, name))
    for name, found in vars(schedulefree).items():
        if inspect.isclass(found) and name.endswith("ScheduleFree"):
            yield "schedule-free optimizer", name, partial(ScheduleFree, partial(schedule_free, name))


# ---- models, with AdamW


class Wrapped(pl.LightningModule):
    """A model of another library; the loss is the mean square of what it gives, the pooled output with the others.

    Args:
        model: any.
        inputs: the batches.
        again: name of an argument that gets the batch as well, as a decoder's.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], again: str | None = None) -> None:
        super().__init__()
        self.model, self.inputs, self.again = model, inputs, again
        self.example_input_array = inputs[0][:1]

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs, **({self.again: inputs} if self.again else {}))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        found = self(batch)
        if isinstance(found, Tensor):
            return found.square().mean()
        pooled = getattr(found, "pooler_output", None)
        return found[0].square().mean() + (0 if pooled is None else pooled.square().mean())

    def batches(self) -> Batches:
        batches = Batches(0)
        batches.all = list(self.inputs)
        return batches

    def stages(self) -> Any:
        stages = discover_stages(self, max_stages=3)
        return 3 if len(stages) == 3 else stages

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def timm_model(name: str) -> Wrapped:
    import timm

    model = timm.create_model(name, num_classes=5)
    return Wrapped(model, list(torch.randn(2, 2, *model.pretrained_cfg["input_size"])))


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 40, "max_position_embeddings": 32, **SIZES}
ENCODER_DECODER = {"vocab_size": 40, "d_model": 16, "max_position_embeddings": 32} | {
    f"{part}_{what}": value
    for part in ("encoder", "decoder")
    for what, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "roberta", "electra", "deberta-v2", "modernbert", "roformer"), WORDS),
    "albert": WORDS | {"embedding_size": 8},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2},
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi", "gpt_neox"), WORDS | {"num_key_value_heads": 2}),
    **dict.fromkeys(("gemma", "qwen3"), WORDS | {"num_key_value_heads": 2, "head_dim": 8}),
    "opt": {"vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 3, "ffn_dim": 32}
    | {"num_attention_heads": 2, "max_position_embeddings": 32},
    "t5": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": ENCODER_DECODER,
    **dict.fromkeys(("vit", "deit", "dinov2", "beit"), SIZES | {"image_size": 16, "patch_size": 8}),
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    "convnextv2": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


def transformers_model(name: str) -> Wrapped:
    from transformers import AutoConfig, AutoModel

    settings = TRANSFORMERS[name]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(name, **settings, **(special if "vocab_size" in settings else {}))
    model = AutoModel.from_config(config).train()
    if "vocab_size" not in settings:
        size = settings.get("image_size", 32)
        return Wrapped(model, list(torch.randn(2, 2, 3, size, size)))
    ids = list(torch.randint(3, 40, (2, 2, 8)))
    return Wrapped(model, ids, "decoder_input_ids" if config.is_encoder_decoder else None)


def models() -> Iterator[Case]:
    import timm

    for name in timm.list_models("test_*"):
        yield "timm model", name, partial(timm_model, name)
    for name in TRANSFORMERS:
        yield "transformers model", name, partial(transformers_model, name)


def cases() -> list[Case]:
    return [*optimizers(), *models()]


# ---- the page


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)


def missing() -> list[str]:
    """Which of the libraries are not installed."""
    return [name for name in PACKAGES if util.find_spec(name) is None]


def outcome(build: Callable[[], pl.LightningModule]) -> str:
    """`check` in a few words."""
    try:
        with redirect_stdout(StringIO()):
            check(build)
    except FreezeError as error:
        return f"refused: {str(error).splitlines()[0]}"
    except Exception as error:
        return f"no: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "yes"


ABOUT = """# Optimizers and models of other libraries

Written by `python tests/support/zoo.py`, with {versions}.
`pytest -m zoo` runs the same cases as tests. Each is trained for
{epochs} epochs in three stages with `GradualUnfreeze` and `LayerwiseLR`, and resumed before an unfreezing and after the
last. *Yes* means: nothing frozen moved by a bit, nor its BatchNorm statistics; every parameter that had a gradient
moved; the optimizer held exactly what trained; and both resumed runs ended with the bits of the run that never stopped.
Optimizers train a small network with BatchNorm and Dropout, models are trained by AdamW, in stages found by
`discover_stages`, small and with random weights.

| | yes | not |
|---|---|---|
"""
NOTES = """
## What to know

- **AdaHessian** draws random vectors from a generator of its own that it does not save, so a run with it cannot be
  resumed exactly, with this package or without. Nothing frozen moves.
- **LAMB, Adan and the schedule-free optimizers** count steps per group, not per parameter. The count of a stage stands
  still while it is frozen, so its first updates are those of a fresh optimizer: with a count that went on they were 0.4
  times (Adan), 1.7 times (LAMB) and 1.6 times (AdamWScheduleFree) as large, and the averaged weights of SGDScheduleFree
  moved by 1.5% of what they should.
- **LBFGS** takes one group and is refused by name. Optimizers of bitsandbytes and apex need a GPU and were not run.

## Schedule-free optimizers

They train other weights than those to validate, save and use, and want to be told. In the LightningModule:

```python
def on_train_epoch_start(self):
    self.optimizers().optimizer.train()


def on_train_epoch_end(self):  # before checkpoints and the next stage
    self.optimizers().optimizer.eval()
```

Stages then freeze and unfreeze with the averaged weights. Validation within `fit` comes before the end of the epoch, so
call `eval()` in `on_validation_start` and `train()` in `on_validation_end` as well, and in the same way around
checkpoints within an epoch. No LR scheduler is needed; rates per layer and the warm-up of a stage work as with others.
"""


def page(found: Mapping[tuple[str, str], str]) -> str:
    """The page of these outcomes."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lightning", *PACKAGES))
    rows = ""
    for kind in dict.fromkeys(kind for kind, _ in found):
        mine = {name: said for (its, name), said in found.items() if its == kind}
        good = [f"`{name}`" for name, said in mine.items() if said == "yes"]
        bad = [f"`{name}`: {said.removeprefix('no: ')}" for name, said in mine.items() if said != "yes"]
        rows += f"| {kind}s | {len(good)}: {', '.join(good)} | {'; '.join(bad) or 'none'} |\n"
    return ABOUT.format(versions=versions, epochs=EPOCHS) + rows + NOTES


def main() -> None:
    """Run all cases and write the page."""
    quiet()
    torch.set_num_threads(1)
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    found = {}
    for kind, name, build in cases():
        found[kind, name] = outcome(build)
        print(kind, name, found[kind, name], sep=" | ", flush=True)
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
