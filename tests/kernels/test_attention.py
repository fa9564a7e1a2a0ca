"""What attention is: laws of the softmax over an image's pixels, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from kdgen import kernels
from kdgen.kernels import attention, configs

ALL = ["reference", "sdpa", "triton"]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN = float("nan")
per_backend = pytest.mark.parametrize("backend", ALL)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def images(batch, channels, *size, seed=0, dtype=torch.float32):
    """q, k, v as networks have them: slices of one channels-last tensor."""
    qkv = normal(batch, *size, 3 * channels, seed=seed, dtype=dtype)
    return qkv.movedim(-1, 1).chunk(3, 1)


@pytest.fixture
def run(need):
    """The op on one backend, or a skip."""

    def call(backend, *args):
        need(attention, backend, args)
        with kernels.use(backend):
            return attention(*args)

    return call


def by_hand(q, k, v, heads, scale):
    """Pixel after pixel, head after head."""
    out, width = torch.empty_like(q), q.shape[1] // heads
    for i in range(q.shape[0]):
        for c in range(0, q.shape[1], width):
            queries, keys, values = (x[i, c : c + width].flatten(1) for x in (q, k, v))
            odds = (scale * queries.T @ keys).softmax(1)
            out[i, c : c + width] = (values @ odds.T).unflatten(1, q.shape[2:])
    return out


@pytest.mark.parametrize("scale", [None, 0.3, -1.0, 0.0])
def test_the_reference_is_its_formula(scale):
    q, k, v = images(2, 12, 3, 4, dtype=torch.float64)
    want = by_hand(q, k, v, 3, 0.5 if scale is None else scale)
    torch.testing.assert_close(attention.reference(q, k, v, 3, scale), want)


@per_backend
def test_it_is_torchs_scaled_dot_product_attention(run, backend):
    q, k, v = images(2, 64, 5, 3)
    q_, k_, v_ = (x.flatten(2).unflatten(1, (2, 32)).mT for x in (q, k, v))
    want = F.scaled_dot_product_attention(q_, k_, v_).mT.flatten(1, 2).view(q.shape)
    torch.testing.assert_close(run(backend, q, k, v, 2), want, rtol=1e-5, atol=1e-6)


def test_the_reference_passes_gradcheck():
    leaves = [x.detach().requires_grad_() for x in images(2, 6, 3, 1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: attention.reference(*x, 2, 0.7), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: attention.reference(*x, 2, 0.7), leaves)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_written_out_gradient_is_the_derivative(scale):
    args = images(2, 12, 3, 4, dtype=torch.float64)
    leaves = [x.detach().requires_grad_() for x in args]
    dout = normal(2, 12, 3, 4, seed=1, dtype=torch.float64)
    want = torch.autograd.grad(attention.reference(*leaves, 3, scale), leaves, dout)
    out, logsumexp = attention.by_name["reference"].run(*args, 3, scale)
    got = attention.by_name["reference"].backward(dout, *args, out, logsumexp, 3, scale)
    torch.testing.assert_close(got, want)


# ---- laws of the softmax --------------------------------------------------------------------


@per_backend
def test_the_weights_of_a_pixel_sum_to_one(run, backend):
    q, k, v = images(2, 32, 7, 3)
    ones = run(backend, q, k, torch.ones_like(v), 2)
    torch.testing.assert_close(ones, torch.ones_like(v), rtol=0, atol=1e-6)


@per_backend
def test_one_pixel_sees_itself(run, backend):
    q, k, v = (x.detach().requires_grad_() for x in images(2, 32, 1, 1))
    y = run(backend, q, k, v, 2)
    torch.testing.assert_close(y, v, rtol=1e-6, atol=0)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), dy := normal(2, 32, 1, 1, seed=1))
    torch.testing.assert_close(dv, dy, rtol=1e-6, atol=0)
    for g in (dq, dk):  # one weight is 1 whatever the score; what is left is rounding
        torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-5)


@per_backend
def test_pixels_have_no_order(run, backend):
    q, k, v = images(2, 32, 9, 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    before = run(backend, q, k, v, 1)
    turned = run(backend, *(x[:, :, order] for x in (q, k, v)), 1)
    torch.testing.assert_close(turned, before[:, :, order], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(run(backend, q[:, :, order], k, v, 1), before)


@per_backend
def test_the_same_added_to_every_key_changes_nothing(run, backend):
    """So a bias of the keys is a weight that learns nothing."""
    q, k, v = images(2, 32, 4, 4)
    bias = normal(32, 1, 1, seed=3) * 3
    torch.testing.assert_close(
        run(backend, q, k + bias, v, 2), run(backend, q, k, v, 2), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(run(backend, q, k, v + bias, 2), run(backend, q, k, v, 2))


@per_backend
def test_heads_do_not_see_one_another(run, backend):
    q, k, v = images(2, 48, 4, 4)
    whole = run(backend, q, k, v, 3)
    parts = zip(*(x.chunk(3, 1) for x in (q, k, v)), strict=True)
    alone = [run(backend, *one, 1) for one in parts]
    torch.testing.assert_close(whole, torch.cat(alone, 1), rtol=1e-6, atol=1e-6)


@per_backend
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_a_huge_score_takes_all_and_overflows_nothing(run, backend, size):
    """Each pixel is most like itself: with scores far apart it sees itself alone."""
    x = F.normalize(normal(1, 32, 40, seed=4), dim=1) * size
    v = images(1, 32, 40)[2]
    torch.testing.assert_close(run(backend, x, x, v, 1), v, rtol=0, atol=0)


@per_backend
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # where nothing is kept
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_scores_far_below_zero_do_no_harm(run, grads, backend, dtype):
    """Pixels that are not there, to fill up a block, would have score 0: far above all others."""
    bias = 4 * normal(32, 1, seed=6, dtype=dtype).sign()
    q, k, v = (x.to(dtype) for x in images(1, 32, 19))
    args = (q + bias, k - bias, v, 1)  # scores near -90
    got = [run(backend, *args), *grads(lambda *a: run(backend, *a), args, v)]
    want = [attention.reference(*args), *grads(attention.reference, args, v)]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-2, atol=1e-2 if dtype is F16 else 1e-4)


# ---- where values go ------------------------------------------------------------------------


@per_backend
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter's maximum
@pytest.mark.parametrize("arg", range(3))
def test_not_a_number_stays_in_its_image_and_head(run, backend, arg):
    clean = [x.clone() for x in images(3, 32, 40)]
    dirty = [x.clone() for x in clean]
    dirty[arg][1, 20, 36] = NAN  # head 1 of image 1
    got, want = run(backend, *dirty, 2), run(backend, *clean, 2)
    hit = got.isnan()
    assert hit[1, 16:, 36].any()
    hit[1, 16:] = False
    assert not hit.any()
    assert torch.equal(got[::2], want[::2])
    assert torch.equal(got[1, :16], want[1, :16])


@per_backend
@pytest.mark.parametrize("size", [(4, 4), (21,)], ids=str)
def test_slices_of_one_tensor_give_the_bits_of_copies(run, backend, size):
    args = images(2, 32, *size)
    copies = [x.clone(memory_format=torch.contiguous_format) for x in args]
    assert torch.equal(run(backend, *args, 2), run(backend, *copies, 2))


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_gradients_through_slices_are_those_of_copies(run, backend):
    qkv = normal(2, 4, 4, 96).movedim(-1, 1)
    dout = normal(2, 32, 4, 4, seed=1)
    one = qkv.clone(memory_format=torch.preserve_format).requires_grad_()
    run(backend, *one.chunk(3, 1), 2).backward(dout)
    three = [x.contiguous().requires_grad_() for x in qkv.chunk(3, 1)]
    run(backend, *three, 2).backward(dout)
    assert torch.equal(one.grad, torch.cat([x.grad for x in three], 1))


def test_slices_are_not_copied():
    """What a backend reads is a view: same storage, same place."""
    for x in images(2, 32, 4, 4):
        rows = kernels.layout.pixels(x)
        assert rows.data_ptr() == x.data_ptr()
        assert rows.shape == (2, 16, 32)
        assert rows.stride() == (16 * 96, 96, 1)


@per_backend
@pytest.mark.parametrize("size", [(6,), (3, 2), (1, 3, 2)], ids=str)
def test_the_answer_has_its_channels_innermost(run, backend, size):
    for args in (images(2, 16, *size), [normal(2, 16, *size, seed=s) for s in range(3)]):
        y = run(backend, *args, 1)
        assert y.shape == args[0].shape
        assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_the_gradient_of_an_image_does_not_depend_on_its_batch(run, backend):
    args, dout = images(3, 32, 5, 4), normal(3, 32, 5, 4, seed=1)

    def gradients(count):
        leaves = [x[:count].detach().requires_grad_() for x in args]
        return torch.autograd.grad(run(backend, *leaves, 2), leaves, dout[:count])

    for one, all_ in zip(gradients(1), gradients(3), strict=True):
        assert torch.equal(one, all_[:1])


def test_only_the_inputs_that_learn_get_a_gradient(run):
    q, k, v = images(1, 16, 2, 2)
    k = k.detach().requires_grad_()
    run("triton", q, k, v, 1).sum().backward()
    assert q.grad is v.grad is None
    assert k.grad.shape == k.shape


# ---- Triton, in the shapes of networks ------------------------------------------------------

SHAPES = [
    (16, 64, 1, F32),
    (16, 256, 1, BF16),  # the smallest image of DDPM
    (49, 96, 1, F16),  # a padded head, a ragged image
    (64, 64, 2, BF16),  # the largest image that one program takes
    (80, 64, 1, F16),  # several blocks, the last of them ragged
    (144, 256, 1, BF16),
    (40, 96, 1, F32),
]


BIG = [  # a GPU's
    (256, 256, 1, BF16),
    (1024, 64, 6, F16),
    (200, 192, 1, BF16),
    (256, 256, 1, F32),
    (1000, 80, 2, F32),
]


@pytest.mark.parametrize(
    ("tokens", "width", "heads", "dtype", "device"),
    [(*shape, "cpu") for shape in SHAPES]
    + [pytest.param(*shape, "cuda", marks=pytest.mark.gpu) for shape in (*SHAPES, *BIG)],
)
def test_triton_is_as_accurate_in_networks_shapes(
    tokens, width, heads, dtype, device, need, wide, grads, as_accurate
):
    args = (*(x.to(device) for x in images(1, heads * width, tokens, dtype=dtype)), heads, None)
    dout = normal(*args[0].shape, seed=1, dtype=dtype).to(device)
    need(attention, "triton", args)
    with kernels.use("triton"):
        got = [attention(*args), *grads(attention, args, dout)]
    own = [attention.reference(*args), *grads(attention.reference, args, dout)]
    exact = wide(args)
    true = [attention.reference(*exact), *grads(attention.reference, exact, dout.double())]
    for g, o, t in zip(got, own, true, strict=True):
        as_accurate(g, o, t)


def test_triton_saves_the_logarithm_of_each_sum(need):
    args = (*images(2, 32, 40), 2, 0.4)
    need(attention, "triton", args)
    got = attention.by_name["triton"].run(*args)[1]
    torch.testing.assert_close(got, attention.by_name["reference"].run(*args)[1])


@pytest.mark.parametrize(
    ("channels", "heads", "why"),
    [(24, 1, "a head has 24 channels"), (288, 1, "a head has 288 channels"), (32, 4, "has 8")],
)
def test_triton_says_which_heads_it_takes(channels, heads, why):
    args = images(1, channels, 2, 2)
    with kernels.use("triton"), pytest.raises(ValueError, match=f"{why}.*a multiple of 16 up to"):
        attention(*args, heads)


def test_a_cut_covers_small_images_and_fits_a_smaller_gpu():
    cuts = pytest.importorskip("kdgen.kernels._triton.attention_cuts")
    for which in ("forward", "backward_q", "backward_kv", "backward_whole"):
        for tokens in (1, 16, 49, 64, 65, 256, 1024, 4096):
            for width in range(16, 257, 16):
                for itemsize, room in ((2, 232448), (2, 166912), (2, 101376), (4, 101376)):
                    cut = cuts.ruled(which, tokens, width, itemsize, room)
                    assert all(math.log2(v).is_integer() for v in cut[:4])
                    assert min(cut.block_q, cut.block_k) >= 16
                    assert max(cut.block_q, cut.block_k) <= 4 * max(16, tokens)
                    assert cut.split <= 256
    assert cuts.ruled("forward", 256, 256, 2, 166912) < cuts.ruled("forward", 256, 256, 2, 232448)


def test_another_cut_computes_the_same(need):
    """As `tools/tune.py` tries them."""
    args = (*images(1, 32, 40), 1, 0.2)
    need(attention, "triton", args)
    ruled = attention.by_name["triton"].run(*args)
    with configs.using("attention.forward", block_q=16, block_k=16, split=16, warps=2):
        other = attention.by_name["triton"].run(*args)
    torch.testing.assert_close(other, ruled, rtol=1e-5, atol=1e-5)


# ---- autocast, compilers, gradients twice ---------------------------------------------------


@per_backend
def test_under_autocast_it_computes_in_the_lower_precision(run, backend):
    q, k, v = images(1, 32, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(backend, q, k, v, 2)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, run(backend, *(x.bfloat16() for x in (q, k, v)), 2))


@per_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_fake_tensors_foretell_the_answer_of_every_backend(run, backend, dtype):
    args = (*images(2, 32, 3, 4, dtype=dtype), 2)
    real = run(backend, *args)
    with FakeTensorMode() as mode:
        fake = run(backend, *(mode.from_tensor(x) for x in args[:3]), 2)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("backend", ["", *ALL])
def test_compiled_and_eager_agree_in_value_and_gradient(need, grads, backend):
    args = (*images(2, 32, 3, 3), 2, None)
    if backend:
        need(attention, backend, args)
    torch.compiler.reset()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    dout = torch.ones(args[0].shape)
    with kernels.use(backend):
        got = [compiled(*args), *grads(compiled, args, dout)]
        want = [attention(*args), *grads(attention, args, dout)]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_that_does_not_exist_raises(run):
    leaves = [x.detach().requires_grad_() for x in images(1, 16, 2, 2)]
    y = run("triton", *leaves, 1)
    (first,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "width"), [(256, 256), (64, 256), (1024, 64)])
def test_on_a_gpu_too_an_image_does_not_depend_on_its_batch(run, tokens, width):
    """Not said of SDPA there: its kernels may cut the keys by how many images there are."""
    args = [x.cuda() for x in images(40, width, tokens, dtype=BF16)]
    dout = normal(*args[0].shape, seed=1, dtype=BF16).cuda()

    def everything(count):
        leaves = [x[:count].detach().requires_grad_() for x in args]
        y = run("triton", *leaves, 1)
        return y, *torch.autograd.grad(y, leaves, dout[:count])

    for few, all_ in zip(everything(2), everything(40), strict=True):
        assert torch.equal(few, all_[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_a_captured_call_replays_the_same_bits(backend):
    args = [x.cuda() for x in images(4, 256, 16, 16, dtype=torch.bfloat16)]
    with kernels.use(backend):
        want = attention(*args, 1)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = attention(*args, 1)
    graph.replay()
    assert torch.equal(got, want)


# ---- errors ---------------------------------------------------------------------------------

WRONG = [
    (lambda x: attention(x, x, x, 3), "q has 4 channels, heads is 3; expected .*Pass heads=2"),
    (lambda x: attention(x, x, x, 0), "q has 4 channels, heads is 0; expected .*Pass heads=1"),
    (lambda x: attention(x[0, 0], x, x, 1), r"q has shape \(3, 3\); expected \(B, heads·D, …\)"),
    (lambda x: attention(x, x[:1], x, 1), r"k has shape \(1, 4, 3, 3\); expected \(2, 4, 3, 3\)"),
    (lambda x: attention(x, x, x.half(), 1), "v has dtype float16; expected float32"),
    (lambda x: attention(x.int(), x, x, 1), "q has dtype int32; expected float32, "),
    (lambda x: attention(x, x.to("meta"), x, 1), "k is on meta; expected cpu"),
    (lambda x: attention(x, x, x, 1, NAN), "scale is nan; expected a finite number, or None"),
    (lambda x: attention(3, x, x, 1), "q is a int; expected a tensor"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^attention: " + message):
        call(torch.zeros(2, 4, 3, 3))
