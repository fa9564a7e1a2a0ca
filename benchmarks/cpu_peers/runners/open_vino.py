"""OpenVINO: converted by its own reader of torch modules, quantised by NNCF; every batch compiled
for its size, one stream of all threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..case import Array, calibration, inputs
from . import Call, Job, Runner

# What is asked of the plugin, and as what it reports that; with int8 it may choose how to compute
# the rest.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_REPORTS = {"float32": "fp32", "bfloat16": "bf16"}


def prepare(job: Job) -> None:
    job.check()
    import openvino

    model = _converted(job)
    if job.variant.dtype == "int8":
        import nncf

        images = [_listed(x, label) for x, label in calibration(job.case)]
        model = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    openvino.save_model(model, _file(job.work), compress_to_fp16=False)


def start(job: Job) -> Runner:
    job.check()
    return OpenVino(job)


def _converted(job: Job) -> Any:
    """The unfolded network with a free batch, the time a constant."""
    import openvino

    from .. import networks

    net = networks.at_time(networks.load(job.folder), job.case.time)
    given = networks.tensors(*inputs(job.case, 2))
    free = [openvino.PartialShape([-1, *t.shape[1:]]) for t in given]
    return openvino.convert_model(net, input=free, example_input=given)


class OpenVino:
    def __init__(self, job: Job) -> None:
        import openvino

        self.job, self.core = job, openvino.Core()
        self.note = self.dtype = ""
        self.model = self.core.read_model(_file(job.work))

    def call(self, x: Array, label: Array | None) -> Call:
        given = _listed(x, label)
        model = self.model.clone()
        model.reshape({k: list(v.shape) for k, v in enumerate(given)})
        compiled = self.core.compile_model(model, "CPU", self._properties())
        self.note, self.dtype = _said(compiled, self.job.variant.dtype)
        request = compiled.create_infer_request()

        def run() -> Array:
            y: Array = request.infer(given, share_inputs=True, share_outputs=True)[0]
            return y

        return run

    def _properties(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.job.threads,
        }
        if hint := _HINTS.get(self.job.variant.dtype):
            said["INFERENCE_PRECISION_HINT"] = hint
        return said


def _said(compiled: Any, asked: str) -> tuple[str, str]:
    """In which precision the plugin runs, where that is not what was asked for."""
    said = str(compiled.get_property("INFERENCE_PRECISION_HINT"))  # <Type: 'bfloat16'>
    runs = said.split("'")[1] if "'" in said else said
    if asked not in _HINTS:
        return f"the plugin computes the rest in {runs}", ""
    dtype = _REPORTS.get(runs, asked)
    return ("", "") if dtype == asked else (f"the plugin computes in {runs}", dtype)


def _listed(x: Array, label: Array | None) -> list[Array]:
    return [x] if label is None else [x, label]


def _file(work: Path) -> Path:
    return work / "model.xml"
