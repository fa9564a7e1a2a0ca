"""Who is compared with whom: the ratios that the documentation states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .figures import Results, Spread, ratio
from .variants import BY_NAME, EAGER, INDUCTOR

_LARGE = ("ddpm32", "edm32", "tiny16")


@dataclass(frozen=True)
class Claim:
    """`ours` against the fastest of `peers`. `aims`: what we want to reach, by network, on two
    cores with bf16 instructions."""

    ours: str
    peers: tuple[str, ...]
    against: str
    networks: tuple[str, ...]
    aims: Mapping[str, float] = field(default_factory=dict)


CLAIMS = (
    Claim("kdgen-fp32", ("openvino-fp32",), "OpenVINO fp32", _LARGE, {"ddpm32": 2.0}),
    Claim("kdgen-bf16", ("openvino-bf16",), "OpenVINO bf16", _LARGE, {"ddpm32": 1.9}),
    Claim("kdgen-bf16", INDUCTOR, "the best torch.compile", _LARGE, {"ddpm32": 2.1}),
    Claim("kdgen-fastest", ("openvino-int8",), "OpenVINO int8", _LARGE, {"ddpm32": 1.5}),
    Claim("kdgen-fp32", ("eager-fp32",), "torch eager fp32", ("digits",), {"digits": 3.0}),
    Claim("kdgen-fastest", EAGER, "the best torch eager", ("digits",), {"digits": 3.0}),
)


@dataclass(frozen=True)
class Verdict:
    """`why` says why there is no ratio, `asked` whether the run was to have one. `absent`: peers
    that it was to have, too, and that have no figure."""

    claim: Claim
    network: str
    batch: int
    peer: str = ""
    ratio: Spread | None = None
    errors: tuple[float, float] | None = None  # ours, the peer's
    why: str = ""
    asked: bool = True
    absent: tuple[str, ...] = ()

    @property
    def aim(self) -> float | None:
        return self.claim.aims.get(self.network)

    @property
    def key(self) -> str:
        return f"{self.network} · batch {self.batch} · {self.claim.ours} / {self.claim.against}"


def verdicts(results: Results) -> Iterator[Verdict]:
    for claim in CLAIMS:
        if results.name in claim.networks:
            for batch in results.batches:
                yield _verdict(claim, results, batch)


def _verdict(claim: Claim, results: Results, batch: int) -> Verdict:
    ours = results.figure(claim.ours, batch)
    peers = {name: f for name in claim.peers if (f := results.figure(name, batch))}
    absent = tuple(n for n in claim.peers if results.asked(n) and n not in peers)
    if ours is None or not peers:
        missing = claim.peers[0] if ours else claim.ours
        why = f"{BY_NAME[missing].title}: {results.why(missing, batch)}"
        asked = results.asked(claim.ours) and any(map(results.asked, claim.peers))
        return Verdict(claim, results.name, batch, why=why, asked=asked)
    peer, best = max(peers.items(), key=lambda item: item[1].rate.middle)
    errors = ours.error, best.error
    return Verdict(claim, results.name, batch, peer, ratio(ours, best), errors, absent=absent)
