"""What holds for every op, on every backend: one suite over OPS."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from kdgen import kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAST = ["native", "sdpa", "triton", "cuda"]
DRAWS = ("philox_uint32", "philox_uniform", "philox_normal")
DIFFERENTIABLE = (
    kernels.group_norm_silu,
    kernels.attention,
    kernels.bias_residual,
    kernels.ddim_update,
)


def per_op(ops=kernels.OPS):
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


per_backend = pytest.mark.parametrize("backend", FAST)
per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def cases(op, dtype, device):
    if op.name in DRAWS and dtype is not torch.float32:
        pytest.skip("draws have one dtype")
    return op.examples(dtype, device)


@per_dtype
@per_backend
@per_op()
def test_backend_is_as_accurate_as_the_reference(
    op, backend, dtype, device, served, wide, as_accurate
):
    for example in served(op, backend, cases(op, dtype, device)):
        with kernels.use(backend):
            got = op(*example.args)
        as_accurate(got, op.reference(*example.args), op.reference(*wide(example.args)))


@per_dtype
@per_backend
@per_op(DIFFERENTIABLE)
def test_gradients_are_as_accurate_as_the_reference(
    op, backend, dtype, device, served, wide, grads, as_accurate
):
    for example in served(op, backend, cases(op, dtype, device)):
        generator = torch.Generator().manual_seed(1)
        answer = op.reference(*example.args)
        dy = torch.randn(answer.shape, generator=generator).to(device, dtype)
        with kernels.use(backend):
            got = grads(op, example.args, dy)
        own = grads(op.reference, example.args, dy)
        exact = grads(op.reference, wide(example.args), dy.double())
        assert len(got) == len(exact)
        for g, o, e in zip(got, own, exact, strict=True):
            as_accurate(g, o, e)


@per_backend
@per_op()
def test_same_call_gives_the_same_bits(op, backend, device, served):
    for example in served(op, backend, cases(op, torch.float32, device)):
        with kernels.use(backend):
            assert torch.equal(op(*example.args), op(*example.args))


@pytest.mark.parametrize("backend", ["reference", *FAST])
@per_op()
def test_an_empty_batch_gives_an_empty_answer(op, backend, device, need):
    for example in op.examples(torch.float32, device):
        args = tuple(first_images(a, example.args, 0) for a in example.args)
        need(op, backend, args)
        with kernels.use(backend):
            got = op(*args)
        full = op.reference(*example.args)
        assert got.shape == (0, *full.shape[1:])
        assert got.dtype == full.dtype


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_images_without_pixels_have_zero_weight_gradients(backend, need, grads):
    op, x = kernels.group_norm_silu, torch.ones(2, 4, 0)
    args = (x, torch.ones(4), torch.ones(4), 2)
    need(op, backend, args)
    with kernels.use(backend):
        _, dweight, dbias = grads(op, args, x)
    assert torch.equal(dweight, torch.zeros(4))
    assert torch.equal(dbias, torch.zeros(4))


@per_backend
@per_op()
def test_an_image_does_not_depend_on_its_batch(op, backend, device, served):
    for example in served(op, backend, cases(op, torch.float32, device)):
        n = op.reference(*example.args).shape[0]
        with kernels.use(backend):
            together = op(*example.args)
            for count in range(1, n):
                args = tuple(first_images(a, example.args, count) for a in example.args)
                assert torch.equal(op(*args), together[:count])


def first_images(value, args, count):
    """`value` cut to `count` images, where its leading dimension counts images."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    n = next(a for a in args if isinstance(a, Tensor)).shape[0]
    # A (C,) parameter may be as long as the batch only by accident; examples avoid that.
    return value[:count] if value.shape[0] == n else value


@per_backend
@per_op([op for op in kernels.OPS if op.name not in DRAWS])
def test_every_memory_layout_gives_the_answer_of_a_dense_copy(op, backend, device, need):
    args = op.examples(torch.float32, device)[0].args
    for name, variant in layouts(args).items():
        need(op, backend, variant)
        with kernels.use(backend):
            got = op(*variant)
            copied = op(*(dense(a) for a in variant))
        assert torch.equal(got, copied), name
        assert strides(got) == strides(op.reference(*variant)), name


