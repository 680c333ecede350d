"""The lock files hold what is asked for, in versions that go together, and nothing else."""

import re

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import run
from scripts.comfyui import ROOT, find_comfyui
from scripts.lock import PYTHONS, TORCH_PACKAGES

PLATFORMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
ENVIRONMENTS = [
    pytest.param(
        {
            **default_environment(),
            **markers,
            "platform_machine": "arm64" if name == "macOS" else "x86_64",
            "python_version": python,
            "python_full_version": f"{python}.9",
        },
        id=f"{name}-{python}",
    )
    for name, markers in PLATFORMS.items()
    for python in PYTHONS
]


def locked(name, environment):
    """Package -> pinned version for a system and Python version."""
    pins = {}
    header, *lines = (run.LOCKS / f"{name}.txt").read_text("utf-8").splitlines()
    assert header.startswith("# Made by scripts/lock.py")
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [pin] = requirement.specifier
            assert pin.operator == "=="
            assert canonicalize_name(requirement.name) not in pins, f"{line} is there twice"
            pins[canonicalize_name(requirement.name)] = pin.version
    return pins


def asked(environment, *files):
    """The requirements of some files that count in an environment."""
    for line in [*run.FORGOTTEN, *(line for file in files for line in run.read_requirements(file))]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


@pytest.mark.parametrize("command", ["draw", "test"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_requirement_is_pinned_within_its_bounds(environment, command):
    pins = locked(command, environment)
    files = [ROOT / name for name in run.REQUIREMENTS[command]]
    if comfyui := find_comfyui():
        files.append(comfyui / "requirements.txt")
    for requirement in asked(environment, *files):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_three_files_agree(environment):
    draw, test, torch = (locked(name, environment) for name in ("draw", "test", "torch"))
    assert draw.items() <= test.items()
    shared = torch.keys() & test.keys()
    assert {name: torch[name] for name in shared} == {name: test[name] for name in shared}
    assert {f"{name}=={torch[name]}" for name in ("torch", "torchvision")} == set(run.TORCH.split())


@pytest.mark.parametrize("name", ["draw", "test"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_torch_and_what_only_it_needs_stay_out(environment, name):
    pins = locked(name, environment)
    only_torchs = {*TORCH_PACKAGES, "triton", "sympy", "networkx", "mpmath"}
    assert not only_torchs & pins.keys()
    assert not [package for package in pins if package.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("name", ["draw", "test", "torch"])
def test_a_lock_holds_no_address_and_no_command(name):
    text = (run.LOCKS / f"{name}.txt").read_text("utf-8")
    assert not re.search(r"://|^\s*-|@|\buv\b|\bpip\b", text, re.MULTILINE)


def test_drawing_installs_nothing_of_the_tests():
    pins = locked("draw", default_environment())
    assert not {"pytest", "hypothesis", "ruff", "basedpyright", "playwright"} & pins.keys()
    assert "c2pa-python" not in pins  # optional
