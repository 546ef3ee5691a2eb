"""What a launcher needs to be installed, checked before anything is composed."""

from importlib.util import find_spec

from papermix.errors import UserError

# package of a launcher's class -> what it imports, the extra that installs it
_NEEDS = {
    "hydra_plugins.papermix_launchers.launchers.SlurmLauncher": (("submitit", "hydra_plugins.hydra_submitit_launcher"), "slurm"),
    "hydra_plugins.papermix_launchers.launchers.RayLauncher": (("ray",), "ray"),
}


def check_installed(target: str, name: str) -> None:
    """Raise UserError when a launcher's packages are missing.

    Args:
        target: the launcher's ``_target_``.
        name: the option that was chosen, ``slurm``.
    """
    for prefix, (packages, extra) in _NEEDS.items():
        if target.startswith(prefix):
            lacking = [package for package in packages if find_spec(package) is None]
            if lacking:
                raise UserError(f"hydra/launcher={name} needs what is not installed ({lacking[0].rpartition('.')[2]}): pip install 'papermix[{extra}]'.")
