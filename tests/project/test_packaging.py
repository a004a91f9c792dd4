"""What surrounds the code: workflows, issue forms, citation, constraints, and the lowest versions."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lrp

yaml = pytest.importorskip("yaml", reason="it reads the workflows")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def load(path):
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # all as strings: `on` is no boolean


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets():
    """Of the Makefile: those that one asks for by name, each with its help."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(" ".join(re.findall(r"^\.PHONY:(.*)$", text, flags=re.MULTILINE)).split())
    assert named <= set(re.findall(r"^([\w-]+):", text, flags=re.MULTILINE))
    return named


# ---------------------------------------------------------------- workflows and forms


def steps(path):
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_a_developer_calls(path):
    workflow = load(path)
    assert set(workflow) >= {"name", "on", "jobs", "permissions"}
    jobs = workflow["jobs"]
    for job in jobs.values():
        assert job["runs-on"] and job["steps"]
        assert set([job["needs"]] if "needs" in job else []) <= set(jobs)
    made = [word for step in steps(path) for word in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))]
    assert made and set(made) <= targets()
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])


def test_the_three_workflows():
    made = {
        path.stem: [step["run"] for step in steps(path) if "make " in step.get("run", "")]
        for path in WORKFLOWS
    }
    assert made == {
        "docs": ["make docs"],
        "release": ["make test", "make dist"],
        "tests": ["make test", "make test-oldest"],
    }
    tests = load(GITHUB / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tests == declared == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == f">={tests[0]}"


def test_a_release_is_trusted_and_bears_its_tag():
    workflow = load(GITHUB / "workflows" / "release.yml")
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"] == "pypi"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text()
    (check,) = [
        step["run"] for step in workflow["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in step.get("run", "")
    ]
    for tag, code in ((f"v{lrp.__version__}", 0), ("v9.9.9", 1)):
        done = subprocess.run(
            ["bash", "-c", check], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == code, tag


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms(path):
    form = load(path)
    assert form["name"] and form["description"] and form["body"]
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids and len(set(ids)) == len(ids)


def test_a_bug_is_told_with_rules_health_and_versions():
    assert [path.stem for path in FORMS] == ["bug", "feature"]
    parts = {part.get("id"): part for part in load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert {"rules", "health", "versions"} <= set(parts)
    assert "lrp rules" in parts["rules"]["attributes"]["description"]
    command = re.search(r'python -c "(.*)"`', parts["versions"]["attributes"]["description"])[1]
    printed = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout
    assert f"('lrp', '{lrp.__version__}')" in printed and "('torch', " in printed


def test_hooks_before_a_commit_are_the_tools_of_make_test():
    config = load(ROOT / ".pre-commit-config.yaml")
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    tools = {Requirement(line).name for line in EXTRAS["test"]}
    made = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    for hook in repository["hooks"]:
        program, *rest = hook["entry"].removeprefix(".venv/bin/").split()
        assert hook["language"] == "system" and program in tools
        assert " ".join([f"$(BIN)/{program}", *(word for word in rest if not word.startswith("-"))]) in made


def test_the_citation_is_this_version():
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == lrp.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


# ---------------------------------------------------------------- versions


def requirements():
    return [Requirement(line) for group in (PROJECT["dependencies"], *EXTRAS.values()) for line in group]


def test_the_constraints_fit_and_name_every_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{requirement}: {version}"
    assert not [name for name in versions if name.startswith(("nvidia", "cuda", "triton", "lrp"))]
    assert not [version for version in versions.values() if Version(version).local]


def test_constraints_are_what_is_installed_without_what_torch_pins():
    constraints = tool("constraints")
    frozen = "numpy==2.4.6\nlrp==0.1.0\nnvidia-nccl-cu13==2.30.7\ntorch==2.14.1+cpu\ncuda-toolkit==13.0.3\nx @ file:///x\n"
    assert constraints.text(frozen) == constraints.HEAD + "numpy==2.4.6\ntorch==2.14.1\n"
    assert (ROOT / "constraints.txt").read_text(encoding="utf-8").startswith(constraints.HEAD)


def test_the_lowest_versions_are_those_of_pyproject():
    lowest = tool("oldest").constraints()
    assert {"torch==2.10", "torchvision==0.25"} <= set(lowest)
    for line in lowest:
        name, _, version = line.partition("==")
        assert all(r.specifier.contains(version) for r in requirements() if r.name == name), line
    names = [line.partition("==")[0] for line in lowest]
    assert len(set(names)) == len(names), "two lower bounds for one package"
    assert set(names) == {requirement.name for requirement in requirements()}


def test_a_dependency_without_a_lower_bound_is_refused(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["torch>=2.10", "rich"]\noptional-dependencies = {}\n')
    with pytest.raises(SystemExit) as error:
        tool("oldest").constraints(pyproject)
    assert str(error.value) == "pyproject.toml: 'rich' has no lower bound; write rich>=VERSION"


def test_make_installs_from_the_constraints():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "-c constraints.txt" in line]
    words = dict(re.findall(r"^(\w+) :?= (.*)$", text, flags=re.MULTILINE))
    installed = re.search(r"'\.\[(.*)\]'", line)[1].replace("$(USED)", words["USED"]).split(",")
    assert sorted(installed) == sorted(EXTRAS)