def layouts(args):
    """The call with its images in every layout that a caller may come with."""
    x = args[0]
    others = args[1:]
    flat = torch.empty(x.numel() + 3, dtype=x.dtype, device=x.device)[3:].view_as(x).copy_(x)
    padded = torch.cat([x, x], 3)[..., : x.shape[3]]
    wide = torch.cat([x, x], 1)[:, : x.shape[1]]
    views = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "storage offset": flat,
        "sliced rows": padded,
        "sliced channels": wide,
        "sliced channels last": wide.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(x.shape),
        "every second image": torch.stack([x, x], 1).flatten(0, 1)[::2],
    }
    return {name: (view, *others) for name, view in views.items()}


def dense(value):
    if not isinstance(value, Tensor) or value.ndim != 4:
        return value
    last = value.stride(1) == 1
    form = torch.channels_last if last else torch.contiguous_format
    return value.clone(memory_format=form)


def strides(t: Tensor) -> list[int]:
    return [s for s, size in zip(t.stride(), t.shape, strict=True) if size > 1]


@per_op()
def test_fake_tensors_foretell_shape_dtype_and_strides(op):
    for example in op.examples(torch.bfloat16, torch.device("cpu")):
        real = op(*example.args)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in example.args))
        assert fake.shape == real.shape
        assert fake.dtype == real.dtype
        assert strides(fake) == strides(real)


def registered(op, args):
    """The registered op and its arguments, backend "" (automatic)."""
    call = getattr(torch.ops.kdgen, op.name).default
    full = op.bind(*args)
    if op.name.startswith("ddim"):
        x_t, x0, a, b, clip = full
        each = [v if isinstance(v, Tensor) else None for v in (a, b)]
        flat = [0.0 if isinstance(v, Tensor) else v for v in (a, b)]
        full = (x_t, x0, *each, *flat, clip)
    if op is kernels.scale_input:
        x, c, *rest = full
        full = (x, c, 0.0, *rest) if isinstance(c, Tensor) else (x, None, c, *rest)
    if op.name in DRAWS:
        full = (1, 2, *full[2:])
    return call, (*full, "")


@per_op()
def test_registration_passes_opcheck(op):
    example = op.examples(torch.float32, torch.device("cpu"))[-2]
    call, args = registered(op, example.args)
    torch.library.opcheck(call, args)
    if op in DIFFERENTIABLE:
        torch.library.opcheck(call, tuple(learnable(a) for a in args))


def learnable(a):
    return a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a


def test_group_norm_backward_passes_opcheck():
    op = kernels.group_norm_silu
    example = op.examples(torch.float32, torch.device("cpu"))[2]
    x, weight, bias, groups, _, *extras = example.args
    call, args = registered(op, example.args)
    statistics = call(*args)[1]
    backward = torch.ops.kdgen.group_norm_silu_backward.default
    torch.library.opcheck(
        backward, (torch.ones_like(x), x, weight, bias, statistics, groups, *extras, "")
    )


def test_attention_backward_passes_opcheck():
    example = kernels.attention.examples(torch.float32, torch.device("cpu"))[2]
    call, args = registered(kernels.attention, example.args)
    q, k, v, heads, scale, _ = args
    out, logsumexp = call(*args)
    backward = torch.ops.kdgen.attention_backward.default
    torch.library.opcheck(backward, (torch.ones_like(q), q, k, v, out, logsumexp, heads, scale, ""))


@pytest.mark.parametrize("backend", ["", "reference", "native"])
def test_compiled_and_eager_agree_in_value_and_gradient(backend, grads):
    op = kernels.group_norm_silu
    args = op.examples(torch.float32, torch.device("cpu"))[3].args

    def chosen(*a):
        if not backend:
            return op(*a)
        with kernels.use(backend):
            return op(*a)

    torch.compiler.reset()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)

    def traced(*a):
        if not backend:
            return compiled(*a)
        with kernels.use(backend):
            return compiled(*a)

    dy = torch.ones(args[0].shape)
    torch.testing.assert_close(traced(*args), chosen(*args), rtol=0, atol=1e-5)
    for got, want in zip(grads(traced, args, dy), grads(chosen, args, dy), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@per_op()
def test_compiles_into_one_graph(op):
    torch.compiler.reset()
    args = op.examples(torch.float32, torch.device("cpu"))[0].args
    compiled = torch.compile(op.__call__, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*args), op(*args))
