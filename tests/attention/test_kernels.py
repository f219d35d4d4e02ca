"""Each kernel against the formula in float64: output, log-sum-exp, and gradients after a merge."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segattn.attention.kernels import CpuFlash, CudaFlash, WrittenOut, choose_kernel

SCALE = 0.3


def tensors(queries=7, keys=7, heads=4, key_heads=2, size=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, heads, queries, size), (2, key_heads, keys, size), (2, key_heads, keys, size))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def formula(query, key, value, causal, softcap=None):
    """Output and log-sum-exp; causal is aligned at the bottom right."""
    query, key, value = query.double(), key.double(), value.double()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        hidden = torch.ones(query.shape[2], key.shape[2]).triu(key.shape[2] - query.shape[2] + 1).bool()
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


KERNELS = [CpuFlash(SCALE), WrittenOut(SCALE), WrittenOut(SCALE, softcap=1.5)]


def case_id(kernel):
    return f"{type(kernel).__name__}-{getattr(kernel, 'softcap', None)}"


@pytest.mark.parametrize("kernel", KERNELS, ids=case_id)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 1), (3, 9), (200, 333)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_output_logsumexp_and_gradients(kernel, causal, queries, keys, key_heads):
    if causal and not kernel.bottom_right:
        keys = queries
    inputs = [tensor.requires_grad_() for tensor in tensors(queries, keys, key_heads=key_heads)]
    want, want_sum = formula(*inputs, causal, getattr(kernel, "softcap", None))
    with torch.no_grad():
        got, got_sum = kernel.forward(*inputs, causal=causal, seed=0)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_sum, want_sum)
    gradient = torch.randn_like(want)
    with torch.no_grad():
        found = kernel.backward(gradient, *inputs, got, got_sum, causal=causal, seed=0)
    for mine, theirs in zip(found, torch.autograd.grad(want, inputs, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_written_out_blocks_change_nothing(monkeypatch):
    inputs = tensors(50, 61)
    whole = WrittenOut(SCALE).forward(*inputs, causal=True, seed=0)
    monkeypatch.setattr(WrittenOut, "block_scores", 1)
    assert len(WrittenOut(SCALE)._blocks(inputs[0], inputs[1])) == 4
    for one, other in zip(whole, WrittenOut(SCALE).forward(*inputs, causal=True, seed=0), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_keeps_the_mean_and_its_mask_in_the_backward_pass(monkeypatch):
    kernel = WrittenOut(SCALE, dropout=0.4)
    monkeypatch.setattr(WrittenOut, "block_scores", 1)
    inputs = [tensor.requires_grad_() for tensor in tensors(40, 60)]
    with torch.no_grad():
        outputs = torch.stack([kernel.forward(*inputs, causal=False, seed=seed)[0] for seed in range(400)])
        output, logsumexp = kernel.forward(*inputs, causal=False, seed=7)
        again = kernel.forward(*inputs, causal=False, seed=7)[0]
        gradients = kernel.backward(torch.ones_like(output), *inputs, output, logsumexp, causal=False, seed=7)
    assert torch.equal(output, again)
    assert not torch.equal(outputs[0], outputs[1])
    want = formula(*inputs, causal=False)[0]
    torch.testing.assert_close(outputs.mean(0), want, atol=5 * float(outputs.std()) / 400**0.5, rtol=0)
    # The derivative along a direction, by finite differences under the same mask.
    step = 1e-5
    for index, found in enumerate(gradients):
        direction = torch.randn_like(inputs[index])
        values = []
        for sign in (1, -1):
            moved = [tensor.detach().clone() for tensor in inputs]
            moved[index] += sign * step * direction
            values.append(kernel.forward(*moved, causal=False, seed=7)[0].sum())
        torch.testing.assert_close((found * direction).sum(), (values[0] - values[1]) / (2 * step))


@pytest.mark.parametrize(
    ("dtype", "options", "kind"),
    [
        (torch.float32, {}, CpuFlash),
        (torch.bfloat16, {}, CpuFlash),
        (torch.float16, {}, CpuFlash),
        (torch.float64, {}, CpuFlash),
        (torch.float32, {"softcap": 2.0}, WrittenOut),
        (torch.float32, {"dropout": 0.1}, WrittenOut),
    ],
)
def test_the_choice_of_kernel(dtype, options, kind):
    query = torch.zeros(1, 1, 1, 8, dtype=dtype)
    assert type(choose_kernel(query, scale=1.0, **{"softcap": None, "dropout": 0.0, **options})) is kind


@pytest.mark.parametrize(
    ("dtype", "size", "kind"),
    [(torch.bfloat16, 64, CudaFlash), (torch.float32, 64, WrittenOut), (torch.half, 512, WrittenOut)],
)
def test_the_choice_on_a_gpu_and_the_shapes_of_its_kernel(dtype, size, kind, monkeypatch):
    """Without a GPU: torch's own record of what the operators take and give."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with FakeTensorMode():
        query = torch.empty(2, 8, 16, size, device="cuda", dtype=dtype)
        key = torch.empty(2, 2, 32, size, device="cuda", dtype=dtype)
        kernel = choose_kernel(query, scale=1.0, softcap=None, dropout=0.0)
        assert type(kernel) is kind
        if kind is CudaFlash:
            output, logsumexp = kernel.forward(query, key, key, causal=True, seed=0)
            assert (output.shape, logsumexp.shape) == (query.shape, query.shape[:3])
            found = kernel.backward(output, query, key, key, output, logsumexp, causal=True, seed=0)
            assert [tensor.shape for tensor in found] == [query.shape, key.shape, key.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("causal", [False, True])
def test_the_gpu_kernel_computes_the_formula(causal):
    inputs = [tensor.cuda().requires_grad_() for tensor in tensors(48, 80, size=64, dtype=torch.bfloat16)]
    want, want_sum = formula(*inputs, causal)
    with torch.no_grad():
        got, got_sum = CudaFlash(SCALE).forward(*inputs, causal=causal, seed=0)
        found = CudaFlash(SCALE).backward(torch.ones_like(got), *inputs, got, got_sum, causal=causal, seed=0)
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(got_sum.double(), want_sum, atol=2e-2, rtol=2e-2)
    for mine, theirs in zip(found, torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=5e-2, rtol=5e-2)
