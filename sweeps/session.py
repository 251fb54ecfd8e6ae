"""One sweep from start to end: what trials share, the trials, MLflow, the last words."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import cluster, progress, track
from pipeline import record as runs
from pipeline.capacity import Amount
from pipeline.errors import DONE, INTERRUPTED, NODE_FAILED, RayLostError, UsageError
from pipeline.news import open_log
from pipeline.record import resume_command
from pipeline.session import Options, say, tracking_uri
from pipeline.stage import Catalog
from pipeline.store import Store
from pipeline.supervise import RAY_LOST
from sweeps import record
from sweeps.check import Checked, check_resources
from sweeps.ending import finish
from sweeps.outcome import Outcome, assigned
from sweeps.record import LAGGED, QUEUED, SweepRecord, TrialRecord
from sweeps.scored import scores_in
from sweeps.shared import SharedNodes
from sweeps.space import canonical
from sweeps.tracking import Curves
from sweeps.work import FAILED, OLD, RUNG, STEP

SAVE_SECONDS = 1.0


def run(
    root: Callable[[], Catalog],
    store: Store,
    checked: Checked,
    how: Options,
    data: Mapping[str, Any],
) -> int:
    """Run, or go on with, a sweep in this process, and return the exit code."""
    with contextlib.ExitStack() as stack:
        entry = record.opened(store, data, stack)
        left = sum(not trial.ended for trial in entry.trials) or checked.sweep.space.trials
        say(f"sweep {entry.id}: {left} trials to do, store {store.uri}")
        try:
            return Session(root, store, checked, how, entry).run()
        except UsageError as error:
            entry.end(runs.FAILED)
            say(f"error: {error}")
            return error.exit_code


class Session:
    """The moving parts of a sweep."""

    def __init__(
        self,
        root: Callable[[], Catalog],
        store: Store,
        checked: Checked,
        how: Options,
        entry: SweepRecord,
    ) -> None:
        self.root, self.store, self.checked, self.how, self.entry = root, store, checked, how, entry
        self.catalog, self.sweep = root(), checked.sweep
        self.trials: dict[str, TrialRecord] = {}  # by Ray Tune's names
        self.view: Any = progress.PlainView({}, how.machine)
        self.tracker = self._start_tracker()
        self.curves = Curves(self.tracker, store, checked.sweep.space)

    def run(self) -> int:
        try:
            self._execute()
            state = runs.FINISHED
        except UsageError:
            self.view.close()
            self.tracker.close("FAILED", timeout=1)
            raise
        except KeyboardInterrupt:
            state = runs.STOPPED
        except RayLostError as error:
            return self._lost(error)
        except Exception as error:
            # Ray Tune wraps what it meets when Ray's own processes die.
            if cluster.alive():
                raise
            return self._lost(error)
        self.view.close()
        return self._close(state)

    def _lost(self, error: Exception) -> int:
        self.view.message(str(error))
        self.view.close()
        self.entry.save()
        self.tracker.close("KILLED", timeout=0)
        return RAY_LOST

    def _execute(self) -> None:
        have = self.how.connect()
        check_resources(self.checked, self.store, have, "the cluster")
        nodes = SharedNodes(
            self.store, self.checked, self.entry, self.catalog.packages, self._show_nodes
        )
        todo = self._todo(nodes.run())
        names = [trial.name for trial in self.entry.trials]
        count = len(self.checked.values) or self.sweep.space.trials
        names += [record.trial_name(i) for i in range(len(names), count)]
        at_once = self.checked.concurrent(have.cpus, have.gpus)
        self.view = progress.view(dict.fromkeys(names), Amount(at_once), "trials")
        for trial in self.entry.trials:
            if trial.ended or trial.error:
                self._show_end(trial, progress.REUSED if trial.ended else progress.FAILED)
        if todo is None or todo:
            self._search(todo or [], at_once)

    def _show_nodes(self, needs: Mapping[str, Amount]) -> Any:
        self.view = progress.view(dict.fromkeys(needs), cluster.here(), "shared nodes", needs)
        return self.view

    # Trials

    def _todo(self, failed: Mapping[str, str]) -> list[int] | None:
        """Which trials go to Ray Tune; None where a search makes them up."""
        if not self.checked.values:
            return None
        todo = []
        for index, (values, targets) in enumerate(
            zip(self.checked.values, self.checked.looked_at, strict=True)
        ):
            trial = self.entry.trial(values)
            if trial.ended and record.outdated(self.entry.data, trial, targets):
                say(f"{trial.name} ended before code or data changed; it begins again")
                trial.forget()
            missing = [k for t in targets for k in t.graph.keys.values() if k in failed]
            if missing:
                trial.state, trial.error = FAILED, failed[missing[0]]
                self.curves.begin(trial)
                self.curves.end(trial, [])
            elif not trial.ended or self.sweep.space.halving is not None:
                todo.append(index)
                if not trial.ended:
                    trial.error = ""
                    self.entry.expect(trial, targets, self.checked.shared)
        if all(self.entry.trial(self.checked.values[index]).ended for index in todo):
            return []
        # Those that ended come first: early stopping hears again what it knew.
        return sorted(todo, key=lambda i: not self.entry.trial(self.checked.values[i]).ended)

    def _search(self, todo: Sequence[int], concurrent: int) -> None:
        # Ray reads when it is imported what connecting settled: whether it shows a token.
        from sweeps import tuning
        from sweeps.trial import Past, Shared

        past = {
            canonical(trial.values): Past(trial.reports, trial.ended, self._objective(trial))
            for trial in self.entry.trials
            if trial.ended or trial.reports or not self.checked.values
        }
        shared = Shared(
            root=self.root,
            store=self.store.uri,
            sweep=self.sweep,
            board=cluster.start_board(),
            git=self.entry.data["git"],
            trials=self.checked.values,
            past=past,
        )
        folder = self.entry.folder / "tune"
        shutil.rmtree(folder, ignore_errors=True)
        self._config = shared.values
        tuning.fit(shared, todo, concurrent, self.checked.grace, folder, self)
        shutil.rmtree(folder, ignore_errors=True)
        if not cluster.alive():
            raise RayLostError("Ray's processes were lost")

    def _objective(self, trial: TrialRecord) -> float | None:
        values = trial.measured.get(self.sweep.space.decides)
        return statistics.fmean(values) if values else None

    # What Ray Tune says of them

    def begun(self, key: str, config: Mapping[str, Any]) -> None:
        trial = self.entry.trial(self._config(config))
        self.trials[key] = trial
        if not trial.ended:
            trial.state = runs.RUNNING
            self.curves.begin(trial)
            self._show(trial, state=progress.RUNNING, note=assigned(trial.values))

    def reported(self, key: str, result: Mapping[str, Any]) -> None:
        trial = self.trials[key]
        if trial.ended or result.get(OLD):
            return
        for event in result.get("events", ()):
            self._event(trial, *event)
        if RUNG in result:
            trial.reports.append((result[STEP], result[RUNG]))
            self._show(trial, note=f"step {result[STEP]}: {result[RUNG]:.4g}")
        if "state" in result:
            self._result(trial, result)
        else:
            self.entry.save(SAVE_SECONDS)

    def ended(self, key: str, error: str) -> None:
        trial = self.trials[key]
        if trial.state == runs.RUNNING:  # stopped early, or lost
            trial.state, trial.error = (FAILED, error) if error else (LAGGED, "")
            self._done(trial, [])

    def _event(self, trial: TrialRecord, kind: str, number: int, node: str, *rest: Any) -> None:
        if kind == "log":
            several = self.sweep.space.seeds > 1
            name = record.node_name(trial.name, number if several else None, node)
            with open_log(self.entry.folder, name) as stream:
                stream.write(rest[0])
        elif kind == "points" and self.sweep.space.seeds == 1:
            self.tracker.points(trial.name, rest[0], rest[1])
        elif kind == "message":
            self.view.message(f"{trial.name}: {rest[0]}")
        elif kind == "progress":
            done, total, unit = rest
            how_far = f" {done:g}/{total:g} {unit}".rstrip() if total else ""
            self._show(trial, note=f"{node}{how_far}")

    def _result(self, trial: TrialRecord, result: Mapping[str, Any]) -> None:
        trial.state, trial.error = result["state"], result.get("error", "")
        trial.measured = dict(result.get("measured", {}))
        trial.errors = dict(result.get("errors", {}))
        trial.artifacts = dict(result.get("artifacts", {}))
        shared = self.checked.shared
        nodes = [dict(seed) for seed in result["nodes"]]
        own = {n["key"]: n["seconds"] or 0 for seed in nodes for n in seed.values()}
        trial.seconds = round(sum(s for key, s in own.items() if key not in shared), 3)
        self.entry.nodes(trial, nodes, shared)
        self._done(trial, nodes)

    def _done(self, trial: TrialRecord, nodes: Sequence[Mapping[str, Any]]) -> None:
        self._show_end(trial, progress.FAILED if trial.state == FAILED else progress.DONE)
        self.curves.end(trial, nodes)
        self.entry.save(SAVE_SECONDS)

    def _show_end(self, trial: TrialRecord, state: str) -> None:
        value = self._objective(trial)
        result = f"{self.sweep.space.decides} {value:.4g}" if value is not None else ""
        early = "stopped early" if trial.state == LAGGED else ""
        note = trial.error or result or early
        self._show(trial, state=state, note=f"{note}  ({assigned(trial.values)})")

    def _show(self, trial: TrialRecord, **changes: Any) -> None:
        if trial.name in self.view.nodes:
            self.view.update(trial.name, **changes)

    # The end

    def _close(self, state: str) -> int:
        if state == runs.STOPPED:
            for trial in self.entry.trials:
                if trial.state == runs.RUNNING:
                    trial.state = QUEUED
            self.entry.end(state)
            self.tracker.close("KILLED", timeout=1)
            again = resume_command("--resume")
            say(f"interrupted; nothing finished is lost. Go on with:\n  {again}")
            cluster.disconnect()
            return INTERRUPTED
        failed = [trial for trial in self.entry.trials if trial.state == FAILED]
        self.entry.end(runs.FAILED if failed else runs.FINISHED)
        outcome = Outcome.of(self.sweep.space, self.entry.trials, scores_in(self.store))
        finish(
            self.store,
            self.sweep,
            self.checked,
            self.entry,
            outcome,
            self.tracker,
            self.how.tracking_uri,
        )
        self.tracker.close("FAILED" if failed else "FINISHED", timeout=10)
        cluster.disconnect()
        if failed:
            say(
                f"{len(failed)} of {len(self.entry.trials)} trials failed; after mending, try them "
                "again with --resume"
            )
        return NODE_FAILED if failed else DONE

    def _start_tracker(self) -> track.Tracker:
        data, git = self.entry.data, self.entry.data["git"]
        tracker = track.Tracker(
            tracking_uri(self.store, self.how),
            self.entry.folder,
            experiment=f"{data['recipe']}/{data['preset']}",
            run_name=self.entry.id,
            run_id=self.entry.id,
            params=self.checked.first.resolved.flat() | {"sweep": self.sweep.space.model_dump()},
            tags={
                "sweep": self.sweep.name,
                "recipe": self.sweep.space.recipe,
                "preset": data["preset"],
                "git.revision": git.get("revision", ""),
                "git.dirty": str(git.get("dirty", "")).lower(),
            },
            warn=lambda text: self.view.message(text),
        )
        tracker.start()
        uri = self.how.tracking_uri
        track.flush_pending(self.store.local, exclude=self.entry.folder, uri=uri)
        return tracker
