"""Make the bundled one-step digits student: `python tools/make_student.py WORK_DIR`.

Runs the digits recipes for longer than the demo does (resumable, like any run), measures teacher
and student, and writes kdgen/assets/digits-student with a model card. Took 75 minutes on two busy
cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import kdgen
from kdgen import checkpoint, cli, data, distill, metrics, recipes, train
from kdgen.denoiser import Denoiser
from kdgen.evaluate import measure
from kdgen.sample import BUNDLED

TEACHER_STEPS = 24
TEACHER = ["digits", "--steps", "3000"]
STUDENT = ["--pairs", "49152", "--teacher-steps", str(TEACHER_STEPS), "--steps", "6000"]

HERE = cli.device_name(torch.device("cpu"))
PAGE = """# digits-student

One-step class-conditional generator of 8×8 handwritten digits, {parameters} parameters, stored as
float16. A Denoising Student (Luhman & Luhman 2021, arXiv:2101.02388) of kdgen's digits teacher:

```sh
{steps}
```

Data: the embedded digits ([attribution](digits.md), CC BY 4.0). Licence of the weights: Apache-2.0.
Limits: it learned 1,797 images, and regression from pairs softens strokes a little.

Measured with {made}:

{table}
"""


def main() -> None:
    """Train, distil, publish."""
    work = Path(sys.argv[1])
    teacher_at, student_at = work / "teacher", work / "student"
    train.main([*TEACHER, "--out", str(teacher_at)])
    distill.main([*STUDENT, "--teacher", str(teacher_at), "--out", str(student_at)])
    publish(teacher_at, student_at)


def publish(teacher_at: Path, student_at: Path) -> None:
    """Measure both models and store the student with its card."""
    teacher, student = checkpoint.load(teacher_at), checkpoint.load(student_at)
    images = data.load("digits")
    n = len(images)
    # float16 halves the file; what is measured is what is stored
    halved = student.copy()
    halved.load_state_dict({k: v.half().float() for k, v in student.state_dict().items()})
    runs = {
        "student, 1 step": measure(halved, images, n),
        f"teacher, {TEACHER_STEPS} steps": measure(teacher, images, n, steps=TEACHER_STEPS),
        "teacher, 1 step": measure(teacher, images, n, steps=1),
    }
    checkpoint.save(BUNDLED, halved.half(), card(images.digest, runs, halved))
    BUNDLED.with_suffix(".md").write_text(page(runs, halved))
    print(metrics.table(runs))


def commands() -> list[str]:
    """What a user types to make the same student."""
    first = " ".join(TEACHER)
    second = " ".join(STUDENT)
    return [
        f"python -m kdgen.train {first} --out runs/teacher",
        f"python -m kdgen.distill --teacher runs/teacher --out runs/student {second}",
    ]


def card(
    digest: str, runs: dict[str, list[metrics.Measure]], student: Denoiser
) -> dict[str, object]:
    """The model card kept beside the weights."""
    values = {
        name: {m.name: {"value": m.value, "floor": m.floor} for m in found}
        for name, found in runs.items()
    }
    return {
        "what": "one-step class-conditional generator of 8×8 handwritten digits",
        "recipe": commands(),
        "method": recipes.student("digits-denoising-student").stages[0].method.config(),
        "data": {"name": "digits", "sha256": digest, "licence": "CC BY 4.0, see digits.md"},
        "measures": values,
        "parameters": sum(p.numel() for p in student.parameters()),
        "stored as": "float16",
        "made with": f"kdgen {kdgen.__version__}, torch {torch.__version__}, {HERE}",
        "limits": "Learned 1,797 images; regression from pairs softens strokes a little.",
    }


def page(runs: dict[str, list[metrics.Measure]], student: Denoiser) -> str:
    """The same for people, in Markdown."""
    parameters = sum(p.numel() for p in student.parameters())
    return PAGE.format(
        parameters=f"{parameters:,}",
        steps="\n".join(commands()),
        made=f"kdgen {kdgen.__version__}, torch {torch.__version__}, float32, {HERE}",
        table=metrics.table(runs, "markdown"),
    )


if __name__ == "__main__":
    main()
