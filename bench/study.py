"""Measures what each choice of a configuration is worth: `python -m bench.study CONFIG --out FOLDER [NAME=VALUE…]`.

The study plays the arms of `ablation/arms.py`: the base, SFT on the chosen summaries, DPO in one, two and three
rounds, offline pairs, other values of beta and of the learning rate, other losses, the champion, replay and early
stopping. Each arm differs from another in one setting. It begins with the stages of that arm's run that do not depend
on the setting, and is then run as `rondo run` would run it, in a process of its own.

FOLDER holds the runs as `seed-SEED/ARM`, their output as `seed-SEED/ARM.log`, and all figures as `results.json`. The
same command resumes an interrupted study: finished arms are not run again, and failed arms are tried again. A failed
arm is recorded with the last line of its output, and the study goes on. NAME=VALUE are settings of all arms.

`--page FILE` writes a page with tables and plots. `python -m bench.study page FOLDER… --page FILE` writes one page of
several studies, without running anything.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ablation.arms import BY_NAME, Planned, plan_arms
from bench.ablation.figures import arm_figures, base_figures
from bench.ablation.page import write_page
from bench.ablation.sharing import share
from bench.print_table import machine_info
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.storage.ledger import utc_now
from pipeline.storage.lock import InUse
from pipeline.storage.provenance import git_commit, package_versions

ROOT = Path(__file__).parents[1]
RESULTS = "results.json"
_NOT_COMPARED = ("run", "seed", "rounds", "hardware")  # settings in which two starts of a study may differ


class Study:
    """A study's folder, with its results.

    Args:
        out: the folder.
        config: the YAML file.
        overrides: settings of all arms.
        planned: the arms.
        command: the command line, for the page.

    Raises:
        UserError: the folder has a study with other settings.
    """

    def __init__(
        self, out: Path, config: str, overrides: Sequence[str], planned: Sequence[Planned], command: Sequence[str]
    ):
        self.out, self.config, self.planned = out, config, planned
        settings = load_config(config, overrides).model_dump(mode="json")
        results = read_results(out) if (out / RESULTS).exists() else {"baselines": {}, "arms": {}}
        if "settings" in results and (changed := _changed(results["settings"], settings)):
            raise UserError(f"{out} has a study with other settings ({changed}): give another --out")
        packages = package_versions()
        machine = machine_info("cpu", 0) | {"python": platform.python_version(), "packages": packages}
        known = {"device", "cores", "python", "packages"}
        self.results = results | {
            "config": config,
            "command": list(command),
            "settings": settings,
            "machine": {name: value for name, value in machine.items() if name in known},
        }
        arms = results["arms"]
        for each in planned:
            head = _head(each.arm.title, " ".join(each.choice), each.arm.group, each.arm.compared_with)
            before = arms.get(each.arm.name, {})
            seeds = before.get("seeds", {}) if before.get("choice") == head["choice"] else {}
            arms[each.arm.name] = head | {"seeds": seeds}
        self.results["arms"] = {name: arms[name] for name in BY_NAME if name in arms}

    def run_folder(self, arm: str, seed: int) -> Path:
        """The run folder of an arm."""
        return self.out / f"seed-{seed}" / arm

    def is_finished(self, arm: str, seed: int) -> bool:
        """Whether an arm has its figures, or could have them without a run."""
        return self.results["arms"].get(arm, {}).get("seeds", {}).get(str(seed), {}).get("status") == "finished"

    def play(self, planned: Planned, seed: int) -> dict[str, Any]:
        """Run an arm and read its figures. Returns its entry of results.json, which is also saved.

        Raises:
            InUse: another driver has the run.
        """
        name, seeds = planned.arm.name, self.results["arms"][planned.arm.name]["seeds"]
        other = planned.arm.compared_with if self.is_finished(planned.arm.compared_with or "", seed) else None
        before = seeds.get(str(seed), {})
        if before.get("status") == "finished" and (other is None or "other" in before["verdicts"]):
            return before
        wall, run, began = before.get("wall", 0.0), self.run_folder(name, seed), time.monotonic()
        donor = planned.arm.differs_from
        entry: dict[str, Any]
        try:
            if before.get("status") != "finished":
                self._run_twice(planned, seed)
                wall += time.monotonic() - began
            others = [str(self.run_folder(each, seed)) if each else None for each in (other, donor)]
            entry = {"status": "finished", **arm_figures(str(run), *others)}
            if name == self.planned[0].arm.name:
                self._add_baselines(run, seed)
        except InUse:
            raise
        except Exception as error:  # whatever an arm does, the other arms are played
            entry = {"status": "failed", "error": str(error) if isinstance(error, UserError) else repr(error)}
            wall = before.get("wall", 0.0) + time.monotonic() - began
        seeds[str(seed)] = entry | {"wall": round(wall, 1), "made": utc_now(), "commit": git_commit()}
        self.save()
        return seeds[str(seed)]

    def _run_twice(self, planned: Planned, seed: int) -> None:
        """Run an arm, and once more if it fails: a busy machine may have been the cause, and a run is resumed.

        Raises:
            UserError: both runs failed, or the arm that it differs from did. Without that arm's stages it would have
                samples of its own, and could not be compared.
        """
        donor = planned.arm.differs_from
        if donor and not self.is_finished(donor, seed):
            raise UserError(f"{donor} failed, and this arm begins with its stages")
        try:
            self._run(planned, seed)
        except InUse:
            raise
        except UserError:
            self._run(planned, seed)

    def _run(self, planned: Planned, seed: int) -> None:
        """Begin the run folder with what the arm has in common with another, and run the arm to its end.

        Raises:
            UserError: the run failed; the message is the last line of its output.
            InUse: another driver has the run.
        """
        run = self.run_folder(planned.arm.name, seed)
        run.parent.mkdir(parents=True, exist_ok=True)
        donor = planned.arm.differs_from
        settings = [*planned.overrides, f"seed={seed}", f"run={run}"]
        if donor:
            share(load_config(self.config, settings), self.run_folder(donor, seed), run)
        log = run.with_name(f"{run.name}.log")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        }
        with log.open("ab") as output:
            command = [sys.executable, "-m", "jobs.run", self.config, *settings]
            status = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
        if status == InUse.status:
            raise InUse(f"{run}: {_last_line(log)}")
        if status:
            raise UserError(_last_line(log) or f"it ended with status {status}")

    def _add_baselines(self, run: Path, seed: int) -> None:
        """Add the base and the baselines, which are the same in every arm of a seed."""
        for name, figures in base_figures(str(run)).items():
            baseline = self.results["baselines"].setdefault(name, _head(name, "", "base", None) | {"seeds": {}})
            baseline["seeds"][str(seed)] = {"status": "finished", **figures}

    def save(self) -> None:
        """Write results.json as a whole, or not at all."""
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f"{RESULTS}.tmp"
        temporary.write_text(json.dumps(self.results, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.out / RESULTS)


def read_results(out: Path) -> dict[str, Any]:
    """The results of a study. Raises UserError if there are none."""
    try:
        results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        if not isinstance(results, dict) or "arms" not in results:
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{out} has no {RESULTS}: it should be the --out of a study") from None
    except ValueError:
        raise UserError(f"{out}/{RESULTS} is damaged: remove it, and repeat the command that made it") from None
    return results


def _head(title: str, choice: str, group: str, against: str | None) -> dict[str, Any]:
    return {"title": title, "choice": choice, "group": group, "against": against}


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as text; a setting that only one of both has is no difference."""
    for name in (name for name in now if name in was and name not in _NOT_COMPARED):
        if isinstance(was[name], dict) and isinstance(now[name], dict):
            if inner := _changed(was[name], now[name]):
                return f"{name}.{inner}"
        elif was[name] != now[name]:
            return f"{name}: was {was[name]}, now {now[name]}"
    return None


