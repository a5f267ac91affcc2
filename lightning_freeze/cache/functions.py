"""The torch functions that keep the rows of a batch separate, and the dimension of the rows in their results.

Any other function gets values instead of lazy tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Rule = Callable[["Given", Any, Any], int | None]


class Given:
    """The dimension of the rows in the arguments of a function; None for constants."""

    def __init__(self, places: dict[int, int], rows: int) -> None:
        self.places, self.rows = places, rows

    def of(self, tensor: Any) -> int | None:
        """The dimension of the rows; None for a constant or anything but a tensor."""
        return self.places.get(id(tensor))

    def alone(self, args: Any, kwargs: Any) -> int | None:
        """The dimension of the rows of the first argument, if nothing else has rows; else None."""
        others = [*args[1:], *kwargs.values()]
        others = [part for one in others for part in (one if isinstance(one, list | tuple) else [one])]
        return None if any(self.of(one) is not None for one in others) or not args else self.of(args[0])


def _named(names: str) -> set[Any]:
    spaces = (torch, Tensor, functional, torch.special)
    return {getattr(space, name) for name in names.split() for space in spaces if hasattr(space, name)}


def _pointwise(given: Given, args: Any, kwargs: Any) -> int | None:
    """Elementwise functions with broadcasting: the rows are at the same dimension, counted from the end."""
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if "out" in kwargs or any(isinstance(one, list | tuple) for one in (*args[:1], *kwargs.values())):
        return None
    behind = {one.dim() - place for one in tensors if (place := given.of(one)) is not None}
    if len(behind) != 1:
        return None
    back = behind.pop()
    for one in tensors:
        if given.of(one) is None and one.dim() >= back and not _repeats(one, one.dim() - back):
            return None
    return max(one.dim() for one in tensors) - back


def _repeats(tensor: Tensor, dim: int) -> bool:
    """Whether a constant is the same for each row."""
    return tensor.shape[dim] == 1 or tensor.stride(dim) == 0


def _value(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _dims(dim: Any, size: int) -> set[int] | None:
    if dim is None or isinstance(dim, str):
        return None
    return {one % size for one in (dim if isinstance(dim, list | tuple) else [dim])}


def _along(place: int, default: Any = None) -> Rule:
    """Functions along a dimension other than that of the rows, which does not change."""

    def rule(given: Given, args: Any, kwargs: Any) -> int | None:
        rows = given.alone(args, kwargs)
        dims = _dims(_value(args, kwargs, place, "dim", default), args[0].dim()) if rows is not None else None
        return rows if dims is not None and rows not in dims else None

    return rule


def _reduced(given: Given, args: Any, kwargs: Any) -> int | None:
    rows = given.alone(args, kwargs)
    if rows is None or (len(args) > 2 and isinstance(args[1], int) and not isinstance(args[2], bool)):
        return None
    dims = _dims(_value(args, kwargs, 1, "dim"), args[0].dim())
    if not dims or rows in dims:
        return None
    return rows if _value(args, kwargs, 2, "keepdim", False) else rows - sum(dim < rows for dim in dims)


def _joined(given: Given, args: Any, kwargs: Any) -> int | None:
    """`cat`: its tensors have their rows at the same dimension, or are constant along it."""
    parts, dim = args[0], _value(args, kwargs, 1, "dim", 0)
    places = {place for one in parts if (place := given.of(one)) is not None}
    if len(places) != 1 or not isinstance(dim, int) or len(args) > 2 or "out" in kwargs:
        return None
    rows = places.pop()
    if any(given.of(one) is None and not (one.dim() > rows and one.stride(rows) == 0) for one in parts):
        return None
    return rows if dim % parts[0].dim() != rows else None


def _shaped(given: Given, args: Any, kwargs: Any) -> int | None:
    """`view` and `reshape` behind the first dimension."""
    shape = args[1] if len(args) == 2 else args[1:] or kwargs.get("shape", kwargs.get("size"))
    first = shape[0] if isinstance(shape, list | tuple) and shape else None
    return 0 if given.of(args[0]) == 0 and isinstance(first, int) and first in (given.rows, -1) else None


def _flattened(given: Given, args: Any, kwargs: Any) -> int | None:
    rows, start = given.of(args[0]), _value(args, kwargs, 1, "start_dim", 0)
    return rows if rows is not None and start % max(args[0].dim(), 1) > rows else None


def _moved(given: Given, args: Any, kwargs: Any) -> int | None:
    """`transpose`."""
    rows, size = given.of(args[0]), args[0].dim()
    if rows is None or len(args) != 3 or not all(isinstance(one, int) for one in args[1:]):
        return None
    one, other = args[1] % size, args[2] % size
    return other if rows == one else one if rows == other else rows


def _permuted(given: Given, args: Any, kwargs: Any) -> int | None:
    rows, order = given.of(args[0]), args[1] if len(args) == 2 else args[1:]
    if rows is None or kwargs or not isinstance(order, list | tuple):
        return None
    return [one % args[0].dim() for one in order].index(rows)


def _unsqueezed(given: Given, args: Any, kwargs: Any) -> int | None:
    rows, dim = given.of(args[0]), _value(args, kwargs, 1, "dim")
    return None if rows is None or not isinstance(dim, int) else rows + (dim % (args[0].dim() + 1) <= rows)


def _squeezed(given: Given, args: Any, kwargs: Any) -> int | None:
    rows, dim = given.of(args[0]), _value(args, kwargs, 1, "dim")
    if rows is None or not isinstance(dim, int) or dim % args[0].dim() == rows:
        return None
    dim %= args[0].dim()
    return rows - int(dim < rows and args[0].shape[dim] == 1)


def _indexed(given: Given, args: Any, kwargs: Any) -> int | None:
    """`x[:, 0]`: indices and slices of dimensions other than that of the rows."""
    rows, index = given.of(args[0]), args[1]
    index = index if isinstance(index, tuple) else (index,)
    if rows is None or any(
        not (isinstance(one, int | slice | type(None) | type(...)) and one is not True) for one in index
    ):
        return None
    taken = sum(one is not None and one is not ... for one in index)
    if ... in index:
        place = index.index(...)
        index = (*index[:place], *[slice(None)] * (args[0].dim() - taken), *index[place + 1 :])
    return _after_index(rows, index)


def _after_index(rows: int, index: tuple[Any, ...]) -> int | None:
    dim = out = 0
    for one in index:
        if one is None:
            out += 1
            continue
        if dim == rows:
            return out if one == slice(None) else None
        out += not isinstance(one, int)
        dim += 1
    return out + rows - dim


def _layer(dims: int | None = None) -> Rule:
    """A layer with weights, for an input with rows first and this many dimensions; None: any number above 1."""

    def rule(given: Given, args: Any, kwargs: Any) -> int | None:
        fits = given.alone(args, kwargs) == 0
        return 0 if fits and (args[0].dim() > 1 if dims is None else args[0].dim() == dims) else None

    return rule


def _linear(given: Given, args: Any, kwargs: Any) -> int | None:
    rows = given.alone(args, kwargs)
    return rows if rows is not None and rows < args[0].dim() - 1 else None


def _normed(given: Given, args: Any, kwargs: Any) -> int | None:
    """`layer_norm` over the last dimensions."""
    rows, shape = given.alone(args, kwargs), _value(args, kwargs, 1, "normalized_shape")
    return rows if rows is not None and rows < args[0].dim() - len(shape) else None


def _multiplied(given: Given, args: Any, kwargs: Any) -> int | None:
    """A product with a constant matrix, or a product of the matrices of each row."""
    if len(args) != 2:
        return None
    one, other = given.of(args[0]), given.of(args[1])
    if one is not None and other is None:
        return one if one < args[0].dim() - 1 and args[1].dim() <= 2 else None
    batched = one == other == 0 and args[0].dim() == args[1].dim() > 2
    return 0 if batched else None


def _attended(given: Given, args: Any, kwargs: Any) -> int | None:
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if any(given.of(one) != 0 or one.dim() != 4 for one in tensors):
        return None
    return 0 if not _value(args, kwargs, 4, "dropout_p", 0.0) else None


def _embedded(given: Given, args: Any, kwargs: Any) -> int | None:
    return given.alone(args, kwargs) if kwargs.get("max_norm") is None and len(args) < 4 else None


def _unless_training(place: int, default: bool, rule: Rule) -> Rule:
    def judged(given: Given, args: Any, kwargs: Any) -> int | None:
        return None if _value(args, kwargs, place, "training", default) else rule(given, args, kwargs)

    return judged


def _batch_normed(given: Given, args: Any, kwargs: Any) -> int | None:
    held = _value(args, kwargs, 1, "running_mean") is not None and not _value(args, kwargs, 5, "training", False)
    return _layer()(given, args, kwargs) if held else None


_POINTWISE = """add sub mul div true_divide __rsub__ __rdiv__ __rtruediv__ rsub neg pow __rpow__ abs exp exp2 expm1
log log1p log2 sqrt rsqrt square sin cos tanh sigmoid erf reciprocal sign floor ceil round clamp
clamp_min clamp_max minimum maximum where masked_fill relu relu6 gelu silu mish elu selu celu
leaky_relu hardtanh hardswish hardsigmoid softplus softsign logsigmoid tanhshrink threshold float
half bfloat16 double to type contiguous clone detach lt le gt ge eq ne __lt__ __le__ __gt__ __ge__
__eq__ __ne__ logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not __and__ __or__
__invert__ lerp addcmul type_as nan_to_num"""
_IN_PLACE = """add_ sub_ mul_ div_ neg_ pow_ abs_ exp_ sqrt_ rsqrt_ tanh_ sigmoid_ clamp_ clamp_min_ relu_ hardtanh_
elu_ leaky_relu_ silu_ hardswish_ masked_fill_ square_"""
_LAYERS = {
    "conv1d max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d conv_transpose1d": 3,
    "conv2d max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d conv_transpose2d pixel_shuffle": 4,
    "conv3d max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d conv_transpose3d": 5,
    "group_norm interpolate": None,
}


_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
_NAMED: tuple[tuple[str, Rule], ...] = (
    ("softmax log_softmax cumsum", _along(1)),
    ("normalize", _along(2, 1)),
    ("unbind", lambda *_: None),
    ("chunk split tensor_split", _along(2, 0)),  # the default is the first dimension
    ("mean sum amax amin logsumexp all any", _reduced),
    ("cat concat concatenate", _joined),
    ("view reshape", _shaped),
    ("flatten", _flattened),
    ("transpose swapaxes swapdims", _moved),
    ("permute", _permuted),
    ("unsqueeze", _unsqueezed),
    ("squeeze", _squeezed),
    ("__getitem__", _indexed),
    ("linear", _linear),
    ("layer_norm rms_norm", _normed),
    ("matmul __matmul__ bmm", _multiplied),
    ("scaled_dot_product_attention", _attended),
    ("embedding", _embedded),
    ("batch_norm", _batch_normed),
    (
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
        _unless_training(2, True, _pointwise),
    ),
)


def _rules() -> dict[Any, Rule]:
    layers = [(names, _layer(dims)) for names, dims in _LAYERS.items()]
    named = ((_POINTWISE, _pointwise), *layers, *_NAMED, (_IN_PLACE, _pointwise))
    return {function: rule for names, rule in named for function in _named(names)}


IN_PLACE: frozenset[Any] = frozenset(_named(_IN_PLACE))
RULES = _rules()


def is_in_place(func: Any, kwargs: Any) -> bool:
    """Whether a function writes its result into its first argument."""
    return func in IN_PLACE or bool(kwargs.get("inplace"))
