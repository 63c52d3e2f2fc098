"""Devices, memory, and settings that are everybody's."""

from __future__ import annotations

import threading

import pytest
import torch

from esm2_features._model import devices as _devices
from esm2_features._model.devices import (
    default_batch_tokens,
    even_rows,
    exact_arithmetic,
    is_out_of_memory,
    resolve_device,
    within_cores,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("Invalid buffer size: 9.02 GB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test__is_out_of_memory__tells_memory_from_other_errors(error, answer):
    assert is_out_of_memory(error) is answer


@pytest.mark.parametrize("rows", [0, 1, 2, 100, 1000, 4099])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test__even_rows__no_operation_begins_a_row_in_one_thread_and_ends_it_in_another(rows, threads):
    width, grain = 240, 32768
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cuts = list(even_rows(torch.empty(rows, 20, 12)))
    finally:
        torch.set_num_threads(before)
    assert [row for cut in cuts for row in range(rows)[cut]] == list(range(rows))
    for cut in cuts:
        numbers = (cut.stop - cut.start) * width
        parts = min(threads, -(-numbers // grain))  # as PyTorch divides them
        assert (cut.stop - cut.start) % parts == 0
    assert len(cuts) <= 3


@pytest.mark.parametrize(
    ("threads", "tokens"), [(1, 2048), (2, 2048), (4, 2048), (24, 12288), (64, 16384)]
)
def test__default_batch_tokens__gives_each_core_of_a_cpu_some_work(threads, tokens, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_devices, "_cores", lambda: 128)
    assert default_batch_tokens(CPU, 1280) == tokens


@pytest.mark.parametrize(
    ("free", "dim", "tokens"), [(140e9, 1280, 1 << 17), (15e9, 1280, 36621), (1e9, 5120, 2048)]
)
def test__default_batch_tokens__fill_a_quarter_of_a_card(free, dim, tokens, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free) - 3, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    assert default_batch_tokens(torch.device("cuda", 0), dim) == tokens


def test__within_cores__uses_what_the_process_has_and_puts_back(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(_devices, "_cores", lambda: 2)
        with within_cores(CPU):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(_devices, "_cores", lambda: 8)
        with within_cores(CPU):
            assert torch.get_num_threads() == 3, "fewer threads are what the user wants"
    finally:
        torch.set_num_threads(before)


def test__resolve_device__gives_a_device_one_name():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto") == resolve_device(resolve_device("auto").type)


@pytest.fixture
def rounding():
    """A process in which float32 products may round, as users set it."""
    backend = torch.backends.cuda.matmul
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("this PyTorch has one setting for all, tested elsewhere")
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    yield lambda: backend.fp32_precision
    backend.fp32_precision = before


def test__exact_arithmetic__puts_back_what_was_set_also_after_an_error(rounding):
    def fail():
        with exact_arithmetic(CPU):
            assert rounding() == "ieee"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert rounding() == "tf32"


def test__exact_arithmetic__holds_until_the_last_thread_is_out(rounding):
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with exact_arithmetic(CPU):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with exact_arithmetic(CPU):
            second_in.set()
            first_out.wait(10)
            seen.append(rounding())

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["ieee"]
    assert rounding() == "tf32"