def _last_line(log: Path) -> str:
    """The last line that a run printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_study(options: argparse.Namespace) -> None:
    """Play all arms, and write the page if one is asked for."""
    planned, left_out = plan_arms(options.config, options.overrides, options.arms)
    for line in left_out:
        print(line, flush=True)
    study = Study(Path(options.out), options.config, options.overrides, planned, sys.argv[1:])
    total = len(planned) * len(options.seeds)
    for number, (seed, each) in enumerate(((seed, each) for seed in options.seeds for each in planned), 1):
        head = f"[{number}/{total}] seed {seed}, {each.arm.name}"
        print(f"{time.strftime('%H:%M')} {head} ({' '.join(each.choice)}) …", flush=True)
        print(f"{time.strftime('%H:%M')} {head}: {_describe(study.play(each, seed))}", flush=True)
    if options.page:
        write_page([study.results], Path(options.page))


def _describe(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "failed":
        return f"failed: {entry['error']}"
    wins = list(entry["verdicts"]["base"].values())
    rate = sum(verdict + 1 for verdict in wins) / 2 / max(1, len(wins))
    return f"wins {rate:.1%} of {len(wins):,} articles against the base, {entry['wall'] / 60:.1f} minutes"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run that is going ends too
    if sys.argv[1:2] == ["page"]:
        parser = argparse.ArgumentParser(prog="python -m bench.study page", description="Write the page of studies.")
        parser.add_argument("folders", metavar="FOLDER", nargs="+", help="the --out of a study")
        parser.add_argument("--page", metavar="FILE", default="docs/results.md", help="default: docs/results.md")
        options = parser.parse_args(sys.argv[2:])
        write_page([read_results(Path(folder)) for folder in options.folders], Path(options.page))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a run's configuration")
    parser.add_argument("overrides", metavar="NAME=VALUE", nargs="*", help="settings of all arms")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="the folder of the study")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="such as 0,1 (default 0)")
    parser.add_argument("--arms", type=_names, default=[], help="such as sft,dpo-2 (default: all)")
    parser.add_argument("--page", metavar="FILE", help="write a page with tables and plots, such as docs/results.md")
    run_study(parser.parse_intermixed_args())


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
