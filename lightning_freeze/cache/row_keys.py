"""A 128-bit checksum of every row of a tensor: equal keys, equal rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_CHUNK, _COLUMNS = 1 << 16, 1 << 13  # words per chunk, which fit the cache of a CPU, and per row

_MIXER = -0x61C8864680B583EB  # 2**64 over the golden ratio, odd


@lru_cache(maxsize=16)
def _multipliers(words: int, salt: int, device: torch.device) -> Tensor:
    """(2, words) int64, the same in every process."""
    generator = torch.Generator().manual_seed(0x5EED + salt)
    bounds = torch.iinfo(torch.int64)
    drawn = torch.randint(bounds.min, bounds.max, (2, words), generator=generator, dtype=torch.int64)
    return drawn.to(device)


def row_keys(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Checksum the rows of several tensors together.

    Each 64-bit word is mixed by a bijection and multiplied with a random number, and these are summed modulo 2**64,
    twice with other numbers (multilinear hashing: Carter and Wegman, 1979). Two rows that differ get one key with
    probability 2**-128, times four for each zero bit that the differences of all their mixed words end in.

    Args:
        tensors: tensors of any dtypes. Those with `rows` entries in the first dimension are hashed by row, others as a
            whole.
        rows: number of rows.

    Returns:
        `(rows, 2)` int64 on the device of the first tensor; the same for the same bits and shapes, on any device, in
        any process. Dtypes are not in it.

    Examples:
        >>> batch = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
        >>> first, second, third = row_keys([batch], 3).tolist()
        >>> first == third, first == second
        (True, False)
    """
    total = torch.zeros(rows, 2, dtype=torch.int64, device=tensors[0].device)
    sizes: list[int] = []
    for salt, tensor in enumerate(tensors):
        by_row = tensor.dim() > 0 and len(tensor) == rows
        words = _words(tensor.detach(), rows if by_row else 1)
        total += _checksums(words, salt).to(total.device)
        sizes += (tensor.dim(), *tensor.shape[by_row:])
    # The shapes are included, because padding a row with zeros does not change its checksum.
    return total + _checksums(torch.tensor([sizes]), len(tensors)).to(total.device)


def _words(tensor: Tensor, rows: int) -> Tensor:
    """The words of rows, int64 `(rows, words)`; the last word of each row is padded with zeros."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    size = tensor.numel() * tensor.element_size() // max(rows, 1)
    data = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).view(rows, size)
    if size % 8 or data.storage_offset() % 8:
        padded = torch.zeros(rows, -(-size // 8) * 8, dtype=torch.uint8, device=data.device)
        padded[:, :size] = data
        data = padded
    return data.view(torch.int64)


def _checksums(words: Tensor, salt: int) -> Tensor:
    rows, length = words.shape
    if not rows or not length:
        return torch.zeros(rows, 2, dtype=torch.int64, device=words.device)
    multipliers = _multipliers(length, salt, words.device)
    total = torch.zeros(rows, 2, dtype=torch.int64, device=words.device)
    columns, height = (_COLUMNS, max(1, _CHUNK // min(_COLUMNS, length))) if words.is_cpu else (length, rows)
    for row in range(0, rows, height):
        for column in range(0, length, columns):
            piece = words[row : row + height, column : column + columns]
            # A difference in the topmost bits is lost on even multipliers. So that signs alone, of one or of two
            # numbers in a word, differ in lower bits too: times an odd number, then the upper half into the lower.
            mixed = piece * _MIXER
            folded = (mixed >> 32).bitwise_and_(0xFFFFFFFF).bitwise_xor_(mixed)
            for which in range(2):
                total[row : row + height, which] += _dot(folded, multipliers[which, column : column + columns])
    return total


def _dot(words: Tensor, multipliers: Tensor) -> Tensor:
    if words.is_cpu:
        return torch.mv(words, multipliers)
    return (words * multipliers).sum(1)  # CUDA multiplies no integer matrices
