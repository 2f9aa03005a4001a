"""``launcher=slurm``: run the jobs of a command line, one or many, as batch jobs of SLURM."""

from i2i_lightning.cli.slurm.launcher import SlurmLauncher

__all__ = ["SlurmLauncher"]
