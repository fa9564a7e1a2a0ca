"""Named runs: each can be built, says what it costs, and carries the published settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdgen import nets, recipes
from kdgen.denoiser import Sampling
from kdgen.errors import UsageError
from kdgen.methods.progressive import Progressive
from kdgen.recipes.base import Student, Teacher
from kdgen.recipes.cost import cost, per_pair, size

EVERY: dict[str, Teacher | Student] = {
    name: make() for name, make in {**recipes.TEACHERS, **recipes.STUDENTS}.items()
}
GFLOP = {  # forward, one image, 2 per multiply-add; counted independently on the published networks
    "ddpm32": 12.444,
    "ddpm64": 48.101,
    "ddpm256": 497.028,
    "pd32": 35.795,
    "pd64": 219.358,
    "edm32": 42.383,
    "rf32": 21.695,
    "adm64": 219.330,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_names_what_exists_and_says_where_it_is_from(name: str):
    recipe = EVERY[name]
    twin = recipes.twin(recipe)
    assert recipe.purpose
    assert recipe.source or name.startswith(("digits", "images"))
    for k, stage in enumerate(recipe.stages):
        assert stage.taught_by is None or stage.taught_by <= k
        assert bool(stage.pairs) == (stage.method.data == "pairs")
        assert stage.training.batch % stage.training.accumulate == 0
    assert isinstance(twin, Teacher)


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_can_be_cast(name: str):
    """Its roles can be built from its teacher, on a network of one level, and suit its method."""
    recipe = EVERY[name]
    start = recipes.twin(recipe).build(width=64, mult=(1,), blocks=1)
    for stage in recipe.stages:
        roles = stage.method.cast(start, stage.method.student(start))
        assert set(roles) == set(stage.method.roles)
        stage.method.check(roles)
        start = roles.student


@pytest.mark.parametrize("name", GFLOP)
def test_flops_of_published_networks(name: str):
    measured = size(nets.PRESETS[name])
    assert measured.flops / 1e9 == pytest.approx(GFLOP[name], rel=2e-3)
    assert measured.activations > 0


@pytest.mark.parametrize(
    ("name", "exaflops"),
    [
        ("cifar10-edm", 25.4),
        ("cifar10-progressive", 17.2),
        ("cifar10-catch-up", 13.6),
        ("cifar10-cd", 105.0),
        ("cifar10-sid", 188 * 500 / 404),  # per image to the released snapshot
    ],
)
def test_the_cost_of_published_runs(name: str, exaflops: float):
    recipe = EVERY[name]
    assert cost(recipe, recipes.twin(recipe)).flops / 1e18 == pytest.approx(exaflops, rel=0.02)


def test_pairs_count_towards_the_cost():
    """96 of DDIM's 100 quadratic steps move; 3 evaluations a training image."""
    recipe = recipes.student("cifar10-denoising-student")
    found = cost(recipe, recipes.twin(recipe))
    evaluations = 1_024_000 * 96 + 50_000 * 512 * 3
    assert found.flops == pytest.approx(evaluations * GFLOP["ddpm32"] * 1e9, rel=2e-3)


def test_a_pair_costs_as_far_as_its_chain_goes():
    recipe = recipes.student("cifar10-catch-up-one-step")
    flow = recipes.twin(recipe)
    assert [per_pair(stage, flow) for stage in recipe.stages] == [9, 12, 15]
    guided = replace(recipe.stages[0], how=Sampling("ddim", steps=16, guidance=2.0))
    assert per_pair(guided, flow) == 18
    evaluations = 500_000 * (9 + 12 + 15) + 3 * 40_000 * 128 * 4
    assert cost(recipe, flow).flops == pytest.approx(evaluations * size(flow.net).flops)


def test_memory_holds_every_graph_that_a_loss_goes_back_through():
    """SiD: three networks and two pairs of moments, gradients of one at a time, an average; and the
    activations of all three."""
    recipe = recipes.student("cifar10-sid")
    measured = size(recipes.twin(recipe).net)
    weights = 4 * (3 + 2 * 2 + 1 + 1) * measured.parameters
    expected = weights + 3 * 256 // 4 * measured.activations
    assert cost(recipe, recipes.twin(recipe)).memory == expected


def test_rounds_count_with_their_length():
    stage = recipes.student("cifar10-progressive").stages[0]
    assert len(list(stage.method.rounds())) == 13
    assert stage.images == 128 * 750_000
    assert stage.method.updates(50_000) == [50_000] * 11 + [100_000] * 2


def test_a_round_has_one_update_at_least():
    assert Progressive(steps=4, last_length=0.1).updates(3) == [3, 1, 1]


def test_published_settings_that_are_easily_mixed_up():
    sid, cond = (recipes.student(f"cifar10-sid{x}") for x in ("", "-cond"))
    assert "1.923" in sid.expected  # often quoted swapped
    assert "1.710" in cond.expected
    assert sid.stages[0].training.betas == (0.0, 0.999)
    student = recipes.student("cifar10-denoising-student").stages[0]
    assert student.method.error == "l1"
    assert recipes.student("celeba64-denoising-student").stages[0].method.error == "l2"
    assert recipes.teacher("cifar10-edm").method.p_mean == -1.2


def test_the_list_shows_what_a_recipe_is_and_costs(capsys: pytest.CaptureFixture[str]):
    recipes.main(["digits", "cifar10-denoising-student"])
    said = capsys.readouterr().out
    assert "kdgen.train" in said
    assert "kdgen.distill" in said
    assert "25.6 M images" in said
    assert "EFLOP" in said
    assert "FID 9.36" in said
    assert "GiB" in said
    assert "sid" not in said


def test_an_unknown_recipe_is_refused_with_its_neighbours(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(UsageError, match="cifar10-sid"):
        recipes.student("cifar-sid")
    with pytest.raises(SystemExit) as stop:
        recipes.main(["cifar10-ddpn"])
    assert stop.value.code == UsageError.exit_code
    assert "Did you mean cifar10-ddpm" in capsys.readouterr().err
