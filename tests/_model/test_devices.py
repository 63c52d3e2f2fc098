"""Devices, memory, and settings that are everybody's."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from esm2_features import Engine
from esm2_features._costs import dry_run
from esm2_features._model import devices as _devices
from esm2_features._model.devices import (
    DeviceMap,
    default_batch_tokens,
    even_rows,
    exact_arithmetic,
    is_out_of_memory,
    resolve_device,
    resolve_devices,
    within_cores,
    workers_on,
)
from esm2_features.exceptions import InputError

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


def test__within_cores__divides_what_the_user_gives_and_is_a_threads_own(monkeypatch):
    before, seen = torch.get_num_threads(), {}
    monkeypatch.setattr(_devices, "_cores", lambda: 8)
    torch.set_num_threads(4)

    def newcomer(name):
        seen[name] = torch.get_num_threads()

    def worker():
        with within_cores(CPU, sharing=2):
            seen["worker"] = torch.get_num_threads()
            in_thread(newcomer, "newcomer")
        seen["afterwards"] = torch.get_num_threads()

    def in_thread(run, *args):
        thread = threading.Thread(target=run, args=args)
        thread.start()
        thread.join()

    try:
        in_thread(worker)
        assert seen == {"worker": 2, "newcomer": 4, "afterwards": 4}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "budget", "workers"),
    [(1, 2048, 1), (2, 2048, 2), (4, 2048, 2), (8, 4096, 4), (64, 16384, 8), (2, 1000, 1)],
)
def test__workers_on__share_the_cores_of_a_cpu(cores, budget, workers, monkeypatch):
    monkeypatch.setattr(_devices, "cores_of_cpu", lambda: cores)
    assert workers_on(CPU, budget, is_alone=True) == workers
    assert workers_on(CPU, budget, is_alone=False) == 1


@pytest.mark.parametrize(("is_alone", "workers"), [(True, 1), (False, 2)])
def test__workers_on__a_card_begin_ahead(is_alone, workers):
    assert workers_on(torch.device("cuda", 0), 1 << 17, is_alone=is_alone) == workers


def test__resolve_device__gives_a_device_one_name():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto") == resolve_device(resolve_device("auto").type)


def no_kernels(*_, **__):
    raise RuntimeError(
        "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"
    )


def wrong_numbers(*_, **__):
    return torch.zeros(8)


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def volta(monkeypatch):
    """Two cards of compute capability 7.0; the returned function says what their kernels do."""
    empty, full = torch.empty, torch.full

    def on_a_card(*args, device=None, **options):
        name = torch.device(device or "cpu")
        if name.type != "cuda":
            return empty(*args, device=device, **options)
        return SimpleNamespace(device=torch.device("cuda", name.index or 0))

    def kernels(*broken):
        def make(*args, device, **options):
            if broken and str(device) in broken[1:]:
                return broken[0]()
            return full(*args, **options)

        monkeypatch.setattr(torch, "full", make)

    for name, fake in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_capability": lambda device: (7, 0),
        "get_device_name": lambda device: "Tesla V100",
        "get_arch_list": lambda: ["sm_75", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "empty", on_a_card)
    caches = _devices._failure_of, _devices._warn_once
    for cache in caches:
        cache.cache_clear()
    yield kernels
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("broken", "reason"), [(no_kernels, "no kernel image"), (wrong_numbers, "is 0.0 there, not 72")]
)
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test__resolve_device__refuses_a_card_that_does_not_compute(volta, broken, reason, name):
    volta(broken, "cuda:0")
    message = rf"{name}'.*{reason}.*Tesla V100 \(sm_70\).*sm_75, sm_90.*install.*device=\"cpu\""
    with pytest.raises(InputError, match=message):
        resolve_device(name)


def test__resolve_device__auto_takes_the_cpu_instead_and_says_so_once(volta, recwarn):
    volta(no_kernels, "cuda:0", "cuda:1")
    assert [resolve_device("auto") for _ in range(3)] == [CPU] * 3
    assert ["sm_70" in str(one.message) for one in recwarn] == [True]
    assert resolve_devices(("all",), "float32") == [DeviceMap((CPU,))]


def test__resolve_devices__all_leaves_out_a_card_that_does_not_compute(volta):
    volta(no_kernels, "cuda:0")
    with pytest.warns(UserWarning, match=r"cuda:0.*no kernel image"):
        assert list(map(str, resolve_devices(("all",), "float32"))) == ["cuda:1"]


def test__resolve_device__leaves_a_full_memory_to_who_loads_the_weights(volta):
    volta(no_memory, "cuda:0")
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


def test__resolve_device__takes_cards_that_compute(volta):
    volta()
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert list(map(str, resolve_devices(("all",), "float32"))) == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("name", ["cuda", "cuda+cpu", "cuda:0+cuda:1", "all"])
def test__bfloat16__is_refused_on_cards_without_units_for_it(volta, name, tiny_checkpoint):
    volta()
    engine = Engine(tiny_checkpoint, device=name, precision="bfloat16", cache=None)
    with pytest.raises(InputError, match=r"bfloat16.*Tesla V100.*7\.0.*float16"):
        engine.embed(["MKTAYIAKQR"])
    with pytest.raises(InputError, match=r"bfloat16.*float16"):
        dry_run(engine, ["MKTAYIAKQR"])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test__other_precisions__are_for_all_cards(volta, precision):
    volta()
    assert list(map(str, resolve_devices(("cuda",), precision))) == ["cuda:0"]


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


def test__exact_arithmetic__gives_back_what_a_wider_setting_decides(rounding):
    wide, narrow = torch.backends, torch.backends.cuda.matmul
    before = wide.fp32_precision
    narrow.fp32_precision = "none"
    try:
        wide.fp32_precision = "tf32"
        with exact_arithmetic(CPU):
            assert rounding() == "ieee"
        assert rounding() == "tf32"
        wide.fp32_precision = "ieee"
        assert rounding() == "ieee", "what the user sets afterwards must still count"
    finally:
        wide.fp32_precision = before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test__exact_arithmetic__works_where_settings_have_their_old_names_only(precision, monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    torch.set_float32_matmul_precision(precision)
    try:
        with exact_arithmetic(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("before", [True, False])
def test__exact_arithmetic__has_no_attention_of_cudnn_and_puts_it_back(before):
    backend = torch.backends.cuda
    was = backend.cudnn_sdp_enabled()
    backend.enable_cudnn_sdp(before)
    try:
        with exact_arithmetic(CPU):
            assert not backend.cudnn_sdp_enabled()
        assert backend.cudnn_sdp_enabled() is before
    finally:
        backend.enable_cudnn_sdp(was)
