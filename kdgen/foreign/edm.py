"""Pickles of EDM (Karras et al. 2022, arXiv:2206.00364) and of SiD (Zhou et al. 2024,
arXiv:2404.04057), which has the same format."""

from __future__ import annotations

from typing import Any

from kdgen.data.offenders import quoted
from kdgen.data.pickles import RefusedPickle
from kdgen.denoiser import SIGMA_DATA, Denoiser, Sampling
from kdgen.errors import CheckpointError
from kdgen.foreign import architecture, persistent, weights
from kdgen.foreign.persistent import Module
from kdgen.nets import UNet
from kdgen.schedules import EDM

MOST_BLOCKS = 64  # a level; more than any published network, and harmless to count


def denoiser(data: bytes, where: str, sampling: Sampling | None = None) -> Denoiser:
    """The averaged network of the pickle `data`, called `where` in messages; eval mode, float32.

    None of its code is run. Raises CheckpointError for another format, another preconditioning than
    EDM's, and tensors without a place in our network.
    """
    try:
        net = _network(_average(persistent.read(data)))
    except RefusedPickle as error:
        raise CheckpointError(
            f"{where}: {error}; expected a pickle of EDM or SiD. Check the download."
        ) from None
    return Denoiser(net, EDM(), "edm", sampling=sampling or usual()).eval()


def usual() -> Sampling:
    """Karras et al. 2022, table 1: 35 evaluations."""
    return Sampling("heun", steps=18, grid="karras")


def one_step(sigma_init: float) -> Sampling:
    """x0 from noise of standard deviation sigma_init."""
    return Sampling("few_step", steps=1, times=(EDM().t_of_sigma(sigma_init),))


def _average(content: Any) -> Module:
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Module):
        raise RefusedPickle("has no network under 'ema'")
    outer: Module = content["ema"]
    if outer.name != "EDMPrecond":
        raise RefusedPickle(f"its preconditioning is {quoted(outer.name)}, not EDMPrecond")
    if (std := outer.state.get("sigma_data")) != SIGMA_DATA:
        raise RefusedPickle(f"its sigma_data is {quoted(repr(std))}, not {SIGMA_DATA}")
    return outer


def _network(outer: Module) -> UNet:
    modules = outer.state.get("_modules")
    inner = modules.get("model") if isinstance(modules, dict) else None
    if not isinstance(inner, Module):
        raise RefusedPickle("has no network 'model'")
    arguments = inner.state.get("_init_kwargs")
    if not isinstance(arguments, dict) or inner.state.get("_init_args"):
        raise RefusedPickle("does not name the arguments of its network")
    if not isinstance(blocks := arguments.get("num_blocks", 4), int) or blocks > MOST_BLOCKS:
        raise RefusedPickle(f"its num_blocks is {quoted(repr(blocks))}, not 1 … {MOST_BLOCKS}")
    try:  # what a hostile file can still bend: the types and nesting of what is plain data
        config = architecture.config(inner.name, arguments)
        tensors = weights.translated(config, dict(inner.tensors()))
    except (AttributeError, RecursionError, RuntimeError, TypeError):
        raise RefusedPickle("its modules are not nested as a network's are") from None
    net = UNet(config)
    net.load_state_dict(tensors)
    return net
