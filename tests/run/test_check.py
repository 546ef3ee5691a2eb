"""The check before torch: mixes, keys, types, interpolations, targets."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from papermix.errors import UserError, nearest
from papermix.run.build import build
from papermix.run.catalog import options, sets
from papermix.run.check import check_mix
from papermix.run.compose import compose, freeze
from papermix.run.explain import explain
from tests.settings import completed


def refused(*overrides: str) -> str:
    """The sentence with which a command line is refused."""
    try:
        freeze(compose(list(overrides), with_hydra=True), list(overrides), Path("runs/x"))
    except Exception as error:
        sentence = explain(error, list(overrides))
        assert "\n" not in sentence
        return sentence
    raise AssertionError(f"accepted: {overrides}")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ["optimizer.lrr", "did you mean 'lr'"]),
        ("datset=digits", ["datset", "did you mean 'dataset'"]),
        ("dataset=digitz", ["digitz", "did you mean 'digits'"]),
        ("model=resnet2", ["resnet2", "did you mean 'resnet20'"]),
        ("experiment=foundation/pydoc_char", ["pydoc_char", "did you mean 'pydocs_char'"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch", "max_epochs"]),
        ("trainer.max_epochs=1.5", ["trainer.max_epochs=1.5", "int"]),
        ("optimizer.lr=fast", ["optimizer.lr='fast'", "not of the right type"]),
        ("optimizer.nesterov=3", ["optimizer.nesterov=3", "bool"]),
        ("seed=one", ["seed='one'", "int"]),
        ("test=worst", ["worst", "last, best or none"]),
        ("+optimizer.beta=1", ["optimizer.beta", "SGD"]),
        ("+trainer.max_step=1", ["trainer.max_step", "did you mean 'max_steps'"]),
        ("+seed=2", ["seed exists already"]),
        ("optimizer.lr=0.1,0.2", ["looks like a sweep", "-m"]),
        ("nonsense", ["'nonsense' is no override", "key=value"]),
        ("model._target_=os.system", ["os.system is not allowed"]),
        ("model._target_=subprocess.Popen", ["not allowed"]),
        ("model._target_=papermix.models.mlp.MPL", ["MPL", "did you mean 'MLP'"]),
        ("model._target_=papermix.models.mpl.MLP", ["papermix.models.mpl", "no module"]),
        ("model.num_classes=${dataset.classes}", ["model.num_classes", "dataset.classes"]),
    ],
)
def test_refused_in_one_sentence(override: str, parts: list[str]) -> None:
    sentence = refused(override)
    for part in parts:
        assert part in sentence, sentence


def test_a_mix_without_what_it_needs_names_who_has_it() -> None:
    sentence = refused("dataset=pydocs_char", "model=resnet20")
    assert "model=resnet20 needs 'image'" in sentence and "dataset=digits" in sentence


def test_a_key_that_the_recipe_set_for_another_model_is_named_with_its_cure() -> None:
    mixed = ["experiment=foundation/fashion_mnist", "model=resnet20"]
    assert refused(*mixed).endswith("experiment=foundation/fashion_mnist sets it for its own model; leave it out with '~model.widths'.")
    freeze(compose([*mixed, "~model.widths"], with_hydra=True), mixed, Path("runs/x"))
    # a recipe's recipe, and a key of one's own
    assert sets("experiment", "foundation/fashion_mnist", "model.widths") and not sets("model", "resnet20", "widths")
    assert "experiment=" not in refused("experiment=foundation/fashion_mnist", "+model.heads=3")


def test_a_clash_says_why() -> None:
    cfg = OmegaConf.create(
        {
            "dataset": {"_gives_": ["image"]},
            "sparsity": {"_target_": "x", "_clashes_": {"image": "masks cannot see"}, "_needs_": ["image"]},
        }
    )
    with pytest.raises(UserError, match=r"sparsity=x does not go with dataset=dataset: masks cannot see\."):
        check_mix(cfg)


def test_stages_are_composed_as_typed() -> None:
    overrides = ["seed=3", 'stages={pretrain: [], probe: ["method=linear_probe","trainer.max_epochs=2","init_from=pretrain"]}']
    stages = freeze(compose(overrides), overrides, Path("runs/x"))
    assert list(stages) == ["pretrain", "probe"]
    assert stages["probe"]["method"]["_target_"].endswith("LinearProbe") and stages["probe"]["trainer"]["max_epochs"] == 2
    assert stages["pretrain"]["method"]["_target_"].endswith("Supervised")
    assert {s["seed"] for s in stages.values()} == {3}
    assert stages["probe"]["paths"]["run"] == "runs/x/probe" and stages["probe"]["stage"] == "probe"


def test_synchronized_batch_norm_needs_gpus() -> None:
    assert "hardware.sync_batchnorm=true needs GPUs" in refused("hardware=ddp_cpu", "hardware.sync_batchnorm=true")
    assert freeze(compose(["hardware=ddp", "hardware.sync_batchnorm=true", "hardware.devices=2"], with_hydra=True), [], Path("runs/x"))


def test_a_debug_preset_shortens_every_stage() -> None:
    overrides = ["stages={one: [], two: [\"trainer.max_epochs=200\", \"optimizer.lr=0.5\"]}", "debug=two_steps"]
    frozen = freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))
    assert [stage["trainer"]["max_epochs"] for stage in frozen.values()] == [1, 1] and frozen["two"]["optimizer"]["lr"] == 0.5
    overrides = [overrides[0], "debug=traceback"]
    assert freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))["two"]["trainer"]["max_epochs"] == 200


def test_a_stage_of_a_recipe_can_be_left_out() -> None:
    overrides = ["experiment=label_structure/figures", "~stages.segmentation"]
    assert list(freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))) == ["autoencoder"]


@pytest.mark.parametrize(
    ("stages", "part"),
    [
        ('{a: ["optimizer.lrr=1"]}', "stage a: there is no key 'optimizer.lrr'"),
        ('{a: ["init_from=b"], b: []}', "does not come before it"),
        ('{a: ["callbacks=[rng]"], b: ["init_from=a"]}', "saves nothing: add checkpoints"),
        ("{a: 3}", "must be a list of overrides"),
        ("{main: []}", "not 'main'"),
    ],
)
def test_bad_stages(stages: str, part: str) -> None:
    overrides = [f"stages={stages}"]
    with pytest.raises(UserError, match=part.replace(".", r"\.")):
        freeze(compose(overrides), overrides, Path("runs/x"))


def test_build_refuses_what_is_not_allowed() -> None:
    with pytest.raises(UserError, match="not allowed"):
        build({"_target_": "os.system", "command": "true"})
    with pytest.raises(UserError, match="not allowed"):
        build({"_target_": "torch.nn.Sequential", "inner": {"_target_": "builtins.eval"}})


def test_nearest() -> None:
    assert nearest("reznet20", ["resnet20", "mlp"]) == " (did you mean 'resnet20'?)"
    assert nearest("qqqq", ["resnet20", "mlp"]) == ""


def _every_option() -> list[str]:
    groups = ("dataset", "model", "method", "optimizer", "scheduler", "sparsity", "callbacks", "logger", "hardware", "debug", "trainer")
    return [f"{g}={o}" for g in groups for o in options(g)]


@pytest.mark.parametrize("option", _every_option())
def test_every_option_composes_and_is_explained(option: str) -> None:
    group, _, name = option.partition("=")
    assert options(group)[name].summary, f"conf/{group}/{name}.yaml needs a first comment line that says what it is"
    chosen = completed(**{group: name})
    overrides = [f"{g}=[{o}]" if g in ("callbacks", "logger") else f"{g}={o}" for g, o in chosen.items()]
    assert freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))


@pytest.mark.parametrize("name", list(options("experiment")))
def test_every_experiment_composes(name: str) -> None:
    for overrides in ([f"experiment={name}"], [f"experiment={name}", "debug=two_steps"]):
        assert freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))
