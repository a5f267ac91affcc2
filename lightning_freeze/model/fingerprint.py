"""Bit-exact hashes of parameters and buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from lightning_freeze.errors import PlanError
from lightning_freeze.model.dtensors import local_part
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.model.patterns import Patterns, resolve
from lightning_freeze.model.searchable import Member, searchable

# Elements per chunk, a multiple of 8. A hash needs a few times the bytes of a chunk as extra memory. On a CPU a chunk
# fits the cache; on other devices large chunks keep the number of kernels small.
_CHUNK, _CHUNK_ELSEWHERE = 1 << 16, 1 << 23


def _signed(value: int) -> int:
    """The int64 with the bits of an integer modulo 2**64."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


# The constants of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
_STEP, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def tensor_hash(tensor: Tensor) -> Tensor:
    """A 64-bit hash of a tensor's bits, their order, its dtype and its shape.

    The hash does not depend on device or strides. Word k of the bytes is mixed as splitmix64 mixes
    `word + k * step`, and the results are summed modulo 2**64, so the order of summation does not matter. For a
    sharded tensor (DTensor) the local shard is hashed.

    Args:
        tensor: any dtype and shape; indices and values of a sparse tensor are hashed as they are stored.

    Returns:
        An int64 of shape `()` on the tensor's device, so that hashing many tensors needs no synchronization.

    Raises:
        PlanError: the tensor is on the meta device and has no values.

    Examples:
        >>> ones = torch.ones(2, 3)
        >>> bool(tensor_hash(ones) == tensor_hash(torch.ones(3, 2).t()))
        True
        >>> bool(tensor_hash(torch.zeros(2)) == tensor_hash(-torch.zeros(2)))
        False
    """
    values = local_part(tensor).detach().resolve_conj().resolve_neg()
    if values.is_meta:
        raise PlanError(f"a tensor of shape {tuple(values.shape)} on the meta device has no values to hash")
    total = torch.full((), _seed(values.dtype, tuple(values.shape)), dtype=torch.int64, device=values.device)
    if len(parts := parts_of(values)) > 1:
        hashes = [tensor_hash(part) + _signed(k * _STEP) for k, part in enumerate(parts)]
        return total + _mix(torch.stack(hashes)).sum()
    steps, done = torch.empty(0, dtype=torch.int64, device=values.device), 0
    for words in _words(values):
        if len(steps) < len(words):
            steps = torch.arange(len(words), device=values.device).mul_(_STEP)
        total += _mix(torch.add(words, steps[: len(words)]).add_(_signed(done * _STEP))).sum()
        done += len(words)
    return total


