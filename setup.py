"""Lists the packages; everything else about the distribution is in setup.cfg."""

from setuptools import find_packages, setup

# experiments/ stays at the top of the checkout, and is installed as jaxconv/experiments/.
setup(
    packages=[*find_packages(include=["jaxconv", "jaxconv.*"]), "jaxconv.experiments"],
    package_dir={"jaxconv.experiments": "experiments"},
)
