"""A fingerprint sees every bit, its place, its dtype and its shape, and nothing else."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_freeze import PatternError, PlanError
from lightning_freeze.model.fingerprint import _PLAIN, fingerprint, hashes_of, tensor_hash

module = importlib.import_module("lightning_freeze.model.fingerprint")

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def hashed(tensor: Tensor) -> int:
    return int(tensor_hash(tensor))


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)


@pytest.fixture(params=[8, 16, 1 << 16])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "_CHUNK", request.param)
    return request.param


class TestTensorHash:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_any_flipped_bit_changes_it(self, dtype: torch.dtype) -> None:
        tensor = some(dtype, 3)
        seen = {hashed(tensor)}
        data = tensor.view(torch.uint8)
        bits = 1 if dtype == torch.bool else 8

        for place in range(len(data)):
            for bit in range(bits):
                data[place] ^= 1 << bit
                seen.add(hashed(tensor))
                data[place] ^= 1 << bit

        assert len(seen) == 1 + bits * len(data)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_memory_layout_does_not_change_it(self, dtype: torch.dtype, chunk: int) -> None:
        tensor = some(dtype, 5, 7, 3)
        offset = torch.cat([some(dtype, 1), tensor.flatten()])[1:].view(5, 7, 3)
        strided = torch.stack([tensor, tensor], dim=-1)[..., 0]
        transposed = tensor.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert not strided.is_contiguous()
        assert not transposed.is_contiguous()

        assert len({hashed(form) for form in (tensor, tensor.clone(), offset, strided, transposed)}) == 1

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_single_element_of_any_stride_is_hashed(self, dtype: torch.dtype) -> None:
        tensor = some(dtype, 10)

        assert hashed(tensor[::5][:1]) == hashed(tensor[:1].clone())
        assert hashed(tensor[3:4].expand(6)) == hashed(tensor[3:4].expand(6).contiguous())

    def test_chunks_do_not_change_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensor = some(torch.float32, 37, 5)
        found = set()
        for size in (8, 24, 1 << 16):
            monkeypatch.setattr(module, "_CHUNK", size)
            found |= {hashed(tensor), hashed(tensor.t().contiguous().t())}

        assert len(found) == 1

    def test_it_stays_the_same_from_release_to_release(self) -> None:
        assert hashed(torch.arange(10, dtype=torch.float32)) % (1 << 64) == PINNED

    def test_zeros_of_both_signs_and_payloads_of_nan_differ(self) -> None:
        quiet = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)

        assert hashed(torch.tensor([0.0])) != hashed(torch.tensor([-0.0]))
        assert hashed(quiet[:1]) != hashed(quiet[1:])
        assert hashed(quiet) == hashed(quiet.clone())

    def test_dtype_and_shape_are_part_of_it(self) -> None:
        zeros = [torch.zeros(4, dtype=dtype) for dtype in DTYPES]
        shapes = [(), (0,), (0, 2), (1,), (1, 1), (2,), (8,), (2, 4), (4, 2), (9,)]

        assert len({hashed(tensor) for tensor in zeros}) == len(zeros)
        assert len({hashed(torch.zeros(shape)) for shape in shapes}) == len(shapes)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
    def test_the_order_of_elements_is_part_of_it(self, dtype: torch.dtype, chunk: int) -> None:
        tensor = torch.arange(40).to(dtype)
        forms = [tensor, tensor.flip(0), tensor.roll(1), tensor.roll(8), tensor.roll(16)]
        for first, second in ((0, 1), (0, 8), (3, 39), (15, 16)):
            swapped = tensor.clone()
            swapped[[first, second]] = tensor[[second, first]]
            forms.append(swapped)

        assert len({hashed(form) for form in forms}) == len(forms)

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=12), st.integers(1, 2**63 - 1), st.data())
    def test_a_sum_kept_by_opposite_changes_is_no_hiding_place(
        self, values: list[int], by: int, data: st.DataObject
    ) -> None:
        one, other = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=2, max_size=2, unique=True))
        tensor = torch.tensor(values)
        changed = tensor.clone()
        changed[one] += by
        changed[other] -= by

        assert hashed(tensor) != hashed(changed)

    def test_a_flipped_bit_flips_half_of_the_hash(self) -> None:
        tensor = some(torch.float32, 64)
        before, flipped = hashed(tensor), 0
        for place in range(64):
            changed = tensor.clone()
            changed.view(torch.int32)[place] ^= 1 << (place % 32)
            flipped += (hashed(changed) ^ before).bit_count()

        assert 28 < flipped / 64 < 36

    def test_a_conjugated_view_is_hashed_by_its_values(self) -> None:
        tensor = some(torch.complex64, 4)

        assert hashed(tensor.conj()) == hashed(tensor.conj().resolve_conj()) != hashed(tensor)

    @pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
    @pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
    def test_of_a_sparse_tensor_places_and_values_are_hashed(self, layout: str) -> None:
        def sparse(row: int, column: int, value: float) -> Tensor:
            dense = torch.eye(4)
            dense[row, column] = value
            size = ((2, 2),) if layout.startswith("b") else ()
            found: Tensor = getattr(dense, f"to_sparse_{layout}")(*size)
            return found

        assert hashed(sparse(0, 2, 3.0)) == hashed(sparse(0, 2, 3.0).clone())
        assert len({hashed(sparse(*one)) for one in [(0, 2, 3.0), (0, 2, 4.0), (2, 0, 3.0), (0, 3, 3.0)]}) == 4

    def test_the_tensor_itself_is_not_written(self) -> None:
        tensor = some(torch.int64, 100)
        version, copy = tensor._version, tensor.clone()

        tensor_hash(tensor)

        assert torch.equal(tensor, copy)
        assert tensor._version == version

    def test_temporaries_stay_small(self) -> None:
        sizes: list[int] = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if (
                    isinstance(result, Tensor)
                    and result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
                ):
                    sizes.append(result.untyped_storage().nbytes())
                return result

        for tensor in (torch.zeros(1 << 20), torch.zeros(1 << 12, 1 << 8).t(), torch.zeros(64, 64, 16, 16)[:, :, ::2]):
            with Watch():
                tensor_hash(tensor)

        assert max(sizes) <= 8 * module._CHUNK

    def test_a_tensor_without_values_is_refused(self) -> None:
        with pytest.raises(PlanError, match=r"shape \(2, 3\) on the meta device has no values"):
            tensor_hash(torch.zeros(2, 3, device="meta"))

    @pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # torch before 2.7
    def test_of_a_sharded_tensor_the_local_shard_is_hashed(self, gloo: None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        tensor = some(torch.float32, 4, 2)

        assert hashed(distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])) == hashed(tensor)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_it_is_the_same_on_the_gpu(self, dtype: torch.dtype) -> None:
        tensor = some(dtype, 1000, 301)

        assert hashed(tensor.cuda()) == hashed(tensor) == hashed(tensor.cuda().t().contiguous().t())


PINNED = 16036694298135239206


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


class TestFingerprint:
    def test_every_parameter_and_buffer_has_a_hash_of_64_bits(self) -> None:
        model = net()

        found = fingerprint(model)

        assert list(found) == [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
        assert all(0 <= value < 1 << 64 for value in found.values())
        assert found == fingerprint(model)

    def test_only_what_was_written_differs(self) -> None:
        model = net()
        before = fingerprint(model)

        with torch.no_grad():
            model[2].weight[1, 0] = torch.nextafter(model[2].weight[1, 0], torch.tensor(9.0))
        model[1].num_batches_tracked += 1
        after = fingerprint(model)

        assert [name for name in after if after[name] != before[name]] == ["2.weight", "1.num_batches_tracked"]

    def test_buffers_go_with_their_module(self) -> None:
        buffers = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]

        assert list(fingerprint(net(), "1")) == ["1.weight", "1.bias", *buffers]
        assert list(fingerprint(net(), ["1", "!1.running_*"])) == ["1.weight", "1.bias", "1.num_batches_tracked"]
        assert list(fingerprint(net(), "1.running_mean")) == ["1.running_mean"]
        assert list(fingerprint(net(), "re:.*mean")) == ["1.running_mean"]
        assert list(fingerprint(net(), "1.weight")) == ["1.weight"]

    def test_buffers_are_left_out_on_request(self) -> None:
        assert list(fingerprint(net(), "1", buffers=False)) == ["1.weight", "1.bias"]

    def test_a_norm_without_affine_is_found_by_its_module(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))

        assert list(fingerprint(model, "1")) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]

    def test_a_shared_module_answers_to_both_of_its_names(self) -> None:
        norm = nn.BatchNorm1d(2)
        model = nn.ModuleDict({"a": norm, "b": norm})

        assert fingerprint(model, "b") == fingerprint(model, "a") == fingerprint(model)

    def test_prefixes_of_wrappers_are_no_part_of_a_name(self) -> None:
        model = net()

        assert fingerprint(nn.DataParallel(model)) == fingerprint(model)

    def test_the_host_is_reached_once(self) -> None:
        copies: list[str] = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
                    copies.append(str(func))
                return func(*args, **(kwargs or {}))

        with Watch():
            fingerprint(net())

        assert not copies  # `tolist` of the stacked hashes is no dispatched operation

    def test_a_model_without_values_is_refused_by_name(self) -> None:
        with torch.device("meta"):
            model = net()

        with pytest.raises(PlanError, match=r"'0\.weight' is on the meta device"):
            fingerprint(model)

    def test_a_pattern_that_matches_nothing_says_what_was_searched(self) -> None:
        with pytest.raises(
            PatternError, match=r"fingerprint: pattern '3' matches none of the 9 parameters and buffers"
        ):
            fingerprint(net(), "3")


@pytest.mark.parametrize("dtype", sorted(_PLAIN, key=str), ids=str)
def test_small_tensors_hashed_together_have_the_hashes_that_they_have_alone(dtype: torch.dtype) -> None:
    shapes = [(), (0,), (3,), (5, 7), (2, 0, 3), (1,), (64,), (9, 8)]
    numbers = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100 for shape in shapes]
    dense = [number > 0 if dtype == torch.bool else number.to(dtype) for number in numbers]
    others = [dense[3].t(), dense[6].expand(3, 64), dense[7][:, 1:3]]
    tensors = {str(place): tensor for place, tensor in enumerate([*dense, *others] * 3)}
    assert hashes_of(tensors) == {name: int(tensor_hash(tensor)) % (1 << 64) for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_small_tensors_of_rare_dtypes_have_the_hash_that_they_have_alone(dtype: torch.dtype) -> None:
    tensors = {"rare": some(dtype, 3), "plain": some(torch.float32, 3), "turned": some(torch.float32, 3, 4).t()}
    assert hashes_of(tensors) == {name: hashed(tensor) % (1 << 64) for name, tensor in tensors.items()}
