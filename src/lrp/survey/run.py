"""Measure many models, each in its own process, and store the results in a JSON file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

import torch

from lrp.errors import ModelError
from lrp.storage.atomic import write_whole
from lrp.survey import check
from lrp.survey.architectures import GROUPS, family_of, group_of
from lrp.survey.check import Measurement
from lrp.survey.commit import UNCOMMITTED, engine_commit
from lrp.survey.page import COMMAND, page_as_markdown, survey_page_order

HOURS = 1.0  # limit per model; a model that takes longer counts as a miss


class Worker:
    """A process `python -m lrp.survey.check`: if it crashes or runs out of memory, only its model counts as a miss."""

    def __init__(self, name: str, threads: int) -> None:
        """Start measuring `name` with `threads` threads."""
        self.name, self.began = name, time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="lrp-check-")
        self.result_file = Path(self.folder.name) / "result.json"
        # A file, not a pipe: torch logs a lot, and an unread pipe would fill up and block the worker.
        self.log = open(Path(self.folder.name) / "log.txt", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lrp.survey.check", name, str(self.result_file)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def result(self) -> Measurement | None:
        """The measurements, or a result with the reason why the worker died; None while it runs."""
        code = self.process.poll()
        timed_out = time.monotonic() - self.began > HOURS * 3600
        if code is None and not timed_out:
            return None
        if code == 0:
            found = Measurement.from_dict(json.loads(self.result_file.read_text(encoding="utf-8")))
        else:
            found = Measurement(
                self.name, family_of(self.name), self._failure(code), date=date.today().isoformat()
            )
        self.stop()
        return found

    def _failure(self, code: int | None) -> str:
        if code is None:
            return f"took longer than {HOURS:g} h: it was ended"
        if code < 0:
            return f"its process was ended by signal {-code}" + (
                ": the memory did not suffice, probably; try --jobs 1" if code == -9 else ""
            )
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        output = [line.strip() for line in lines if line.strip()]
        return f"its process ended with exit code {code}: {output[-1] if output else 'it said nothing'}"

    def stop(self) -> None:
        """Kill the process; a result that `result` has not returned is lost."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()


def survey(
    names: Sequence[str],
    folder: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    keep: bool = False,
) -> Iterator[tuple[Measurement, bool]]:
    """Measure models and store the results in `folder`/models.json, which is written again after each model.

    The results of other models stay, so that a survey can be made in parts. An interrupted part goes on where it was.

    Args:
        names: from `surveyed_architectures`.
        jobs: number of models measured in parallel; they share torch's threads.
        overwrite: also measure models again whose result `is_current`.
        keep: measure only models without a result, whatever measured the others.

    Yields:
        (result, whether it is from an earlier run), when ready. `folder`/models.md is written at the end.

    Raises:
        ModelError: the folder cannot be written, or its models.json is not a file of results.
    """
    if jobs < 1:
        raise ModelError(f"jobs={jobs}: at least one model is measured at a time.")
    results = load_earlier_run(folder)
    # The result of a crashed process has no versions, since the crash may not be the model's fault: it is tried again.
    measured = [n for n in names if n in results and results[n].versions is not None]
    kept = [] if overwrite else [n for n in measured if keep or is_current(results[n])]
    for name in kept:
        yield results[name], True
    waiting = deque(n for n in names if n not in kept)
    threads = max(1, torch.get_num_threads() // jobs)
    running: dict[str, Worker] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.popleft()
                running[name] = Worker(name, threads)
            finished = {name: result for name, work in running.items() if (result := work.result())}
            for name, result in finished.items():
                del running[name]
                results[name] = result
                write_whole(folder / "models.json", [_json(results.values())], ModelError, parents=True)
                yield result, False
            if not finished:
                time.sleep(0.1)
    finally:
        for work in running.values():
            work.stop()
    write_whole(folder / "models.md", [page_as_markdown(results.values())], ModelError, parents=True)


def is_current(result: Measurement) -> bool:
    """Whether measuring again would use the same versions and the same engine, as far as its commit tells."""
    commit = engine_commit()
    same = result.commit == commit and not commit.endswith(UNCOMMITTED)
    return same and result.versions == check.versions_at_check(result.name)


def run_meets_goal(results: Iterable[Measurement], everything: bool) -> bool:
    """Whether in each group of models no more than `may_miss` miss the requirements; of a part of them, none."""
    misses = Counter(group_of(r.name).prefix for r in results if not r.ok)
    return all(misses[group.prefix] <= (group.may_miss if everything else 0) for group in GROUPS)


def load_earlier_run(folder: Path) -> dict[str, Measurement]:
    """The results in `folder`/models.json by name, in the order of the list; empty if there is no such file."""
    path = folder / "models.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {entry["name"]: Measurement.from_dict(entry) for entry in content["results"]}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} holds no results of `{COMMAND}` ({type(error).__name__}: {error}): "
            "move it away, or name another folder with --output."
        ) from error
    return found


def _json(results: Iterable[Measurement]) -> str:
    content = {"command": COMMAND, "results": [r.to_dict() for r in survey_page_order(results)]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