@lru_cache(maxsize=4096)
def _seed(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    kind = hashlib.blake2b(f"{dtype} {shape}".encode(), digest_size=8)
    return _signed(int.from_bytes(kind.digest(), "little"))


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that store a tensor: itself, or the indices and values of a sparse tensor."""
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)


def _mix(words: Tensor) -> Tensor:
    """The finalizer of splitmix64, in place: every bit of the result depends on every bit of the word."""
    shifted = torch.empty_like(words)
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        torch.bitwise_right_shift(words, shift, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))  # torch's shift copies the sign
        if factor is not None:
            words.mul_(factor)
    return words


def _words(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the bytes of a tensor in logical order as int64, in chunks; the last word is padded with zeros."""
    for piece in _pieces(tensor):
        # The stride of a single element may be anything, and `contiguous` leaves it.
        data = piece.reshape(-1).contiguous().as_strided((piece.numel(),), (1,)).view(torch.uint8)
        if len(data) % 8 or data.storage_offset() % 8:
            padded = torch.zeros(-(-len(data) // 8) * 8, dtype=torch.uint8, device=data.device)
            padded[: len(data)] = data
            data = padded
        yield data.view(torch.int64)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Split a tensor in logical order. All pieces but the last have a multiple of 8 elements, so words stay whole."""
    chunk = _CHUNK if tensor.device.type == "cpu" else _CHUNK_ELSEWHERE
    if tensor.is_contiguous():
        yield from torch.split(tensor.reshape(-1), chunk)
    elif tensor.numel():
        # Split by rows: a contiguous copy of the whole tensor could be as large as the model.
        yield from torch.split(tensor, max(8, chunk * len(tensor) // tensor.numel() // 8 * 8))


def fingerprint(model: nn.Module, patterns: Patterns = "*", buffers: bool = True) -> dict[str, int]:
    """A 64-bit hash of each selected parameter and buffer. Bit-identical tensors have equal hashes.

    Args:
        model: any module.
        patterns: what to hash (see `select`). Patterns match names of buffers too: the name of a module selects its
            parameters and its buffers.
        buffers: whether to hash buffers too.

    Returns:
        Name -> unsigned hash, parameters first. A tied parameter or a shared buffer appears once. Hashes do not
        depend on the device; one copy per device brings them to the host.

    Raises:
        PatternError: a pattern matches nothing.
        PlanError: a selected tensor is on the meta device.

    Examples:
        >>> model = nn.BatchNorm1d(2)
        >>> before = fingerprint(model)
        >>> _ = model(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> after = fingerprint(model)
        >>> [name for name in after if after[name] != before[name]]
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    tensors = select_tensors(ModelIndex(model), patterns, "fingerprint", buffers)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise PlanError(f"fingerprint: '{name}' is on the meta device and has no values to hash")
    return hashes_of(tensors)


def hashes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Hash tensors: name -> unsigned hash. Small tensors are hashed in batches; one copy per device to the host."""
    small = {name: tensor for name, tensor in tensors.items() if _is_small(tensor)}
    hashes: list[tuple[list[str], Tensor]] = [
        ([name], tensor_hash(tensor).reshape(1)) for name, tensor in tensors.items() if name not in small
    ]
    hashes += [(names, _hash_together([small[name] for name in names])) for names in _batches(small)]
    found: dict[str, int] = {}
    for device in {value.device for _, value in hashes}:
        here = [(names, value) for names, value in hashes if value.device == device]
        values = torch.cat([value for _, value in here]).tolist()
        found.update(zip([name for names, _ in here for name in names], values, strict=True))
    return {name: found[name] % (1 << 64) for name in tensors}


# ---- many small tensors in one pass: hashing a tensor alone takes two dozen operations, however small it is

_SMALL = 1 << 15  # bytes
_PLAIN = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


def _is_small(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in _PLAIN and tensor.layout == torch.strided
    return plain and not tensor.is_meta and not tensor.is_neg() and tensor.nbytes <= _SMALL


def _batches(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Group tensors by device and dtype into batches of about one chunk of bytes, and yield their names."""
    kind = {name: (str(tensor.device), str(tensor.dtype)) for name, tensor in tensors.items()}
    for (device, _), group in groupby(sorted(tensors, key=kind.__getitem__), key=kind.__getitem__):
        limit = 8 * (_CHUNK if device == "cpu" else _CHUNK_ELSEWHERE)
        names, size = list[str](), 0
        for name in group:
            if size > limit:
                yield names
                names, size = [], 0
            names.append(name)
            size += tensors[name].nbytes + 8
        yield names


@torch.no_grad()
def _hash_together(tensors: Sequence[Tensor]) -> Tensor:
    """`tensor_hash` of each tensor. All have one device and dtype; their words are concatenated and mixed at once."""
    device, each = tensors[0].device, tensors[0].element_size()
    filler = torch.zeros(8 // each, dtype=tensors[0].dtype, device=device)
    parts: list[Tensor] = []
    for tensor in tensors:
        parts.append(tensor.reshape(-1))
        if missing := -tensor.nbytes % 8 // each:
            parts.append(filler[:missing])
    words = torch.cat(parts).view(torch.int64)
    lengths = torch.tensor([-(-tensor.nbytes // 8) for tensor in tensors], device=device)
    ends = lengths.cumsum(0)
    places = torch.arange(len(words), device=device) - torch.repeat_interleave(ends - lengths, lengths)
    sums = torch.cat([lengths.new_zeros(1), _mix(places.mul_(_STEP).add_(words)).cumsum(0)])
    seeds = torch.tensor([_seed(tensor.dtype, tuple(tensor.shape)) for tensor in tensors], device=device)
    return seeds + sums[ends] - sums[ends - lengths]


def select_tensors(index: ModelIndex, patterns: Patterns, owner: str, buffers: bool = True) -> dict[str, Tensor]:
    """The selected parameters and buffers by name; `owner` is the subject of the error message."""
    tensors: dict[str, Tensor] = {**index.parameters, **(index.buffers if buffers else {})}
    names = {id(tensor): name for name, tensor in tensors.items()}
    members = list(index.members())
    for span in index.spans:
        for leaf, buffer in span.module._buffers.items():
            if id(buffer) in names:
                name = f"{span.name}.{leaf}" if span.name else leaf
                members.append(Member(name, span.module, leaf, buffer, names[id(buffer)]))
    modules = {name: span.module for name, span in index.modules.items()}
    of = f"the {len(tensors)} parameters and buffers of {index.model_name}"
    chosen = resolve(patterns, searchable(members, modules, of), owner)
    return {name: tensor for name, tensor in tensors.items() if name in chosen}
