"""ONNX Runtime: exported by torch with a free batch, which every session then fixes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..case import Array, calibration, inputs
from . import Call, Job, Runner

_NAMES = ("x", "label")
# Everything that it could quantise makes an invalid graph of a network exported by torch.
_PRODUCTS = ["Conv", "MatMul", "Gemm"]


def prepare(job: Job) -> None:
    job.check()
    export(job, _file(job.work, "fp32"))
    if job.variant.dtype == "int8":
        _quantise(job)


def start(job: Job) -> Runner:
    job.check()
    return Session(job)


def export(job: Job, target: Path) -> None:
    """The unfolded network with the time as a constant."""
    import torch

    from .. import networks

    net = networks.at_time(networks.load(job.folder), job.case.time)
    given = networks.tensors(*inputs(job.case, 2))
    names = _NAMES[: len(given)]
    free = torch.export.Dim("batch")
    torch.onnx.export(
        net,
        given,
        str(target),
        input_names=list(names),
        output_names=["y"],
        dynamic_shapes=(*({0: free} for _ in given),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantise(job: Job) -> None:
    """Post-training, static, QDQ, one scale for every output channel of a weight."""
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw, clean = _file(job.work, "fp32"), _file(job.work, "clean")
    quant_pre_process(str(raw), str(clean), skip_symbolic_shape=True)
    quantize_static(
        str(clean),
        str(_file(job.work, "int8")),
        _Reader(job),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=_PRODUCTS,
    )


class _Reader:
    """Calibration images as the quantiser asks for them."""

    def __init__(self, job: Job) -> None:
        self._images = self._each(job)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._images, None)

    def _each(self, job: Job) -> Iterator[dict[str, Array]]:
        for x, label in calibration(job.case):
            yield _named(x, label)


class Session:
    note = dtype = ""

    def __init__(self, job: Job) -> None:
        self.job = job

    def call(self, x: Array, label: Array | None) -> Call:
        session = self._session(len(x))
        given = _named(x, label)

        def run() -> Array:
            y: Array = session.run(None, given)[0]
            return y

        return run

    def _session(self, batch: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.job.threads, 1
        options.add_free_dimension_override_by_name("batch", batch)
        options.log_severity_level = 3
        file = str(_file(self.job.work, self.job.variant.dtype))
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _named(x: Array, label: Array | None) -> dict[str, Array]:
    return {"x": x} if label is None else {"x": x, "label": label}


def _file(work: Path, kind: str) -> Path:
    return work / f"{kind}.onnx"
