"""Trees of modules with odd names, norms, scalars and tied weights."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

NAMES = st.sampled_from(["a", "b", "a*", "!a", "re:a", "[ab]", "0", "weight_", "?"])


@st.composite
def models(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """Two trees under one root."""
    leaves: list[nn.Linear] = []

    def grow(level: int) -> nn.Module:
        kind = draw(st.sampled_from(["linear", "norm", "empty"] + ["dict", "list"] * bool(level)))
        if kind == "linear":
            leaves.append(nn.Linear(draw(st.integers(1, 3)), 2))
            return leaves[-1]
        if kind == "norm":
            return nn.LayerNorm(2)
        if kind == "empty":
            return nn.ReLU()
        children = {name: grow(level - 1) for name in draw(st.lists(NAMES, unique=True, max_size=4))}
        return nn.ModuleDict(children) if kind == "dict" else nn.Sequential(*children.values())

    model = nn.ModuleDict({"first": grow(depth), "second": grow(depth)})
    for one in leaves:
        other = draw(st.sampled_from(leaves))
        if one.weight.shape == other.weight.shape and draw(st.booleans()):
            one.weight = other.weight
    return model
